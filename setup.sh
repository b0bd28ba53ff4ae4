#!/bin/sh
# Builds or completes the virtual environment: `make setup`, which sets VENV and PYTHON. `sh setup.sh bench docs` adds
# the packages of requirements-bench.lock and requirements-docs.lock. If nothing is left to do, it takes a tenth of a
# second. It is written in shell, because it must first find out whether there is a usable Python.
#
# Packages are installed in a temporary folder, which is moved into place when it is complete. So the environment must
# not depend on its place: uv makes it relocatable, and it runs the code of the current folder (src/stn/checkout.py).
# The files that do depend on the place are written last, and again in a copied or moved folder.
set -u
unset PYTHONPATH PYTHONHOME
cd "$(dirname "$0")" || exit
VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
case "$VENV" in /*) target=$VENV ;; *) target=$(pwd -P)/$VENV ;; esac
PATH=${PATH#"$target/bin:"}  # make puts it first, but the python3 there may be about to be replaced
UV=uv==0.13.9
extras=$*
started=$(date +%s)

fail() {
  echo "error: $*" >&2
  exit 2
}

# Runs a command without its output, and says every ten seconds what it is at, and how long the set-up has taken so far.
# If the command fails, ends with one line: what could not be done, and the last output of the command.
try() {
  purpose=$1
  shift
  count_seconds &
  counter=$!
  output=$("$@" 2>&1)
  status=$?
  stop_counter
  [ "$status" -ne 0 ] || return 0
  reason=$(printf '%s\n' "$output" | grep -v WARNING | tail -n 5 | tr -s '[:space:]' ' ' | sed 's/^ //; s/ $//' | cut -c 1-400)
  fail "cannot $purpose: $reason; then run the same command again"
}

# Ends with this script at the latest. The sleeping process may outlast it, so it holds neither the output nor the lock.
count_seconds() {
  while sleep 10 >/dev/null 2>&1 9>&- && kill -0 $$ 2>/dev/null; do
    echo "${purpose%% (*}: $(seconds) seconds so far"
  done
}

seconds() { echo $(($(date +%s) - started)); }

stop_counter() {
  [ -n "${counter-}" ] || return 0
  kill -KILL "$counter" 2>/dev/null
  wait "$counter" 2>/dev/null  # so that no shell reports its end
  counter=
}

checksum() { cat -- "$@" | cksum; }

says() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

# The minor versions of Python 3 that pyproject.toml allows: at least `low`, below `high`.
bounds=$(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)".*/\1 \2/p' pyproject.toml)
low=${bounds% *} high=${bounds#* }

allowed() {
  minor=${1#3.}
  minor=${minor%%.*}
  case "$1" in 3.*[!0-9.]* | 3.) false ;; 3.*.*) [ "$minor" -ge "$low" ] && [ "$minor" -lt "$high" ] ;; *) false ;; esac
}

# Prints advice on an interpreter that cannot be used.
advice() {
  for name in python3 "python3.$((high - 1))" "python3.$low"; do
    if [ "$name" != "$PYTHON" ] && allowed "$(version_of "$name")"; then
      echo "\`make setup PYTHON=$name\` takes $(command -v "$name")"
      return
    fi
  done
  echo "install Python 3.$((high - 1)) and name it, \`make setup PYTHON=/path/to/python3.$((high - 1))\`"
}

check_interpreter() {
  path=$(command -v "$PYTHON") || fail "no interpreter $PYTHON, and this needs Python >=3.$low,<3.$high: $(advice)"
  if [ "$path" != "$PYTHON" ]; then path="$PYTHON ($path)"; fi
  version=$(version_of "$PYTHON") || fail "$path does not run, and this needs Python >=3.$low,<3.$high: $(advice)"
  allowed "$version" || fail "$path is Python $version, and this needs >=3.$low,<3.$high: $(advice)"
  "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
    fail "$path has no ensurepip, without which there is no .venv (Debian: apt install python3-venv): $(advice)"
}

# Whether the environment has all packages, and the Python that make's command line names, if it names one.
has_packages() {
  says "$VENV/.packages" "$packages" || return
  present=$(version_of "$VENV/bin/python") || return
  [ "${ORIGIN-}" != "command line" ] || { check_interpreter && [ "$version" = "$present" ]; }
}

build() {
  check_interpreter
  target=$(readlink -f "$VENV") || fail "cannot make $VENV: there is no folder $(dirname "$VENV")"
  case "$target" in */.venv) ;; *)  # a mistake, such as VENV=src
    if [ -e "$target" ] && ! [ -f "$target/pyvenv.cfg" ] && ! rmdir "$target" 2>/dev/null; then
      fail "$VENV is there and is no virtual environment: move it away"
    fi ;;
  esac
  part="$target.part" old="$target.old"
  trap 'rm -rf "$part"' EXIT
  rm -rf "$part" || exit
  echo "setting up $VENV with Python $version: a minute, and the first time 3 GB of packages to fetch"
  try "make an environment with $PYTHON" "$PYTHON" -m venv "$part"
  try "get $UV (no network? PIP_INDEX_URL and PIP_FIND_LINKS say from where)" \
    env PIP_USER=0 "$part/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 "$UV"
  try "make $VENV relocatable" relocatable "$part"
  for name in "$part"/bin/pip*; do  # the installed ones name a Python that will be moved
    printf '#!/bin/sh\nexec "$(dirname -- "$(realpath -- "$0")")/python" -m pip "$@"\n' >"$name"
  done
  try "get what requirements.lock lists (no network? UV_DEFAULT_INDEX and UV_FIND_LINKS say from where)" \
    uv pip install --python "$part/bin/python" --quiet --compile-bytecode --no-deps --require-hashes -r requirements.lock
  echo "$packages" >"$part/.packages" || exit
  rm -rf "$old" || exit
  { [ ! -e "$target" ] || mv "$target" "$old"; } && mv "$part" "$target" || fail "cannot move $part to $target"
  rm -rf "$old"
  present=$version
}

uv() { "${part:-$VENV}/bin/python" -m uv "$@"; }

relocatable() { uv venv --quiet --relocatable --allow-existing --python "$1/bin/python" "$1"; }

# Writes what depends on the place of the environment: its activation scripts, and the folder of the project.
place() {
  part=
  rm -f "$VENV/.placed"
  try "place $VENV" relocatable "$VENV"
  quoted=$(printf %s "$(readlink -f "$VENV")/bin/activate" | sed "s/'/'\\\\''/g")
  {  # in other shells a script cannot find out where it is
    printf '[ -n "${BASH_VERSION-}${ZSH_VERSION-}${KSH_VERSION-}" ] || SCRIPT_PATH='"'%s'\n" "$quoted"
    cat "$VENV/bin/activate"
  } >"$VENV/bin/activate.new" && mv "$VENV/bin/activate.new" "$VENV/bin/activate"
  try "install this project" \
    uv pip install --python "$VENV/bin/python" --quiet --no-deps --no-build-isolation --editable .
  site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  cp src/stn/checkout.py "$site/_stn_checkout.py"
  # 0 in the name: read before the file of the editable install, which always names this folder.
  echo 'import _stn_checkout; _stn_checkout.put_on_path()' >"$site/0_stn_checkout.pth"
  echo "$placed" >"$VENV/.placed"
}

# Tells DVC if there is no git, as in a downloaded ZIP. Otherwise it would use a repository around this folder.
tell_dvc() {
  no_git=$(printf '[core]\n    no_scm = true')
  if [ -e .git ]; then
    if says .dvc/config.local "$no_git"; then rm .dvc/config.local; fi
  elif ! grep -qs no_scm .dvc/config.local; then
    try "tell DVC that there is no git" "$VENV/bin/python" -m dvc config --quiet --local core.no_scm true
  fi
}

is_done() {
  has_packages && says "$VENV/.placed" "$placed" || return
  for extra in $extras; do says "$VENV/.$extra" "$(checksum "requirements-$extra.lock")" || return; done
}

packages=$(checksum requirements.lock setup.sh)
placed=$({ pwd -P; cat pyproject.toml src/stn/checkout.py; } | cksum)
trap 'stop_counter; echo "interrupted; run the same command again" >&2; exit 130' INT
trap 'stop_counter; exit 143' TERM
if ! is_done; then
  exec 9<setup.sh
  if command -v flock >/dev/null && ! flock --nonblock 9; then
    echo "another set-up is under way here: waiting for it"
    flock 9
  fi
  has_packages || build
  says "$VENV/.placed" "$placed" || place
  for extra in $extras; do
    stamp=$(checksum "requirements-$extra.lock")
    says "$VENV/.$extra" "$stamp" && continue
    try "install requirements-$extra.lock" uv pip install --python "$VENV/bin/python" --quiet --no-deps \
      --require-hashes -r "requirements-$extra.lock"
    echo "$stamp" >"$VENV/.$extra"
  done
  echo "environment ready: $VENV, Python $(version_of "$VENV/bin/python"), in $(seconds) s"
fi
tell_dvc
true
