"""Bring a table up to date: `make table [TABLE=..] [BUDGET=..] [SEEDS=..] [JOBS=..] [FRESH=1] ...`, `make demo`.

DVC decides what is stale; this turns the knobs, runs cells side by side, and says what was trained and what reused.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stn.cells import CELLS, EXPORTED, declared, on_demand, record_path, stage, write
from stn.config import CONF
from stn.environment import cores
from stn.errors import UserError
from stn.experiments import find_tables
from stn.files import TYPED_IN, openable, write_texts
from stn.front_door import guard
from stn.messages import Parser
from stn.params import KNOBS, TABLES, Params, read_params, write_params
from stn.stages import Stages, gpu_is_shared

WRITTEN = ("params.yaml", "cells.json", "dvc.lock", "reports")  # committed files that the pipeline writes
DVC = (sys.executable, "-m", "dvc")  # the dvc of this Python, not the one on PATH


def bring_up_to_date(table: int, jobs: int, fresh: bool, oracle: bool = False) -> None:
    """Fetch, distort or crop, train stale cells, `jobs` at a time, and write the table and its figures.

    With `oracle` the on-demand cells of Table 1 are trained too: networks that are given the true pose. Seeds that a
    record has stay in it when others are asked for. With `fresh` cells that are up to date are trained too, with the
    seeds that are asked for; each record stays until the new one replaces it.
    """
    params = read_params()
    which = "smoke, which params.yaml names (BUDGET=quick changes it)" if params.budget == "smoke" else params.budget
    print(f"Table {table}, budget {which}: checking what is up to date, about ten seconds", flush=True)
    cells = declared(params, table) + (on_demand(params, table) if oracle else [])
    records = {f"cell@{stage(params.budget, cell)}": record_path(params.budget, cell) for cell in cells}
    previous_runs = {name: _seconds_and_dates(path) for name, path in records.items()}
    started = time.monotonic()
    runner = Stages(jobs)
    if not CELLS.exists():  # without it DVC cannot read dvc.yaml
        write()
    # DVC tracks neither code outside the project nor the seeds that records have.
    force = ["--force"] if fresh or os.environ.get("STN_EXPERIMENTS") or _lacks_seeds(records) else []
    _dvc("repro", "-q", *force, "cells")
    if stages := needed(params, table):
        print(f"checking the data: {', '.join(stages)}, about ten seconds, longer if it is made now", flush=True)
        _dvc("repro", "-q", *stages)
    runner.repro(
        sorted(records, key=_longest_first(previous_runs)),
        force=_begin_again(table, params.budget, records, previous_runs) if fresh else (),
    )
    _begun(table, params.budget).unlink(missing_ok=True)  # all cells are complete, so no later FRESH=1 continues one
    trained_stages = [name for name, path in records.items() if _seconds_and_dates(path) != previous_runs[name]]
    exports = exports_to_bring_up_to_date(params, table)
    if exports:  # one after the other, since each is timed
        _dvc("repro", "-q", "--single-item", "--no-run-cache", *exports)
    figures = " and its figures" if find_tables()[table].figures else ""
    print(f"drawing Table {table}{figures}, about ten seconds", flush=True)
    if not runner.repro([f"table{table}"], force=[f"table{table}"]):  # a table from outside the project is no stage
        _run(sys.executable, "-m", "stn.table", "--table", str(table), "--figures")
    minutes = (time.monotonic() - started) / 60
    print(f"{len(trained_stages)} of {len(records)} cells trained here in {minutes:.1f} min", end="")
    if len(trained_stages) < len(records):
        machines = sorted(
            {place for name, path in records.items() if name not in trained_stages for place in _places(path)}
        )
        print(f"; {len(records) - len(trained_stages)} reused, trained on {' and '.join(machines)}", end="")
        print(" (`make table FRESH=1` trains them here)", end="")
    print()
    if params.budget == "smoke":
        print(f"budget smoke: its numbers mean nothing; {_way_back()}")
        print("it stays in params.yaml, so the next `make table` is at budget smoke too, unless you add BUDGET=quick")


def _lacks_seeds(records: dict[str, Path]) -> bool:
    """Whether a record has a seed that `cells.json` lacks, as after an interrupted `make table FRESH=1`.

    Its cell would be trained again, with fewer seeds.
    """
    entries = json.loads(CELLS.read_text(encoding="utf-8"))["cells"]
    for name, path in records.items():
        try:
            seeds = {str(seed["seed"]) for seed in json.loads(path.read_bytes())["seeds"]}
            if not seeds <= set(entries[name.removeprefix("cell@")]["seeds"].split(",")):
                return True
        except (OSError, ValueError, KeyError, TypeError):  # no record, or one that is trained again
            continue
    return False


def _begin_again(table: int, budget: str, records: dict[str, Path], runs: dict[str, list | None]) -> list[str]:
    """The cells that `make table FRESH=1` has to train: all of them, or after an interrupt those that are left.

    At its start it removes what earlier runs left in outputs/, and writes down of which runs the records are. Returns
    the cells whose records are still of these runs.
    """
    begun = _begun(table, budget)
    try:
        earlier = json.loads(begun.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        for path in records.values():
            shutil.rmtree(Path("outputs/runs") / budget / path.stem, ignore_errors=True)
        write_texts({begun: json.dumps(runs)})
        earlier = runs
    left = [name for name, run in runs.items() if run == earlier.get(name, run)]
    if len(left) < len(runs):
        print(f"{len(runs) - len(left)} of {len(runs)} cells were trained afresh before an interrupt")
    return left


def _begun(table: int, budget: str) -> Path:
    """The file that is there from the start of `make table FRESH=1` until a run of this table completes."""
    return Path("outputs") / f"fresh-{budget}-table{table}.json"


def changes() -> str:
    """Which of the committed files that the pipeline writes differ from the last commit, and the way back to it.

    Empty if none differs, or if git does not know. Untracked files, such as new records, do not count.
    """
    command = ["git", "diff", "--name-only", "--relative", "HEAD", "--", *WRITTEN]
    try:
        lines = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ""
    changed = [name for name in WRITTEN if any(line.partition("/")[0] == name for line in lines)]
    if not changed:
        return ""
    return f" to go on, or `git checkout {' '.join(changed)}` to go back to the last commit, from which these differ"


def _way_back() -> str:
    if Path(".git").exists():
        return f"`git checkout {' '.join(WRITTEN)}` takes them back"
    return "unpack params.yaml, cells.json, dvc.lock and reports again to take them back"


def needed(params: Params, table: int) -> list[str]:
    """The stages of `dvc.yaml` that the table's cells depend on."""
    entries = json.loads(CELLS.read_text(encoding="utf-8"))
    cells = declared(params, table)
    stored = [data for data in dict.fromkeys(cell.data for cell in cells) if data in entries["stored"]]
    weights = any(entries["cells"][stage(params.budget, cell)]["reads"].endswith(".weights.npz") for cell in cells)
    return [*(f"store@{data}" for data in stored), *(["classifier"] if weights else [])]


def export_names(params: Params, table: int) -> list[str]:
    """The stages that export and time the networks of the table's cells; none for most tables."""
    return [f"export@{stage(params.budget, cell)}" for cell in declared(params, table)] if table in EXPORTED else []


def exports_to_bring_up_to_date(params: Params, table: int) -> list[str]:
    """`export_names` without those whose networks are not here, in a clone for example: their exports are kept.

    Whether an export is of the record's training is checked when the table reads it.
    """
    names = []
    for name, cell in zip(export_names(params, table), declared(params, table), strict=False):
        record = record_path(params.budget, cell)
        is_exported = record.with_name(f"{record.stem}-export.json").exists()
        if not is_exported or any((Path("outputs/runs") / params.budget / cell.key).glob("*/last.ckpt")):
            names.append(name)
    return names


def demo(jobs: int) -> None:
    """Run the same stages on the embedded digits, in the workspace `outputs/demo`."""
    root = CONF.parent
    work = root / "outputs" / "demo"
    os.environ[TYPED_IN] = str(Path.cwd())
    folder = openable(work)
    print(f"preparing {folder}, about ten seconds; data and records in the next lines are below it", flush=True)
    shutil.rmtree(work, ignore_errors=True)
    workspace(work, root, (CONF / "demo.yaml").read_text(encoding="utf-8"))
    os.chdir(work)
    os.environ["PYTHONPATH"] = str(work / "src")  # stages run the workspace's code
    sys.path.insert(0, os.environ["PYTHONPATH"])
    bring_up_to_date(1, jobs, fresh=False)
    print(f"table: {folder}/reports/table1.md; figures: {folder}/reports/figures")


def workspace(work: Path, root: Path, params: str) -> None:
    """Make a DVC workspace in `work`: the project's stages, code and conf, with its own `params.yaml`."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "dvc.yaml", work)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("conf", "src"):  # copied, because DVC does not follow links out of its folder
        shutil.copytree(root / name, work / name, ignore=ignore, dirs_exist_ok=True)
    (work / "params.yaml").write_text(params, encoding="utf-8")
    _run(*DVC, "init", "--no-scm", "--quiet", "--force", cwd=work)
    _run(sys.executable, "-m", "stn.cells", cwd=work, env=os.environ | {"PYTHONPATH": str(work / "src")})


def _run(*command: str, **how: Any) -> None:
    """Run a command. If it fails, end with its status: it has said why."""
    if status := subprocess.run(command, **how).returncode:
        raise SystemExit(status)


def _dvc(*arguments: str) -> None:
    if subprocess.run([sys.executable, "-m", "stn.stages", *arguments]).returncode:
        raise UserError(f"dvc {' '.join(arguments[:3])} ... failed, see above; the same command resumes")


def _seconds_and_dates(path: Path) -> list | None:
    try:
        return [[seed["seconds"], seed["provenance"]["date"]] for seed in json.loads(path.read_bytes())["seeds"]]
    except (OSError, ValueError, KeyError, TypeError):  # no record, or a damaged one
        return None


def _longest_first(previous_runs: dict[str, list | None]):
    """A sorting key for training stages: those without a record first, then those whose last training took longest.

    This order keeps all cores busy until the end.
    """
    durations = {name: sum(seconds for seconds, _ in runs) for name, runs in previous_runs.items() if runs}
    return lambda name: -durations.get(name, float("inf"))


def _places(path: Path) -> set[str]:
    """The machines that trained a record: GPUs, or processors with their cores, as far as the record names them."""
    return {_place(seed["provenance"]) for seed in json.loads(path.read_text(encoding="utf-8"))["seeds"]}


def _place(provenance: dict) -> str:
    if provenance.get("gpu"):
        return str(provenance["gpu"])
    cores = provenance.get("cores")
    return f"{provenance.get('cpu') or 'unknown processor'}{f' ({cores} cores)' if cores else ''}"


def main() -> None:
    parser = Parser(prog="python -m stn.pipeline", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("table", "demo"), default="table")
    parser.add_argument("--table", default="1")
    parser.add_argument("--budget")
    parser.add_argument("--seeds")
    parser.add_argument("--columns")
    parser.add_argument("--numbers")
    parser.add_argument("--birds")
    parser.add_argument("--jobs")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--oracle", action="store_true")
    args = parser.parse_args()
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{path}"  # the python and dvc of this environment
    with guard(changes):
        trainer = os.environ.get("STN_TRAINER", "cpu")
        trainers = sorted(path.stem for path in (CONF / "trainer").glob("*.yaml"))
        if trainer not in trainers:
            raise UserError(f"TRAINER={trainer} is not one of those in conf/trainer: {', '.join(trainers)}")
        on_gpu = trainer in ("gpu", "ddp")  # the unknown memory of the GPU decides how many cells fit
        default_jobs = 1 if on_gpu else cores()
        jobs = default_jobs if args.jobs is None else args.jobs
        if not str(jobs).isdigit() or int(jobs) < 1:
            raise UserError(f"JOBS={jobs} is not a number of cells to train side by side: give 2, for example")
        if args.table not in map(str, TABLES):
            raise UserError(f"TABLE={args.table} is not one of {', '.join(map(str, TABLES))}")
        if args.oracle and args.table != "1":
            raise UserError(f"ORACLE=1 TABLE={args.table}: only Table 1 has rows with the true pose")
        if on_gpu and int(jobs) > 1 and not gpu_is_shared():
            print("no MPS here, so cells take turns on the GPU: start it with `nvidia-cuda-mps-control -d`")
        if args.what == "demo":
            return demo(int(jobs))
        knobs = {knob: value for knob in KNOBS if (value := getattr(args, knob)) is not None}
        for line in write_params(**knobs):
            print(line)
        if args.fresh:
            os.environ["STN_FRESH"] = "1"  # `stn.cells` and each cell would keep the seeds of a record
        bring_up_to_date(int(args.table), int(jobs), args.fresh, args.oracle)


if __name__ == "__main__":
    main()
