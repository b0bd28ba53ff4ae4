"""Prepares the environment of a run: cores, writable folders, the encoding of its output.

`stn.front_door.guard` calls `settle` first, because libraries read HOME, TMPDIR and OMP_NUM_THREADS when they are
imported. Child processes inherit its settings.
"""

# Path.is_dir and similar methods raise PermissionError below a folder that may not be entered.
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
THREADS_GIVEN = bool(os.environ.get(THREADS))  # by the user, since no code has set it yet
SHARED = "STN_SIDE_BY_SIDE"  # set for processes that train side by side, and so share a terminal
ROOT = Path(__file__).parents[2]
HOME = Path("outputs/home")  # replaces a home that is missing or not writable
# The variables that name the cache folders of libraries, and the default of each, absolute or relative to HOME.
CACHES = {
    "XDG_CACHE_HOME": ".cache",  # wandb, matplotlib, torch
    "XDG_DATA_HOME": ".local/share",  # wandb
    "MPLCONFIGDIR": ".config/matplotlib",
    "TRITON_HOME": "",
    "DVC_SITE_CACHE_DIR": "/var/tmp/dvc",
}
# Marks in the columns of tables become one letter each, so that the columns stay aligned.
ASCII = str.maketrans(
    {
        **{"↑": "^", "↓": "v", "≈": "~", "†": "*", "‡": "#", "–": "-", "—": "-", "−": "-", "×": "x", "÷": "/"},
        **{"±": "+/-", "≤": "<=", "≥": ">=", "→": "->", "°": " degrees", "…": "...", "µ": "u", "μ": "u", "σ": "sigma"},
        **{"‘": "'", "’": "'", "“": '"', "”": '"', "─": "-", "━": "-", "│": "|", "┃": "|"},
    }
)


def settle() -> None:
    """Make the environment of this process fit for a run.

    - Characters that the encoding of stdout or stderr lacks are written in ASCII.
    - HOME is a folder, and the user has a name.
    - The folders for temporary files and caches are writable: others are replaced by folders below `outputs/home`.
    - torch and joblib use no more than `cores()`.

    Raises UserError if the current folder was removed, or if no folder is writable.
    """
    codecs.register_error("stn.ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="stn.ascii")
    try:
        current = Path.cwd()
    except FileNotFoundError:
        raise UserError(f"the current folder was removed: run this in {ROOT}") from None
    _settle_temporary_files(current / HOME)
    _settle_home(current / HOME)
    if cores() < _allowed():  # both see the affinity, but torch sees no quota, and joblib none of nested cgroups
        share_cores(1)
        os.environ.setdefault("LOKY_MAX_CPU_COUNT", str(cores()))


def check_folder() -> None:
    """UserError unless the current folder is a project's, because paths in configs are relative to it.

    A project's folder has a `dvc.yaml`, which copies, the demo and DVC's experiments have too. With STN_HERE=1 any
    folder will do; data, outputs and reports are then kept there.
    """
    if os.environ.get("STN_HERE", "0") not in ("", "0") or os.path.isfile("dvc.yaml"):
        return
    current = Path.cwd()
    projects = (folder for folder in (*current.parents, ROOT) if os.path.isfile(folder / "dvc.yaml"))
    raise UserError(
        f"{current} is not the project's folder: run this in {next(projects, 'that of your clone')} "
        "(or set STN_HERE=1 to keep data and outputs here)"
    )


def cores() -> int:
    """How many cores this process may use, at least 1.

    Respects the affinity (taskset, cpusets, Slurm) and the CPU quotas of the process's cgroup and its ancestors,
    version 1 or 2 (`docker run --cpus`, a pod's limit, systemd's CPUQuota). A quota of 1.5 cores counts as 2.
    """
    return min([_allowed(), *map(math.ceil, _quotas())])


def share_cores(processes: int) -> None:
    """Let torch use the cores divided by `processes`: in child processes, and here if torch is not loaded yet.

    The user's OMP_NUM_THREADS takes precedence. The processes know that they share the terminal too.
    """
    os.environ[SHARED] = "1"
    if not THREADS_GIVEN:
        os.environ[THREADS] = str(max(1, cores() // processes))


def silence_reducer() -> None:
    """Let torch's C++ code log errors only: in child processes, and here if torch is not loaded yet.

    When DDP looks for unused parameters, it warns after a step that used all of them. Exploring runs have steps of both
    kinds, and no switch silences that warning alone. The user's TORCH_CPP_LOG_LEVEL takes precedence.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _allowed() -> int:
    """The number of cores in this process's affinity, or of the machine if the system has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas() -> Iterator[float]:
    """The CPU quotas, in cores, of this process's cgroups and their ancestors."""
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
        for mount in mounts:  # in a container the path may be the host's, but the mount is the container's
            for folder in (inside, *inside.parents):
                yield from _quota(mount / folder)


def _quota(cgroup: Path) -> Iterator[float]:
    """The CPU quota of a cgroup in cores, if it has one."""
    limit = _read(cgroup / "cpu.max").split()
    limit = limit or [_read(cgroup / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(limit) == 2 and all(number.isdigit() and int(number) > 0 for number in limit):  # `max` and -1 mean no quota
        yield int(limit[0]) / int(limit[1])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """A handler for `codecs.register_error` that writes characters that the encoding lacks in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return "".join(letter if letter.isascii() else _without_accent(letter) for letter in text), error.end


def _without_accent(letter: str) -> str:
    return unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"


def _settle_temporary_files(base: Path) -> None:
    settings = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    folders = [folder.absolute() for folder in (*map(Path, (*settings, "/tmp", "/var/tmp")), base / "tmp")]
    folder = next((folder for folder in folders if os.path.isdir(folder) and _writable(folder)), folders[-1])
    if not _writable(folder):
        raise UserError(f"no folder for temporary files can be written to: set TMPDIR to one ({folder} cannot be made)")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)  # other programs use it unchecked
    tempfile.tempdir = None  # forgets the folder that Python chose before


def _settle_home(base: Path) -> None:
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the user is not in passwd, as after `docker run --user 1234`
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
    """This user's home according to passwd, if it exists."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
    return home if os.path.isdir(home) else None


def _writable(folder: Path) -> bool:
    """Whether the folder is writable, or can be created."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
