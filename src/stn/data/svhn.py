"""The files of SVHN, format 1: which images an archive holds, and what its digitStruct.mat says of them."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stn.config import digest
from stn.data.download import DIGITS, BrokenArchive, archive, progress, why, writing
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
            names, start, values = _read(file, np.asarray(np.memmap(path, mode="r")), tell)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no {DIGITS} of SVHN ({why(error)}); {AGAIN}") from None
    return Table(names, start, values[:, :4].astype(np.float32), values[:, 4].astype(np.int64))


def _read(file, raw: np.ndarray, tell: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names (n,), start (n + 1,), values (digits, 5) float64.

    What an image with one digit says stands in its group; with several, references stand there, which are followed
    afterwards, all at once. Through the low-level interface of h5py, for speed.
    """
    from h5py import h5d, h5r, h5s, h5t

    def read(dataset, target: np.ndarray, kind) -> np.ndarray:
        dataset.read(h5s.ALL, h5s.ALL, target, kind)
        return target.ravel()

    fields = [field.encode() for field in FIELDS]
    groups, titles = file["digitStruct/bbox"][()].ravel(), file["digitStruct/name"][()].ravel()
    names, counts, by_reference, words = [], [], [], []
    for i, (group, title) in enumerate(zip(groups, titles, strict=True)):
        characters = h5r.dereference(title, file.id)
        text = read(characters, np.empty(characters.shape, np.uint16), h5t.NATIVE_UINT16)
        names.append(text.astype(np.uint8).tobytes().decode())
        group = h5r.dereference(group, file.id)
        parts = [h5d.open(group, field) for field in fields]
        shape = parts[0].shape
        refers = parts[0].get_type().get_class() == h5t.REFERENCE
        kind, number = (h5t.STD_REF_OBJ, np.uint64) if refers else (h5t.NATIVE_DOUBLE, np.float64)
        words.append(np.stack([read(part, np.empty(shape, number), kind).view(np.uint64) for part in parts], 1))
        counts.append(len(words[-1]))
        by_reference.append(refers)
        if i % 1000 == 0:
            tell(i)
    words, by_reference = np.concatenate(words), np.repeat(by_reference, counts)
    values = words.view(np.float64).copy()
    values[by_reference], known = _scalars(raw, file.userblock_size, words[by_reference])
    start = np.concatenate([[0], np.cumsum(counts)])
    for digit, column in zip(*np.nonzero(~known), strict=True):  # by the slow way
        digit = np.flatnonzero(by_reference)[digit]
        i = np.searchsorted(start, digit, "right") - 1
        values[digit, column] = file[file[groups[i]][FIELDS[column]][()].ravel()[digit - start[i]]][()].item()
    return np.array(names), start, values


def _scalars(raw: np.ndarray, base: int, address: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The doubles of the data sets at `address`, any shape, in the file's bytes `raw`; and which of them were read.

    To open one through HDF5 takes 40 microseconds, and `extra` refers to 2.6 million. But they were all written alike:
    one header is parsed, and where others say the same, the value is taken from where they say that it is.
    """
    flat = address.ravel().astype(np.int64) + base
    values, known = np.zeros(len(flat)), np.zeros(len(flat), bool)

    def bytes_at(place: np.ndarray) -> np.ndarray:
        return raw[np.clip(place, 0, len(raw) - 1)]

    for _ in range(8):  # kinds of headers; files hold one or two
        left = np.flatnonzero(~known)
        if not len(left) or (header := _header(raw, flat[left[0]])) is None:
            break
        told, place = header
        expected = bytes_at(flat[left[0]] + told)
        for some in np.array_split(left, -(-len(left) // 20_000)):
            some = some[(bytes_at(flat[some, None] + told) == expected).all(1)]
            data = bytes_at(flat[some, None] + place + np.arange(8)).view("<i8")[:, 0] + base
            within = (data >= base) & (data + 8 <= len(raw))  # a set never written to has an address of ones
            some, data = some[within], data[within]
            values[some], known[some] = bytes_at(data[:, None] + np.arange(8)).view("<f8")[:, 0], True
        if not known[left[0]]:
            break
    return values.reshape(address.shape), known.reshape(address.shape)


DOUBLE = bytes.fromhex("11203f000800000000004000340b0034ff030000")  # HDF5's message for a little-endian float64


def _header(raw: np.ndarray, start: int) -> tuple[np.ndarray, int] | None:
    """Of an object header (version 1) of one contiguous double: which of its bytes say so, and where the address is.

    Left out is what differs between the like of it: reference count, times, attributes. None for anything else.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(raw[start + at : start + at + size].tobytes(), "little")

    told, place, double = [*range(4), *range(8, 12)], None, False
    at, end = 16, 16 + min(number(8, 4), 1024)  # headers of one number are far shorter
    while number(0, 1) == 1 and at + 8 <= end:
        kind, size, body = number(at, 2), number(at + 2, 2), at + 8
        told += range(at, body)
        if kind == 3:
            double = raw[start + body : start + body + len(DOUBLE)].tobytes() == DOUBLE
            told += range(body, body + len(DOUBLE))
        elif kind == 8 and number(body, 2) == 0x0103 and number(body + 10, 8) == 8:  # version 3, contiguous, 8 bytes
            place = body + 2
            told += [body, body + 1, *range(body + 10, body + 18)]
        at = body + size
    return (np.array(told), place) if double and place else None


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
