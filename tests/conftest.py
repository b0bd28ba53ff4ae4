"""What the tests share: one thread each, no network, and small data made through the real front doors."""

import contextlib
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

ROOT = Path(__file__).parents[1]
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["PYTHONPATH"] = str(ROOT / "src")  # what the tests start runs the code beside them, whatever is installed
os.environ["STN_HERE"] = "1"  # front doors work in the folders of the tests
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on a CPU, slowly
torch.set_num_threads(1)


def beside(folder: Path) -> dict[str, str]:
    """The environment of a process that runs in `folder`: the code there, if there is some, else that of the tests."""
    source = folder / "src"
    return {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(source)} if source.exists() else {})}


def run(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """A front door as a user types it, without the start of a process: `run("stn.train", "data=digits_r", cwd=...)`."""
    if (cwd / "src").exists():
        return spawn(module, *arguments, cwd=cwd)
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", [module, *arguments]),
        patch.dict(os.environ),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            importlib.import_module(module).main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess([module, *arguments], status, out.getvalue(), err.getvalue())


def spawn(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd,
        env=beside(cwd),
        capture_output=True,
        text=True,
        timeout=240,
    )


def copy_package(folder: Path) -> Path:
    """A copy of what the package is built from, without the trained networks."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("hubconf.py", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, folder)
    return folder


def build_wheel(folder: Path) -> Path:
    """The wheel of such a copy, as `pip wheel .` builds it."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "wheels"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "."], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("wheels/*.whl")
    return wheel


def one_error(result: subprocess.CompletedProcess) -> str:
    """The single line that a refused command leaves on stderr."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory) -> Path:
    """A folder with the embedded digits, fetched and distorted (R and RTS)."""
    folder = tmp_path_factory.mktemp("workplace")
    for command in (["stn.fetch", "data=digits_r"], *(["stn.distort", f"data=digits_{d}"] for d in ("r", "rts"))):
        result = run(*command, cwd=folder)
        assert result.returncode == 0, result.stderr
    return folder


def interruptible(command: list[str], cwd: Path) -> subprocess.Popen:
    """A process whose output is read and that SIGINT ends; a job in the background would inherit "ignored"."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
