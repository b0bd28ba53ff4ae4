"""What the tests share: one thread each, no network, and small data made through the real front doors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
os.environ.setdefault("WANDB_MODE", "offline")
torch.set_num_threads(1)


def run(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """A front door as a user types it: `run("stn.train", "data=digits_r", cwd=folder)`."""
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=240,
    )


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
