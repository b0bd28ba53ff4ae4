"""The time before anything happens: the help of `stn.train`, and `dvc repro` with nothing to do."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.timing import OURS, Bench, Work


def measure(bench: Bench) -> Iterator[dict]:
    """Seconds of each command, in a process of its own, with warm file caches."""
    yield _timed(bench, "python -m stn.train --help", "stn.train", "--help")
    if importlib.util.find_spec("dvc") is None:
        bench.skip("dvc repro table1: dvc is not installed here")
        return
    dry = _run("dvc", "repro", "--dry", "table1")
    if dry.returncode or "Running stage" in dry.stdout:
        bench.skip("dvc repro table1, with nothing to do: here there is something, `make table` first")
        return
    yield _timed(bench, "dvc repro table1, nothing to do", "dvc", "repro", "table1")


def _timed(bench: Bench, title: str, module: str, *arguments: str) -> dict:
    def call() -> None:
        result = _run(module, *arguments)
        if result.returncode:
            raise RuntimeError(f"{title}: {result.stderr.strip()[-500:]}")

    return bench.compare(title, "s", {OURS: Work(call)})


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, errors="replace")
