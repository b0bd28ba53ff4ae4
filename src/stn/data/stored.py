"""Stored sets: what is drawn, cropped or resized once, and the one way to write and to read it.

A stored set is a folder with `sets.json`, which says by which recipe its splits were made, and what each of them holds,
and the arrays of the splits beside it. It appears whole or not at all.
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stn.data.download import put_whole
from stn.data.progress import why
from stn.errors import UserError

Stored = TypeVar("Stored")


@contextmanager
def writing_sets(folder: Path, scratch: Path, about: dict[str, Any]) -> Iterator[Path]:
    """Yields an empty folder for the arrays, below `scratch`; then it takes the place of `folder`, with `about` in it.

    `about` is what `sets.json` will say; its `sets` are filled in meanwhile.
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
    """A split of the stored set in a folder.

    Args:
        recipe: how the config would have it made. A set of another recipe is refused.
        command: makes the set; errors name it.
        load: reads the split, given what `sets.json` says of all and of this split.
        is_whole: whether that is what was written there, by its size or a checksum.

    Raises:
        UserError: the set is missing, damaged, or of another recipe.
    """
    mend = f"run `{command}`"
    try:
        about = json.loads((folder / "sets.json").read_text(encoding="utf-8"))
        facts, origin = about["sets"][split], about.get("recipe", about)
        conflicts = [
            f"{key}={origin.get(key)} (not {value})" for key, value in recipe.items() if origin.get(key) != value
        ]
        if conflicts:
            raise UserError(f"{folder} was stored with {', '.join(conflicts)}: {mend}, or set data.stored elsewhere")
        stored = load(about, facts)
        whole = is_whole(stored, facts)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {mend}") from None
    except (KeyError, TypeError, AttributeError, ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder} is damaged ({why(error)}): {mend}") from None
    if not whole:
        raise UserError(f"{folder}: its {split} set is not what was written there: {mend}")
    return stored


def sha256(*arrays: np.ndarray) -> str:
    """The checksum of the bytes of arrays, one after the other."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).data)
    return hashed.hexdigest()
