"""House numbers (SVHN, format 1): their boxes and labels, the crops that are made once, and the batches of a run.

A number is cropped as Goodfellow et al. (2013) did: the box round all its digits, grown by `expand`, becomes the whole
canvas. With `place` it becomes a part of it at a random place and scale. Frame of every stored box: [-1, 1] spans the
canvas from outer edge to outer edge, as in `stn.geometry.transforms`.
"""

import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageFilter
from torch import Tensor, nn

from stn.config import digest
from stn.data.download import DIGITS, BrokenArchive, archive, move_in, progress, why, writing
from stn.errors import UserError
from stn.geometry.sampling import bilinear
from stn.geometry.transforms import pixel_centres

POSITIONS, NONE = 5, 10  # digits at most, and the class of a position without one
KINDS = ("images", "labels", "boxes")  # of a stored set
FIELDS = ("left", "top", "width", "height", "label")
CHUNK = 500  # images at a time where all of a set pass
AGAIN = "delete it and run `python -m stn.fetch` again"
BATCH = 100  # images that a worker crops at a time
MANY = 3000  # images from which on it pays to start several
SPOT = 4096  # images of a set, evenly spaced, that are held against what was stored when a run starts

# Why a number is left out
LONG, LABEL, ZERO = "more than five digits", "a label that is not 1 to 10", "a box of size zero"
OUTSIDE, UNREADABLE = "its box outside the image", "unreadable"
TWICE = f"named twice in {DIGITS}"
NO_IMAGE, NO_ENTRY = "without an image", f"without an entry in {DIGITS}"


# What the files say


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
    with _whole(part), progress(f"looking into {part}", part.stat().st_size) as tell, archive(part, tell) as files:
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
def _whole(part: Path) -> Iterator[None]:
    try:
        yield
    except BrokenArchive as error:
        raise UserError(f"{part} {error}; {AGAIN}") from None


# Crops


@dataclass
class Number:
    """A number to be cropped: its box (4,) as x0, y0, x1, y1 in pixels, its labels (5,), and where the crop goes."""

    name: str
    box: np.ndarray
    labels: np.ndarray
    split: str = ""
    row: int = 0


def recipe(data: DictConfig) -> dict:
    """The part of a data config that decides what the crops are."""
    keys = ("source", "extra", "canvas", "expand", "place", "validation", "seed")
    whole = OmegaConf.to_container(data, enum_to_str=True)
    return {key: whole[key] for key in keys}


def store(data: DictConfig, scratch: Path, workers: int | None = None) -> dict:
    """Crop every number, and write the sets `train`, `validation` and `test`; returns what `sets.json` says of them.

    {split}_images.npy (n, canvas, canvas, 3) uint8, _labels.npy (n, 5) uint8, 10 for none, _boxes.npy (n, 4) float32
    (x0, y0, x1, y1 of the number in the canvas), _names.npy. The order of train and validation is a permutation that
    depends on the seed alone, and so do all the bytes: not on the machine, the number of workers or interruptions.
    Written to `scratch` and moved to `data.stored` when whole.
    """
    if data.canvas not in (64, 128):
        raise UserError(f"data.canvas={data.canvas}: house numbers are cropped to 64 or 128 pixels")
    parts = {name: _part(data, name) for name in ("train", *(["extra"] if data.extra else []), "test")}
    numbers, left_out = {}, {}
    for name, part in parts.items():
        numbers[name], left_out[name] = _candidates(name, *table_of(part, scratch))
    pool = [number for name in parts if name != "test" for number in numbers[name]]
    if not 0 < data.validation < len(pool):
        raise UserError(f"data.validation={data.validation} leaves nothing of {len(pool)} numbers to train on")
    # The legacy generator's streams are frozen for good, so the split is too.
    pool = [pool[i] for i in np.random.RandomState(data.seed).permutation(len(pool))]
    sets = {"train": pool[data.validation :], "validation": pool[: data.validation], "test": numbers["test"]}
    target, work = Path(data.stored), scratch / f"{Path(data.stored).name}.part"
    with writing(target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        needed, room = sum(map(len, sets.values())) * data.canvas**2 * 3, shutil.disk_usage(work).free
        if needed > room:  # else the kernel ends a process that writes to a mapped file on a full disk, without a word
            raise UserError(f"the crops need {needed / 1e9:.1f} GB, {work.parent} has {room / 1e9:.1f} GB: make room")
        boxes = {}
        for split, members in sets.items():
            shape = (len(members), data.canvas, data.canvas, 3)
            np.lib.format.open_memmap(work / f"{split}_images.npy", "w+", np.uint8, shape)
            boxes[split] = np.full((len(members), 4), np.nan, np.float32)
            for row, number in enumerate(members):
                number.split, number.row = split, row
        workers = workers or (os.cpu_count() if sum(map(len, sets.values())) > MANY else 1)
        with _crew(workers) as crew:
            for name, part in parts.items():
                wanted = {number.name.partition("/")[2]: number for number in numbers[name]}
                for number, box in _cropped(part, wanted, recipe(data), work, crew, workers):
                    if isinstance(box, str):
                        left_out[name].setdefault(box, []).append(number.name)
                    else:
                        boxes[number.split][number.row] = box
        about = {"recipe": recipe(data), "part": data.part, "sets": {}, "left_out": {}}
        for split, members in sets.items():
            kept = ~np.isnan(boxes[split][:, 0])
            members = [member for member, stays in zip(members, kept, strict=True) if stays]
            if not members:
                raise UserError(
                    f"{data.raw} leaves nothing for {split}: every number is left out ({_counted(left_out)})"
                )
            _close_gaps(work / f"{split}_images.npy", kept)
            np.save(work / f"{split}_labels.npy", np.stack([member.labels for member in members]))
            np.save(work / f"{split}_boxes.npy", boxes[split][kept])
            np.save(work / f"{split}_names.npy", np.array([member.name for member in members]))
            with (work / f"{split}_images.npy").open("rb") as stream:
                whole = hashlib.file_digest(stream, "sha256").hexdigest()
            spot = _spot(*(np.load(work / f"{split}_{kind}.npy", mmap_mode="r") for kind in KINDS))
            about["sets"][split] = {"images": len(members), "sha256": whole, "spot": spot}
        for name, reasons in left_out.items():
            about["left_out"][name] = {reason: sorted(reasons[reason]) for reason in sorted(reasons)}
        (work / "sets.json").write_text(json.dumps(about, indent=1) + "\n")
        target.parent.mkdir(parents=True, exist_ok=True)
        move_in(work, target)
    return about


def _counted(left_out: dict[str, dict[str, list[str]]]) -> str:
    return ", ".join(f"{part} {len(names)} {reason}" for part in left_out for reason, names in left_out[part].items())


def _part(data: DictConfig, name: str) -> Path:
    """The archive or folder of `train`, `test` or `extra`."""
    for part in (Path(data.raw, f"{name}.tar.gz"), Path(data.raw, name)):
        if part.exists():
            return part
    fewer = " or leave it out with data.extra=false" if name == "extra" else ""
    raise UserError(f"{data.raw}/{name}.tar.gz is missing: run `python -m stn.fetch data={data.name}`{fewer}")


def _candidates(part: str, table: Table, images: set[str]) -> tuple[list[Number], dict[str, list[str]]]:
    """The numbers of a part that can be cropped, in the order of its table, and the names of the others by reason."""
    numbers, left_out, seen = [], {}, set()
    entries = set(map(str, table.names))
    for reason, names in ((NO_IMAGE, entries - images), (NO_ENTRY, images - entries)):
        if names:
            left_out[reason] = [f"{part}/{name}" for name in names]
    for name, start, end in zip(map(str, table.names), table.start[:-1], table.start[1:], strict=True):
        boxes, labels = table.boxes[start:end].astype(np.float64), table.labels[start:end]
        if name not in images:
            continue
        if name in seen:
            reason = TWICE
        elif end - start > POSITIONS:
            reason = LONG
        elif not ((labels >= 1) & (labels <= 10)).all() or start == end:
            reason = LABEL
        elif not (boxes[:, 2:] > 0).all():
            reason = ZERO
        else:
            padded = np.full(POSITIONS, NONE, np.uint8)
            padded[: end - start] = labels % 10  # a digit labelled 10 is a zero
            corners = np.concatenate([boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)])
            numbers.append(Number(f"{part}/{name}", corners, padded))
            seen.add(name)
            continue
        left_out.setdefault(reason, []).append(f"{part}/{name}")
    return numbers, left_out


@contextmanager
def _crew(workers: int) -> Iterator[Executor]:
    """Processes, because Pillow holds the interpreter's lock for most of so small an image; one worker needs none."""
    if workers == 1:
        crew = ThreadPoolExecutor(1)
    else:
        ignore = (signal.SIGINT, signal.SIG_IGN)  # an interrupt is told once, by the process that was started
        crew = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, ignore)
    try:
        yield crew
    finally:
        crew.shutdown(cancel_futures=True)


def _cropped(
    part: Path, wanted: dict[str, Number], plan: dict, work: Path, crew: Executor, workers: int
) -> Iterator[tuple[Number, np.ndarray | str]]:
    """Crop the wanted images of a part into the files below `work`; yields each one's box, or why it is left out."""

    def sources() -> Iterator[tuple[Number, Path | bytes]]:
        if part.is_dir():
            yield from ((number, part / name) for name, number in wanted.items())
            return
        with _whole(part), archive(part) as files:
            yield from ((wanted[name], stream.read()) for name, stream in files if name in wanted)

    with progress(f"cropping {part}", len(wanted), unit="images") as tell:
        under_way, waiting, done = deque(), sources(), 0
        while (batch := list(itertools.islice(waiting, BATCH))) or under_way:
            if batch:
                under_way.append((batch, crew.submit(_crop_all, batch, plan, work)))
            if not batch or len(under_way) > 2 * workers:
                batch, job = under_way.popleft()
                yield from zip((number for number, _ in batch), job.result(), strict=True)
                done += len(batch)
                tell(done)


def _crop_all(batch: list[tuple[Number, Path | bytes]], plan: dict, work: Path) -> list[np.ndarray | str]:
    """Write the crops of a batch; their boxes, or why one is left out."""
    images = {
        split: np.load(work / f"{split}_images.npy", mmap_mode="r+") for split in {number.split for number, _ in batch}
    }
    found = []
    for number, source in batch:
        try:
            images[number.split][number.row], box = crop(source, number, plan)
            found.append(box)
        except _LeftOut as error:
            found.append(str(error))
    return found


class _LeftOut(Exception):
    """Why a number is left out."""


def crop(source: Path | bytes, number: Number, plan: dict) -> tuple[np.ndarray, np.ndarray]:
    """The crop (canvas, canvas, 3) uint8 of a number, and its box (4,) in the canvas; `plan` is a `recipe`.

    Pillow resizes in integers, so the bytes are the same on every machine.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError):
        raise _LeftOut(UNREADABLE) from None
    box = np.clip(number.box, 0, [image.width, image.height] * 2)
    if (box[2:] <= box[:2]).any():
        raise _LeftOut(OUTSIDE)
    if plan["place"] is not None:
        return _placed(image, box, plan["canvas"], *plan["place"], _random(plan["seed"], number.name))
    grown = np.tile((number.box[2:] - number.box[:2]) * plan["expand"] / 2, 2) * [-1, -1, 1, 1]
    # Paper and Goodfellow are silent on what lies beyond the image: the crop ends where the image does.
    window = np.clip(number.box + grown, 0, [image.width, image.height] * 2)
    pixels = image.resize((plan["canvas"], plan["canvas"]), Image.Resampling.BILINEAR, tuple(window.tolist()))
    return np.asarray(pixels), _in_frame(box, window)


def _in_frame(box: np.ndarray, window: np.ndarray) -> np.ndarray:
    """A box (..., 4) in the frame in which a window (4,) spans [-1, 1]; both in the same pixels."""
    first, size = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    return (2 * (box - first) / size - 1).astype(np.float32)


def _random(seed: int, name: str) -> np.random.RandomState:
    """Random numbers that are a function of the seed and an image's name."""
    return np.random.RandomState(np.frombuffer(hashlib.blake2b(f"{seed}/{name}".encode()).digest(), "<u4"))


def _placed(
    image: Image.Image, box: np.ndarray, canvas: int, low: float, high: float, draws: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """The number's longer side takes a share U(low, high) of the canvas, at a random place where it fits whole."""
    scale = draws.uniform(low, high) * canvas / (box[2:] - box[:2]).max()
    size = np.maximum(1, np.round(np.array(image.size) * scale)).astype(int)
    shrunk = np.asarray(image.resize(tuple(size.tolist()), Image.Resampling.BILINEAR))
    box = box * np.tile(size / image.size, 2)
    corner = np.round(draws.uniform(0, np.maximum(0, canvas - (box[2:] - box[:2]))) - box[:2])
    # Half a pixel of rounding must not push the number over an edge, if there is room at all.
    corner = np.maximum(np.minimum(corner, np.floor(canvas - box[2:])), np.ceil(-box[:2])).astype(int)
    return _grown(shrunk, corner, canvas, draws), _in_frame(box + np.tile(corner, 2), np.array([0, 0, canvas, canvas]))


def _grown(image: np.ndarray, corner: np.ndarray, canvas: int, draws: np.random.RandomState) -> np.ndarray:
    """A canvas with the image's upper left pixel at `corner` (x, y), and surroundings grown from its edges.

    A pixel beyond an edge takes the colour of an edge pixel near it, the less near the farther out it is, by smooth and
    by rough random steps; then all is blurred, the more the farther out. All in integers.
    """
    height, width = image.shape[:2]
    y, x = np.mgrid[:canvas, :canvas]
    x, y = x - corner[0], y - corner[1]
    beyond = np.maximum.reduce([-x, x - width + 1, -y, y - height + 1, np.zeros_like(x)])
    smooth = [_smooth(draws, canvas, 8) + _smooth(draws, canvas, 32) // 2 for _ in "xy"]
    rough = draws.randint(-128, 128, (2, canvas, canvas))
    right, down = (2 * np.stack(smooth) * np.minimum(beyond, 40) + rough * np.minimum(beyond, 8)) >> 7
    spread = image[np.clip(y + down, 0, height - 1), np.clip(x + right, 0, width - 1)]
    near, far = (
        np.asarray(Image.fromarray(spread).filter(ImageFilter.GaussianBlur(radius)), int) for radius in (1.2, 5)
    )
    share = np.minimum(12 * beyond, 192)[..., None]
    blurred = (near * (256 - share) + far * share) >> 8
    return np.where(beyond[..., None] > 0, blurred, spread).astype(np.uint8)


def _smooth(draws: np.random.RandomState, side: int, knots: int) -> np.ndarray:
    """A smooth random field (side, side) of integers from -128 to 127."""
    coarse = Image.fromarray(draws.randint(0, 256, (knots, knots)).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), int) - 128


def _close_gaps(path: Path, kept: np.ndarray) -> None:
    """Drop the rows of an .npy file that are not kept (n,), in place: there may be no room for a second copy."""
    if kept.all():
        return
    rows = np.load(path, mmap_mode="r+")
    for target, source in enumerate(np.flatnonzero(kept)):
        rows[target] = rows[source]
    start, shape = rows.offset, (int(kept.sum()), *rows.shape[1:])
    del rows
    with path.open("r+b") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if stream.tell() != start:
            raise AssertionError(f"{path}: the header of fewer rows has another length")
        stream.truncate(start + math.prod(shape))


def _spot(images: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> str:
    """A digest of labels, boxes and some images, all of them in a small set: `extra` takes a minute to read whole."""
    some = np.unique(np.linspace(0, len(images) - 1, min(SPOT, len(images))).round().astype(int))
    hashed = hashlib.sha256()
    for array in (labels, boxes, *(images[i] for i in some)):
        hashed.update(np.ascontiguousarray(array))
    return hashed.hexdigest()


# What a run feeds on


@dataclass
class StoredNumbers:
    """A cropped set. The images (n, canvas, canvas, 3) uint8 stay on the disk; labels (n, 5) int64, boxes (n, 4)."""

    images: np.ndarray
    labels: Tensor
    boxes: np.ndarray


def load_stored(data: DictConfig, split: str) -> StoredNumbers:
    """One of the stored sets; a missing or damaged one is a UserError that names the command that makes it."""
    folder, mend = Path(data.stored), f"run `python -m stn.crop data={data.name}`"
    try:
        about = json.loads((folder / "sets.json").read_text())
        # Copy on write, because torch warns of what it must not write to; nothing is written.
        images, labels, boxes = (np.load(folder / f"{split}_{kind}.npy", mmap_mode="c") for kind in KINDS)
        made, facts = about["recipe"], about["sets"][split]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: {mend}") from None
    except (ValueError, EOFError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({why(error)}): {mend}") from None
    wanted = recipe(data)
    if made != wanted:
        other = ", ".join(
            f"{key}={made.get(key)} (not {wanted[key]})" for key in wanted if made.get(key) != wanted[key]
        )
        raise UserError(f"{folder} was cropped with {other}: {mend}, or set data.stored elsewhere")
    if len(images) != facts["images"] or _spot(images, labels, boxes) != facts["spot"]:
        raise UserError(f"{folder / f'{split}_images.npy'} is not what was written there: {mend}")
    return StoredNumbers(images, torch.from_numpy(labels.astype(np.int64)), np.asarray(boxes))


class HouseNumbers:
    """What a run feeds on. Batches are (images (B, 3, side, side) float in [0, 1], labels (B, 5)), on the device.

    Labels are 0 to 9, or 10 for a position without a digit. With `data.centred` each image's mean is subtracted.
    """

    def __init__(self, data: DictConfig):
        if data.window is not None and not 0 < data.window <= data.canvas:
            raise UserError(f"data.window={data.window} is no part of a crop of {data.canvas} pixels")
        self.data = data
        self.side = data.window or data.canvas
        self.shape = (3, self.side, self.side)
        self.sets: dict[str, StoredNumbers] = {}

    def load(self, split: str) -> None:
        """Open `train`, `validation` or `test`; a UserError if it is missing or damaged."""
        if split not in self.sets:
            self.sets[split] = load_stored(self.data, split)

    def count(self, split: str) -> int:
        return len(self.sets[split].labels)

    def batch(self, split: str, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The stored images `index` (B,) of a split; with `data.window` their central windows."""
        return self._finished(self._pixels(split, index, device)), self._labels(split, index, device)

    def train_batch(
        self, index: Tensor, draws: torch.Generator, size: int, part: slice, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """The training images `index` (B,): random windows, augmented; `part` says which B of the `size` they are."""
        augment = self.data.augment
        zoom, right, down, contrast = 2 * torch.rand(4, size, 1, generator=draws, device=draws.device)[:, part] - 1
        corners = torch.rand(size, 2, generator=draws, device=draws.device)[part]
        corners = (corners * (self.data.canvas - self.side + 1)).long()
        images = self._pixels("train", index, device, corners)
        if augment.scale or augment.shift:
            zoom, shift = 1 + augment.scale * zoom, 2 * augment.shift  # the side is 2 in the frame
            grid = self._grid(zoom, shift * right, shift * down).to(device)
            images = bilinear(images, grid)
        if augment.contrast:
            mean = images.mean((1, 2, 3), keepdim=True)
            factor = (1 + augment.contrast * contrast).view(-1, 1, 1, 1).to(device)
            images = torch.lerp(mean, images, factor).clamp(0, 1)
        return self._finished(images), self._labels("train", index, device)

    @torch.inference_mode()
    def evidence(self, network: nn.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the report shows of the transformers on the test set; nothing for a network without one.

        example_input, example_label, example_said: the first eight test images, and four that are read wrongly.
        example_windows (N, K, 4, 2): the corners of the window of each of K transformers; example_seen: what the last
        one hands on. window_all (n, K, 4, 2) and box (n, 4): the windows and the number's box of every test image.
        """
        if not any(name.startswith("theta") for name in arrays):
            return {}
        made, device = self.sets["test"], next(network.parameters()).device
        everything = torch.arange(self.count("test"))
        windows = [network.windows(self.batch("test", some, device)[0]) for some in everything.split(CHUNK)]
        windows = torch.cat(windows).half().cpu().numpy()
        wrong = np.flatnonzero(~arrays["correct"])
        first = everything[:8]
        chosen = torch.cat([first, torch.from_numpy(wrong[wrong >= len(first)][:4])])
        pixels = self._pixels("test", chosen, device)
        images = self._finished(pixels)
        seen = network.seen(images).float()
        if self.data.centred:
            seen = seen + pixels.mean((1, 2, 3), keepdim=True)
        window = (self.data.canvas - self.side) // 2
        window = np.array([window, window, window + self.side, window + self.side])
        found = {
            "example_input": _shown(pixels),
            "example_label": made.labels[chosen].to(torch.uint8),
            "example_said": network(images).argmax(-1).to(torch.uint8),
            "example_seen": _shown(seen),
        }
        return {
            **{name: value.cpu().numpy() for name, value in found.items()},
            "example_windows": windows[chosen.numpy()],
            "window_all": windows,
            "box": _in_frame((made.boxes + 1) / 2 * self.data.canvas, window).astype(np.float16),
        }

    def _grid(self, zoom: Tensor, right: Tensor, down: Tensor) -> Tensor:
        """(B, side, side, 2): `Attention().grid` of the three (B, 1), axis by axis because that is faster.

        Beyond the edges the outermost pixels go on.
        """
        axis = pixel_centres((1, self.side), zoom.dtype, zoom.device)[:, 0]
        x, y = ((zoom * axis + shift).clamp(axis[0], axis[-1]) for shift in (right, down))
        shape = len(zoom), self.side, self.side
        return torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], -1)

    def _pixels(self, split: str, index: Tensor, device: torch.device, corners: Tensor | None = None) -> Tensor:
        """(B, 3, side, side) float in [0, 1], channels last: the windows at `corners` (B, 2) (y, x), or the central."""
        made, side = self.sets[split].images, self.side
        if side == self.data.canvas:
            rows = torch.from_numpy(made).index_select(0, index.cpu())
        else:
            corners = torch.full((len(index), 2), (self.data.canvas - side) // 2) if corners is None else corners
            rows = torch.empty(len(index), side, side, 3, dtype=torch.uint8)
            for row, i, (y, x) in zip(rows.numpy(), index.tolist(), corners.tolist(), strict=True):
                row[:] = made[i, y : y + side, x : x + side]
        return rows.to(device).permute(0, 3, 1, 2).div(255)

    def _finished(self, images: Tensor) -> Tensor:
        if self.data.centred:
            images = images - images.mean((1, 2, 3), keepdim=True)
        return images.contiguous(memory_format=torch.channels_last)

    def _labels(self, split: str, index: Tensor, device: torch.device) -> Tensor:
        return self.sets[split].labels[index.cpu()].to(device)


def source(data: DictConfig) -> HouseNumbers:
    """What the learner of Table 2 feeds on."""
    return HouseNumbers(data)


def _shown(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] as (N, H, W, 3) uint8."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
