"""The files of SVHN, format 1: the images of an archive, and their labels and boxes in digitStruct.mat.

Photographs without boxes have their labels in a labels.json instead.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stn.data.progress import progress, why, writing
from stn.data.reading import AGAIN, archive, whole
from stn.errors import UserError
from stn.files import DAMAGED, digest

DIGITS = "digitStruct.mat"  # the labels and boxes in each archive of SVHN
LABELS = "labels.json"  # the labels of photographs of house numbers, without boxes
FIELDS = ("left", "top", "width", "height", "label")


@dataclass
class Table:
    """The contents of a digitStruct.mat of n images. Image i has the digits start[i] ... start[i + 1] - 1, in order.

    names (n,), boxes (digits, 4) float32 as left, top, width, height in pixels, labels (digits,) int64, 10 for a zero.
    If boxes are unknown, each digit's box is the whole image, with infinite width and height.
    """

    names: np.ndarray
    start: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def digits_in(path: Path) -> Table:
    """Read a digitStruct.mat, a MATLAB v7.3 file, which is HDF5. Raises UserError for any other file."""
    import h5py  # imported here because training does not need it, and it takes a quarter of a second

    try:
        with h5py.File(path) as file, progress(str(path), len(file["digitStruct/name"]), unit="images") as tell:
            names, start, values = _read(file, tell)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a {DIGITS} of SVHN ({why(error)}); {AGAIN}") from None
    return Table(names, start, values[:, :4].astype(np.float32), values[:, 4].astype(np.int64))


def _read(file, tell: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns names (n,), start (n + 1,), values (digits, 5) float64 in the order of `FIELDS`.

    The group of an image with one digit holds the values, that of an image with several digits holds references to
    them. The low-level interface of h5py is used for speed: `extra` has 2.6 million references.
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


def labels_in(text: bytes, place: str, images: Iterable[str]) -> Table:
    """The table of the images in the folder of a labels.json: {"000000.png": {"number": "159"}, ...}.

    `place` is its path. Raises UserError: the file has another form, a number does not have 1 to 5 digits, or an image
    or a label is missing.
    """
    try:
        entries = json.loads(text, object_pairs_hook=_without_twins)
        if not isinstance(entries, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise UserError(f"{place} is not a {LABELS} of photographs ({why(error)}); {AGAIN}") from None
    numbers: dict[str, str] = {}
    for name, entry in entries.items():
        number = entry.get("number") if isinstance(entry, dict) else None
        if not isinstance(number, str) or not re.fullmatch("[0-9]{1,5}", number):
            raise UserError(
                f"{place} says {json.dumps(entry)[:80]} of {name}, not a number of 1 to 5 digits such as "
                '{"number": "159"}: correct it, or delete the entry and the photograph'
            )
        numbers[name] = number
    images = set(images)
    for unmatched, message in (
        (images - numbers.keys(), "has no label for {}: add its number, or delete the photograph"),
        (numbers.keys() - images, "has a label for {}, which is not there: delete the entry, or add the photograph"),
    ):
        if unmatched:
            first, *further = sorted(unmatched)
            raise UserError(f"{place} {message.format(f'{first} and {len(further)} more' if further else first)}")
    labels = [int(digit) or 10 for number in numbers.values() for digit in number]
    boxes = np.tile(np.array([0, 0, np.inf, np.inf], np.float32), (len(labels), 1))
    return Table(
        np.array(list(numbers)), np.cumsum([0, *map(len, numbers.values())]), boxes, np.array(labels, np.int64)
    )


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; ValueError if a key occurs twice."""
    names = dict(pairs)
    if len(names) < len(pairs):
        twin = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"{twin} appears twice")
    return names


def table_of(part: Path, scratch: Path) -> tuple[Table, set[str]]:
    """The table of an archive or its folder, and the names of its images. Tables with boxes are cached in `scratch`."""
    packed, source = part.is_file(), part if part.is_file() else part / DIGITS
    listed = set() if packed else {file.name for file in part.glob("*.png")}
    if not source.is_file():
        if not (part / LABELS).is_file():
            raise UserError(f"{part} holds no {DIGITS} and no {LABELS}; {AGAIN}")
        try:
            text = (part / LABELS).read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {part / LABELS}: {why(error)}; check its permissions") from None
        return labels_in(text, str(part / LABELS), listed), listed
    cache = scratch / f"{digest(str(part.resolve()))}_digits.npz"
    stamp = f"{source.stat().st_size} {source.stat().st_mtime_ns}"
    try:
        with np.load(cache) as cached:
            if cached["stamp"] == stamp:
                columns = (cached[name] for name in ("names", "start", "boxes", "labels"))
                return Table(*columns), set(map(str, cached["images"])) if packed else listed
    except DAMAGED:
        pass  # no cache yet, or one truncated by an interrupt
    with writing(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        table, images = _unpacked(part, scratch) if packed else (digits_in(source), listed)
        np.savez(cache, stamp=stamp, images=sorted(images), **vars(table))
    return table, images


def _unpacked(part: Path, scratch: Path) -> tuple[Table, set[str]]:
    """The table of an archive, and the names of its images."""
    names, labels, copy = set(), b"", scratch / f"{digest(str(part.resolve()))}_{DIGITS}"
    with whole(part), progress(f"looking into {part}", part.stat().st_size) as tell, archive(part, tell) as files:
        for name, stream in files:
            names.add(name)
            if name == DIGITS:
                with copy.open("wb") as target:
                    shutil.copyfileobj(stream, target)
            elif name == LABELS:
                labels = stream.read()
    images = {name for name in names if name.endswith(".png")}
    if DIGITS not in names:
        if LABELS not in names:
            raise UserError(f"{part} holds no {DIGITS} and no {LABELS}; {AGAIN}")
        return labels_in(labels, f"{part}/{LABELS}", images), images
    table = digits_in(copy)
    copy.unlink()
    return table, images
