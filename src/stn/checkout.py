"""Makes Python run the copy of the project that contains the current folder.

An editable install names one folder for good. Then a copy of that folder, a second clone that uses the same
environment, or the folder in which `dvc exp run --queue` trains would run another folder's code. So `setup.sh` installs
this file a second time, as `_stn_checkout`, and makes the environment call `put_on_path` whenever its Python starts.
"""

# Importing pathlib would make every start of Python take half as long again.
# ruff: noqa: PTH109, PTH113, PTH118, PTH120, PTH121
import os
import sys


def find_source(folder: str) -> str | None:
    """The folder `src` of the innermost project that contains `folder`; None outside any project."""
    while not os.path.isfile(os.path.join(folder, "src", "stn", "train.py")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return os.path.join(folder, "src")


def put_on_path() -> None:
    """Make `import stn` load the current folder's project, or else the project that contains the environment.

    PYTHONPATH takes precedence. The environment's `bin` comes first on PATH, so that `.venv/bin/dvc` starts stages with
    its own Python even if the environment is not activated. An interrupt of a command of the project is one line.
    """
    sources = (source for folder in (_current_folder(), sys.prefix) if (source := find_source(folder)))
    sys.path.extend(dict.fromkeys(sources))
    if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stn."):
        sys.excepthook = report
    scripts, path = os.path.join(sys.prefix, "bin"), os.environ.get("PATH", os.defpath)
    if path.partition(os.pathsep)[0] != scripts:
        os.environ["PATH"] = f"{scripts}{os.pathsep}{path}"


def report(kind, error, trace) -> None:
    """Say in one line that a command was interrupted while its imports ran; later `stn.front_door` says it."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)
    elif "STN_FRONT_DOOR" not in os.environ:  # of the command that started this one, and says it
        print("interrupted; run the same command again", file=sys.stderr)


def foreign_source() -> str | None:
    """The folder `src` of the current folder's project, if this code belongs to another one; else None."""
    source = find_source(_current_folder())
    if source is None or os.path.samefile(os.path.join(source, "stn"), os.path.dirname(__file__)):
        return None
    return source


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # the folder was removed
        return os.sep
