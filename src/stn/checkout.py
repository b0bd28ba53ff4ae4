"""Which copy of the project runs: that of the current folder.

An editable install names one folder for good. A copy of that folder, a second clone whose environment is not the one in
use, or the folder in which `dvc exp run --queue` trains would then run code that is not theirs. So `setup.sh` installs
this file a second time, as `_stn_checkout`, and has the environment call `put_on_path` whenever its Python starts.
"""

# pathlib would make each start of an interpreter half as long again.
# ruff: noqa: PTH109, PTH113, PTH118, PTH120, PTH121
import os
import sys


def find_source(folder: str) -> str | None:
    """The folder `src` of the project that `folder` is in, the innermost if there are several; None outside of any."""
    while not os.path.isfile(os.path.join(folder, "src", "stn", "train.py")):
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
    return os.path.join(folder, "src")


def put_on_path() -> None:
    """Make `import stn` load the code of the current folder's project, or else of the one that the environment is in.

    PYTHONPATH goes before. Commands are also looked up in this environment first, so that `.venv/bin/dvc` starts stages
    with the Python that it runs on, whether the environment is activated or not.
    """
    sources = (source for folder in (_current_folder(), sys.prefix) if (source := find_source(folder)))
    sys.path.extend(dict.fromkeys(sources))
    scripts, path = os.path.join(sys.prefix, "bin"), os.environ.get("PATH", os.defpath)
    if path.partition(os.pathsep)[0] != scripts:
        os.environ["PATH"] = f"{scripts}{os.pathsep}{path}"


def foreign_source() -> str | None:
    """The folder `src` of the current folder's project, if this code is not of it; None if it is, or outside of any."""
    source = find_source(_current_folder())
    if source is None or os.path.samefile(os.path.join(source, "stn"), os.path.dirname(__file__)):
        return None
    return source


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return os.sep
