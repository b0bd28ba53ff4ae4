"""Stored sets: images and parameters that are drawn, cropped or resized once, then read by every run.

A stored set is a folder with the arrays of its splits and a `sets.json`, which holds the recipe of the set and facts on
each split, such as checksums. The folder appears only when it is complete.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stn.data.download import put_whole
from stn.data.progress import why
from stn.errors import UserError
from stn.files import DAMAGED

Stored = TypeVar("Stored")


@contextmanager
def writing_sets(folder: Path, scratch: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder for the arrays, below `scratch`. After the block it replaces `folder`.

    `about` becomes `sets.json`. The block may still fill in its `sets`.
    """
    with put_whole(folder, scratch) as work:
        yield work
        (work / "sets.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_set(
    folder: Path,
    split: str,
    recipe: Mapping[str, Any],
    command: str,
    load: Callable[[dict[str, Any], dict[str, Any]], Stored],
    is_whole: Callable[[Stored, dict[str, Any]], bool],
) -> Stored:
    """Read a split of the stored set in a folder.

    Args:
        recipe: the values that the config requires. A set with other values is refused.
        command: makes the set; for error messages.
        load: reads the split, given the contents of `sets.json` and the split's entry in it.
        is_whole: whether the split is the one that was written, by its size or a checksum.

    Raises:
        UserError: the set is missing, damaged, or of another recipe.
    """
    remedy = f"run `{command}`"
    try:
        about = json.loads((folder / "sets.json").read_text(encoding="utf-8"))
        facts, stored_recipe = about["sets"][split], about.get("recipe", about)
        conflicts = [
            f"{key}={stored_recipe.get(key)} (not {value})"
            for key, value in recipe.items()
            if stored_recipe.get(key) != value
        ]
        if conflicts:
            raise UserError(
                f"{folder} was stored with {', '.join(conflicts)}: to replace it, {remedy} with the settings of this "
                "command; to keep it, add data.stored=..., another folder, to both commands"
            )
        stored = load(about, facts)
        complete = is_whole(stored, facts)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {remedy}") from None
    except (*DAMAGED, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged ({why(error)}): {remedy}") from None
    if not complete:
        raise UserError(f"{folder}: its {split} set is not what was written there: {remedy}")
    return stored


def sha256(*arrays: np.ndarray) -> str:
    """The SHA-256 of the concatenated bytes of arrays, in hexadecimal."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()


def evenly(count: int, n: int) -> np.ndarray:
    """Up to `count` of the indices 0 ... n - 1, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, n - 1, min(count, n)).round().astype(int))
