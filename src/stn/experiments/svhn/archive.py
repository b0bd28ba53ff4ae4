"""The files of SVHN, format 1: which images an archive holds, and what its digitStruct.mat says of them."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stn.config import digest
from stn.data.download import DIGITS
from stn.data.progress import progress, why, writing
from stn.data.reading import BrokenArchive, archive
from stn.errors import UserError

FIELDS = ("left", "top", "width", "height", "label")
AGAIN = "delete it and run `python -m stn.fetch` again"


@dataclass
class Table:
    """What a digitStruct.mat says of n images. Image i has the digits start[i] ... start[i + 1] - 1, in their order.

    names (n,), boxes (digits, 4) float32 as left, top, width, height in pixels, labels (digits,) int64, 10 for a zero.
    """

    names: np.ndarray
    start: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def digits_in(path: Path) -> Table:
    """Read a digitStruct.mat, which is MATLAB v7.3 and so HDF5; a file that is something else is a UserError."""
    import h5py  # loads in a quarter of a second: not for those who only train

    try:
        with h5py.File(path) as file, progress(str(path), len(file["digitStruct/name"]), unit="images") as tell:
            names, start, values = _read(file, tell)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no {DIGITS} of SVHN ({why(error)}); {AGAIN}") from None
    return Table(names, start, values[:, :4].astype(np.float32), values[:, 4].astype(np.int64))


def _read(file, tell: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names (n,), start (n + 1,), values (digits, 5) float64 in the order of `FIELDS`.

    The group of an image with one digit holds the values themselves, that of an image with several holds references to
    them. Read through the low-level interface of h5py, for speed: `extra` has 2.6 million references.
    """
    from h5py import h5d, h5r, h5s, h5t, ref_dtype

    def read(dataset, dtype: type, kind=None) -> np.ndarray:
        values = np.empty(dataset.shape, dtype)
        dataset.read(h5s.ALL, h5s.ALL, values, kind)
        return values.ravel()

    def column(part) -> list[float]:
        if part.get_type().get_class() != h5t.REFERENCE:
            return read(part, np.float64, h5t.NATIVE_DOUBLE).tolist()
        scalars = [h5r.dereference(reference, file.id) for reference in read(part, ref_dtype)]
        return [read(scalar, np.float64, h5t.NATIVE_DOUBLE).item() for scalar in scalars]

    fields = [field.encode() for field in FIELDS]
    groups, titles = file["digitStruct/bbox"][()].ravel(), file["digitStruct/name"][()].ravel()
    names, start, values = [], [0], []
    for i, (group, title) in enumerate(zip(groups, titles, strict=True)):
        characters = read(h5r.dereference(title, file.id), np.uint16, h5t.NATIVE_UINT16)
        names.append(characters.astype(np.uint8).tobytes().decode())
        group = h5r.dereference(group, file.id)
        values.append(np.stack([column(h5d.open(group, field)) for field in fields], 1))
        start.append(start[-1] + len(values[-1]))
        if i % 1000 == 0:
            tell(i)
    return np.array(names), np.array(start), np.concatenate(values)


def table_of(part: Path, scratch: Path) -> tuple[Table, set[str]]:
    """The table of an archive or its folder, and the names of its images. Kept in `scratch`: read once."""
    packed, source = part.is_file(), part if part.is_file() else part / DIGITS
    if not source.is_file():
        raise UserError(f"{part} holds no {DIGITS}; {AGAIN}")
    kept = scratch / f"{digest(str(part.resolve()))}_digits.npz"
    stamp = f"{source.stat().st_size} {source.stat().st_mtime_ns}"
    listed = set() if packed else {file.name for file in part.glob("*.png")}
    try:
        with np.load(kept) as known:
            if known["stamp"] == stamp:
                columns = (known[name] for name in ("names", "start", "boxes", "labels"))
                return Table(*columns), set(map(str, known["images"])) if packed else listed
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there yet, or cut short by an interrupt
    with writing(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        table, images = _unpacked(part, scratch) if packed else (digits_in(source), listed)
        np.savez(kept, stamp=stamp, images=sorted(images), **vars(table))
    return table, images


def _unpacked(part: Path, scratch: Path) -> tuple[Table, set[str]]:
    """The table in an archive, and the names of its images."""
    names, copy = set(), scratch / f"{digest(str(part.resolve()))}_{DIGITS}"
    with whole(part), progress(f"looking into {part}", part.stat().st_size) as tell, archive(part, tell) as files:
        for name, stream in files:
            names.add(name)
            if name == DIGITS:
                with copy.open("wb") as target:
                    shutil.copyfileobj(stream, target)
    if DIGITS not in names:
        raise UserError(f"{part} holds no {DIGITS}; {AGAIN}")
    table = digits_in(copy)
    copy.unlink()
    return table, {name for name in names if name.endswith(".png")}


@contextmanager
def whole(part: Path) -> Iterator[None]:
    """An archive that turns out broken within the block becomes a UserError."""
    try:
        yield
    except BrokenArchive as error:
        raise UserError(f"{part} {error}; {AGAIN}") from None
