"""Finished runs, which lie below `outputs/runs`: where they are, and what they measured."""

from pathlib import Path

from stn.errors import UserError
from stn.files import DAMAGED
from stn.training.record import read_result

CHECKPOINT = "last.ckpt"


def find_runs(outputs: Path, budget: str, name: str, seed: int | None = None) -> list[Path]:
    """The folders of finished runs that still have their checkpoint, the newest first.

    `budget` and `name`, the key of a cell, may be patterns such as "*"; without a `seed`, runs of any seed.
    """
    pattern = f"runs/{budget}/{name}/*-s{'*' if seed is None else seed}/result.json"
    results = [path for path in outputs.glob(pattern) if (path.parent / CHECKPOINT).is_file()]
    return [path.parent for path in sorted(results, key=lambda path: path.stat().st_mtime, reverse=True)]


def read_run(folder: Path) -> tuple[dict, dict]:
    """The result and the arrays of a finished run; UserError if they are damaged."""
    try:
        finished = read_result(folder)
    except DAMAGED:
        finished = None
    if finished is None:
        raise UserError(f"{folder} has a damaged result")
    return finished
