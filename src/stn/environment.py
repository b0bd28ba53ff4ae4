"""What a run gets from its machine and its shell: cores, folders to write to, an encoding for its output.

Front doors call `settle` before all else (`stn.front_door.guard` does), because libraries read HOME, TMPDIR and
OMP_NUM_THREADS as they are loaded. What it sets is inherited by the processes that a front door starts.
"""

# Path.is_dir and its like raise PermissionError below a folder that may not be entered.
# ruff: noqa: PTH112, PTH113, PTH117
import codecs
import getpass
import math
import os
import pwd
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from stn.errors import UserError

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
THREADS = "OMP_NUM_THREADS"
THREADS_GIVEN = bool(os.environ.get(THREADS))  # by the user: nothing here has set it yet
ROOT = Path(__file__).parents[2]
HOME = Path("outputs/home")  # what stands in for a home that is missing or cannot be written to
# Where libraries keep what they store: a variable, and the folder in HOME that is meant where it is not set.
CACHES = {
    "XDG_CACHE_HOME": ".cache",  # wandb, matplotlib, torch
    "XDG_DATA_HOME": ".local/share",  # wandb
    "MPLCONFIGDIR": ".config/matplotlib",
    "TRITON_HOME": "",
    "DVC_SITE_CACHE_DIR": "/var/tmp/dvc",
}
# One letter each for what stands in the columns of tables, so that they stay columns.
ASCII = str.maketrans(
    {
        **{"↑": "^", "↓": "v", "≈": "~", "†": "*", "‡": "#", "–": "-", "—": "-", "−": "-", "×": "x", "÷": "/"},
        **{"±": "+/-", "≤": "<=", "≥": ">=", "→": "->", "°": " degrees", "…": "...", "µ": "u", "μ": "u", "σ": "sigma"},
        **{"‘": "'", "’": "'", "“": '"', "”": '"', "─": "-", "━": "-", "│": "|", "┃": "|"},
    }
)


def settle() -> None:
    """Make the environment of this process fit for a run.

    - stdout and stderr never refuse a character: what their encoding lacks is written in ASCII.
    - HOME is a folder, the user has a name, and the folders for temporary files and for caches can be written to: what
      cannot is moved below `outputs/home`.
    - torch and joblib keep no more than `cores` busy.

    Raises UserError if the current folder was removed, or if there is no folder that can be written to.
    """
    codecs.register_error("stn.ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="stn.ascii")
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UserError(f"the current folder was removed: run this in {ROOT}") from None
    _settle_temporary_files(here / HOME)
    _settle_home(here / HOME)
    if cores() < _allowed():  # they see the affinity; torch sees no quota, and joblib none of a cgroup within another
        share_cores(1)
        os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cores()))


def check_folder() -> None:
    """UserError unless the current folder is that of a project, to which the paths of the configs are relative.

    A project's folder is one with a `dvc.yaml`: also a copy's, that of the demo and those of DVC's experiments. With
    STN_HERE=1 any folder will do: data, outputs and reports then belong to that.
    """
    if os.environ.get("STN_HERE", "0") not in ("", "0") or os.path.isfile("dvc.yaml"):
        return
    here = Path.cwd()
    projects = (folder for folder in (*here.parents, ROOT) if os.path.isfile(folder / "dvc.yaml"))
    raise UserError(
        f"{here} is not the project's folder: run this in {next(projects, 'that of your clone')} "
        "(or set STN_HERE=1 to keep data and outputs here)"
    )


def cores() -> int:
    """How many cores this process may keep busy, 1 or more.

    Respects the affinity (taskset, cpusets, Slurm) and the CPU quota of the process's cgroup and of every one above it,
    version 1 or 2 (`docker run --cpus`, a pod's limit, systemd's CPUQuota). A quota of 1.5 cores counts as 2.
    """
    return min([_allowed(), *map(math.ceil, _quotas())])


def share_cores(processes: int) -> None:
    """Have torch use one of so many shares of the cores: here, if it is not loaded yet, and in processes started here.

    The user's OMP_NUM_THREADS goes before.
    """
    if not THREADS_GIVEN:
        os.environ[THREADS] = str(max(1, cores() // processes))


def silence_reducer() -> None:
    """Have torch's C++ code, if it is not loaded yet here, and in processes started here, write of errors alone.

    Where DDP is to look for parameters that a step did not use, it warns when one used all. In runs that explore there
    are steps of both kinds, and there is no switch for that warning alone. The user's TORCH_CPP_LOG_LEVEL goes
    before.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _allowed() -> int:
    """The cores of this process's affinity, or of the machine where there is no such thing."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """The CPU quotas, in cores, of this process's cgroups and of those that they are in."""
    for line in _read(MEMBERSHIP).splitlines():
        _, _, line = line.partition(":")
        controllers, _, path = line.partition(":")
        if not controllers:  # version 2
            mounts = [CGROUPS, CGROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [CGROUPS / controllers, CGROUPS / "cpu"]
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for mount in mounts:  # in a container the path may be the host's, while what is mounted is the container's
            for folder in (inside, *inside.parents):
                yield from _quota(mount / folder)


def _quota(cgroup: Path) -> Iterator[float]:
    """The CPU quota of a cgroup in cores, if it has one."""
    limit = _read(cgroup / "cpu.max").split()
    limit = limit or [_read(cgroup / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(limit) == 2 and all(number.isdigit() and int(number) > 0 for number in limit):  # none is `max`, or -1
        yield int(limit[0]) / int(limit[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """The handler of characters that an encoding lacks, for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return "".join(letter if letter.isascii() else _without_accent(letter) for letter in text), error.end


def _without_accent(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"


def _settle_temporary_files(base: Path) -> None:
    named = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    folders = [folder.absolute() for folder in (*map(Path, (*named, "/tmp", "/var/tmp")), base / "tmp")]
    folder = next((folder for folder in folders if os.path.isdir(folder) and _writable(folder)), folders[-1])
    if not _writable(folder):
        raise UserError(f"no folder for temporary files can be written to: set TMPDIR to one ({folder} cannot be made)")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)  # programs other than Python take it without a look
    tempfile.tempdir = None  # what Python took before


def _settle_home(base: Path) -> None:
    try:
        getpass.getuser()
    except (KeyError, OSError):  # who is not in the list of users, as after `docker run --user 1234`
        os.environ["USER"] = str(os.getuid())
    if not _writable(base):
        base = Path(tempfile.gettempdir()) / f"stn-{os.getuid()}"
    home = os.environ.get("HOME", "")
    if not (os.path.isabs(home) and os.path.isdir(home)):
        home = os.environ["HOME"] = _listed_home() or str(base)
    for name, folder in CACHES.items():
        if not _writable(Path(home, os.environ.get(name) or folder)):
            os.environ[name] = str(base / Path(folder).name)


def _listed_home() -> str | None:
    """This user's home by the list of users, if it is there."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return home if os.path.isdir(home) else None


def _writable(folder: Path) -> bool:
    """Whether files can be written there, or the folder be made first."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
