#!/usr/bin/env bash
# Four runs of a sweep through a real Slurm. On their way one is requeued, as by preemption, and one is told that its
# time is up. Do they go on from their checkpoints, and end where runs without Slurm end? Then one training by two
# processes, one on each of two nodes: does it end where one process ends?
#
#   apt-get install slurm-wlm munge        # once
#   tests/cluster/slurm.sh [PYTHON]        # PYTHON: one with the project's requirements; else that of .venv
#
# The cluster is this machine: one controller and two nodes of one CPU each, started by hand and without systemd, with
# settings and logs in a temporary folder; all of it is gone at the end. Other daemons of Slurm are left alone. It takes
# about six minutes: Slurm waits for two before it starts a requeued job again. It is no part of `make test`, and is
# tested as root on Debian 12. Do not edit src/ meanwhile: other code has other folders for its runs.
set -euo pipefail
project=$(cd "$(dirname "$0")/../.." && pwd)
python=${1:-$project/.venv/bin/python}
export PATH="$PATH:/usr/sbin:/sbin"

fail() {
  echo "error: $*" >&2
  exit 1
}

for program in munged slurmctld slurmd sbatch srun scontrol squeue; do
  command -v "$program" >/dev/null || fail "there is no $program here: apt-get install slurm-wlm munge"
done
"$python" -c "import submitit" 2>/dev/null || fail "$python has not what the project needs: make setup, or name another Python"

work=$(mktemp -d)
sweep=
daemons=()
finish() {
  status=$?
  trap - EXIT
  [ -z "$sweep" ] || kill "$sweep" 2>/dev/null || true
  if [ "${SLURM_CONF:-}" = "$work/slurm.conf" ]; then  # else this would be another cluster
    scancel --user="$(id -un)" --full --signal=KILL >/dev/null 2>&1 || true
    scancel --user="$(id -un)" >/dev/null 2>&1 || true
    for ((i = 0; i < 30; i++)); do [ -n "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.5; done
  fi
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do kill "${daemons[i]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [ "$status" = 0 ]; then rm -rf "$work"; else echo "logs are left in $work" >&2; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ------------------------------------------------------------------------------------------------------- the cluster

cd "$work"
mkdir state spool
(umask 077 && head -c 1024 /dev/urandom > munge.key)
munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" --pid-file="$work/munge.pid" \
  --log-file="$work/munge.log" --seed-file="$work/munge.seed" > munge.out 2>&1 &
daemons+=($!)
host=$(hostname -s)
free=$("$python" -c 'import socket
sockets = [socket.socket() for _ in range(3)]
for one in sockets: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))')
read -r port port1 port2 <<< "$free"
cat > slurm.conf <<END
ClusterName=stn
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
NodeName=$host NodeHostname=$host NodeAddr=127.0.0.1 Port=$port1 CPUs=1 State=UNKNOWN
NodeName=$host-2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$port2 CPUs=1 State=UNKNOWN
PartitionName=here Nodes=$host,$host-2 Default=YES MaxTime=INFINITE State=UP
END
export SLURM_CONF=$work/slurm.conf
for ((i = 0; i < 50; i++)); do [ -S munge.socket ] && break; sleep 0.2; done
[ -S munge.socket ] || fail "munged did not start: $(tail -n 1 munge.out)"
slurmctld -D -c > slurmctld.out 2>&1 &
daemons+=($!)
for node in "$host" "$host-2"; do  # the first has the machine's name, because processes of DDP meet at it
  slurmd -D -N "$node" > "$node.out" 2>&1 &
  daemons+=($!)
done
idle() { [ "$(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)" = 2 ]; }
for ((i = 0; i < 60; i++)); do idle && break; sleep 0.5; done
idle || fail "the nodes did not come up: $(tail -n 1 slurmctld.log "$host.log" "$host-2.log")"
echo "$(slurmctld -V): $(sinfo --noheader --format='%D nodes, %N, %c CPU each')"

# ----------------------------------------------------------------------------------------------------------- the runs

export PYTHONPATH=$project/src STN_HERE=1 WANDB_MODE=offline OMP_NUM_THREADS=1
unset STN_TRAINER
settings=(data=digits_r budget=smoke budget.steps=160 budget.validate_every=20 logger=none)
slurm=(hydra/launcher=submitit_slurm hydra.launcher.partition=here hydra.launcher.timeout_min=10 hydra.launcher.max_num_timeout=1)
mkdir cluster
cd cluster
{ "$python" -m stn.fetch data=digits_r && "$python" -m stn.distort data=digits_r; } > ../data.out 2>&1 || fail "no data: $(tail -n 1 ../data.out)"
cp -r . ../alone

logged() { grep -hs "$1" outputs/sweep/.submitit/*/*_log.out; }
"$python" -m stn.train -m "${slurm[@]}" "${settings[@]}" model=cnn,st_cnn_affine seed=0,1 > ../sweep.out 2>&1 &
sweep=$!
for seed in 0 1; do
  until logged "digits_r/cnn/s$seed: step 40/" > ../seen.out; do
    kill -0 "$sweep" 2>/dev/null || fail "the sweep ended early: $(tail -n 1 ../sweep.out)"
    sleep 0.1
  done
  job=$(squeue --noheader --states=running --format='%F_%K' | grep "_$seed$") || fail "run $seed is not running"
  if [ "$seed" = 0 ]; then
    scontrol requeue "$job"
  else
    # What Slurm sends two minutes before the limit; submitit then asks for a requeue. The controller asks scancel to try
    # again, because it is requeueing a job of the array, but it has sent the signal, which must not come twice.
    timeout 2 scancel --signal=USR2 "$job" 2> ../scancel.out || true
    for ((i = 0; i < 100; i++)); do grep -qs "Caught signal SIGUSR2" outputs/sweep/.submitit/*/*_log.err && break; sleep 0.2; done
    [ "$i" -lt 100 ] || fail "no signal came to run $seed: $(tail -n 1 ../scancel.out)"
  fi
  echo "interrupted $job after \"$(logged "digits_r/cnn/s$seed: step" | tail -n 1)\""
done
wait "$sweep" || fail "the sweep failed: $(tail -n 1 ../sweep.out)"
sweep=
for seed in 0 1; do
  logged "digits_r/cnn/s$seed: resumed at step [0-9]*" || fail "run $seed was trained from the start"
done
runs=$(find outputs/runs -name result.json | wc -l)
[ "$runs" = 4 ] || fail "$runs runs of four are finished"
logged "test error"

cd ../alone
"$python" -m stn.train "${settings[@]}" model=cnn seeds=[0,1] > ../alone.out 2>&1 || fail "without Slurm: $(tail -n 1 ../alone.out)"
compare() {  # the results of a run below two folders: how far apart are their validation losses?
  "$python" -c 'import json, pathlib, sys
first, second = (
    json.loads(next(pathlib.Path(folder).glob(f"outputs/runs/*/*/{sys.argv[3]}/result.json")).read_text())["validation"]
    for folder in sys.argv[1:3]
)
assert len(first) == len(second)
print(max(abs(one[2] - other[2]) for one, other in zip(first, second)))' "$@"
}
for run in outputs/runs/smoke/digits_r-cnn/*; do
  apart=$(compare ../cluster . "${run##*/}")
  [ "$apart" = 0.0 ] || fail "an interrupted run ends elsewhere than one without Slurm: validation losses are $apart apart"
done
echo "the interrupted runs are those without Slurm: the same validation losses at all steps"

cd ../cluster
settings+=(budget.steps=20 budget.precision=float32 model=cnn)
two=(hydra.launcher.nodes=2 trainer=ddp trainer.accelerator=cpu trainer.devices=1 trainer.num_nodes=2)
"$python" -m stn.train -m "${slurm[@]}" "${settings[@]}" "${two[@]}" > ../two.out 2>&1 || fail "two nodes: $(tail -n 1 ../two.out)"
[ "$(ls outputs/sweep/.submitit/*/*_1_result.pkl | wc -l)" = 1 ] || fail "there was no second process"
cd ../alone
"$python" -m stn.train "${settings[@]}" > ../one.out 2>&1 || fail "one process: $(tail -n 1 ../one.out)"
newest=$(cd outputs/runs/smoke/digits_r-cnn && ls -t | head -n 1)
apart=$(compare ../cluster . "$newest")
"$python" -c "assert $apart < 1e-4" || fail "two nodes train otherwise than one process: validation losses are $apart apart"
echo "one training on two nodes is that of one process: validation losses at most $apart apart"
