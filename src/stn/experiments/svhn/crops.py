"""Crops of house numbers, made once. This module does not import torch, so that worker processes start quickly.

A number is cropped as by Goodfellow et al. (2013): the box around all its digits, enlarged by the factor 1 + `expand`,
fills the canvas. With `place` the number fills a random share of the canvas at a random place. With `whole` the whole
image fills the canvas, and only numbers of `extra` are placed. The frame of stored boxes is [-1, 1] from outer edge to
outer edge of the canvas, as in `stn.geometry.transforms`.
"""

import hashlib
import io
import itertools
import math
import multiprocessing
import shutil
import signal
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageFilter

from stn.data.progress import progress
from stn.data.reading import archive, whole
from stn.data.stored import evenly, sha256, writing_sets
from stn.environment import cores
from stn.errors import UserError
from stn.experiments.svhn.archive import DIGITS, Table, table_of

POSITIONS, NONE = 5, 10  # the largest number of digits, and the class of a position without a digit
KINDS = ("images", "labels", "boxes")  # the arrays of a stored set that a run reads
BATCH = 100  # images per job of a worker
MANY = 3000  # number of images above which several workers are faster than one
SPOT = 4096  # images of a set, evenly spaced, whose digest is checked when a run starts

# Reasons why a number is left out.
LONG, LABEL, ZERO = "more than five digits", "a label that is not 1 to 10", "a box of size zero"
OUTSIDE, UNREADABLE = "its box outside the image", "unreadable"
TWICE = f"named twice in {DIGITS}"
NO_IMAGE, NO_ENTRY = "without an image", f"without an entry in {DIGITS}"


@dataclass
class Number:
    """A number to be cropped: its box (4,) as x0, y0, x1, y1 in pixels, its labels (5,), and the row for its crop."""

    name: str
    box: np.ndarray
    labels: np.ndarray
    split: str = ""
    row: int = 0

    @property
    def part(self) -> str:
        """`train`, `test` or `extra`."""
        return self.name.partition("/")[0]


def recipe(data: DictConfig) -> dict:
    """The part of a data config that determines the crops."""
    keys = ("source", "extra", "canvas", "expand", "place", "validation", "seed")
    settings: dict[str, Any] = OmegaConf.to_container(data, enum_to_str=True)  # type: ignore[assignment]
    # This key was added later. Without it the recipe must equal that of older sets.
    return {key: settings[key] for key in (*keys, *(["whole"] if settings.get("whole") else []))}


def store(data: DictConfig, scratch: Path, workers: int | None = None) -> dict:
    """Crop every number and store the sets `train`, `validation` and `test`. Returns the contents of `sets.json`.

    Files: {split}_images.npy (n, canvas, canvas, 3) uint8, _labels.npy (n, 5) uint8 with 10 for no digit, _boxes.npy
    (n, 4) float32 as x0, y0, x1, y1 of the number in the canvas, _names.npy. The order of train and validation is a
    permutation that depends on the seed only. The bytes do not depend on the machine, the number of workers or
    interruptions. With `whole` the validation numbers are from the part `train` only. The sets are written to `scratch`
    and moved to `data.stored` when complete.
    """
    if data.canvas not in (64, 128):
        raise UserError(f"data.canvas={data.canvas}: house numbers are cropped to 64 or 128 pixels")
    parts = {name: _part(data, name) for name in ("train", *(["extra"] if data.extra else []), "test")}
    numbers, left_out = {}, {}
    for name, part in parts.items():
        numbers[name], left_out[name] = _candidates(name, *table_of(part, scratch))
    pool = [number for name in parts if name != "test" for number in numbers[name]]
    # numpy guarantees that the streams of its legacy generator never change, so the split does not either.
    pool = [pool[i] for i in np.random.RandomState(data.seed).permutation(len(pool))]
    photographs = [number for number in pool if number.part == "train" or not data.whole]
    if not 0 < data.validation < len(photographs):
        raise UserError(f"data.validation={data.validation} leaves none of the {len(photographs)} numbers to train on")
    validation = photographs[: data.validation]
    validation_names = {number.name for number in validation}
    train = [number for number in pool if number.name not in validation_names]
    sets = {"train": train, "validation": validation, "test": numbers["test"]}
    about: dict = {"recipe": recipe(data), "part": data.part, "sets": {}, "left_out": {}}
    with writing_sets(Path(data.stored), scratch, about) as work:
        needed, free = sum(map(len, sets.values())) * data.canvas**2 * 3, shutil.disk_usage(work).free
        if needed > free:  # else the kernel kills a process that writes to a mapped file on a full disk
            raise UserError(f"the crops need {needed / 1e9:.1f} GB, {work.parent} has {free / 1e9:.1f} GB: make room")
        boxes = {}
        for split, members in sets.items():
            shape = (len(members), data.canvas, data.canvas, 3)
            np.lib.format.open_memmap(work / f"{split}_images.npy", "w+", np.uint8, shape)
            boxes[split] = np.full((len(members), 4), np.nan, np.float32)
            for row, number in enumerate(members):
                number.split, number.row = split, row
        workers = workers or (cores() if sum(map(len, sets.values())) > MANY else 1)
        with _crew(workers) as crew:
            for name, part in parts.items():
                by_file = {number.name.partition("/")[2]: number for number in numbers[name]}
                for number, box in _cropped(part, by_file, recipe(data), work, crew, workers):
                    if isinstance(box, str):
                        left_out[name].setdefault(box, []).append(number.name)
                    else:
                        boxes[number.split][number.row] = box
        for split, members in sets.items():
            is_cropped = ~np.isnan(boxes[split][:, 0])
            members = [member for member, cropped in zip(members, is_cropped, strict=True) if cropped]
            if not members:
                raise UserError(
                    f"{data.raw} has no number left for {split}: every one is left out ({_counted(left_out)})"
                )
            _close_gaps(work / f"{split}_images.npy", is_cropped)
            np.save(work / f"{split}_labels.npy", np.stack([member.labels for member in members]))
            np.save(work / f"{split}_boxes.npy", boxes[split][is_cropped])
            np.save(work / f"{split}_names.npy", np.array([member.name for member in members]))
            with (work / f"{split}_images.npy").open("rb") as stream:
                images_digest = hashlib.file_digest(stream, "sha256").hexdigest()
            spot_digest = spot(*(np.load(work / f"{split}_{kind}.npy", mmap_mode="r") for kind in KINDS))
            about["sets"][split] = {"images": len(members), "sha256": images_digest, "spot": spot_digest}
        for name, reasons in left_out.items():
            about["left_out"][name] = {reason: sorted(reasons[reason]) for reason in sorted(reasons)}
    return about


def _counted(left_out: dict[str, dict[str, list[str]]]) -> str:
    return ", ".join(f"{part} {len(names)} {reason}" for part in left_out for reason, names in left_out[part].items())


def _part(data: DictConfig, name: str) -> Path:
    """The archive or folder of `train`, `test` or `extra`; UserError if neither is there."""
    for part in (Path(data.raw, f"{name}.tar.gz"), Path(data.raw, name)):
        if part.exists():
            return part
    fewer = " or leave it out with data.extra=false" if name == "extra" else ""
    raise UserError(f"{data.raw}/{name}.tar.gz is missing: run `python -m stn.fetch data={data.name}`{fewer}")


def _candidates(part: str, table: Table, images: set[str]) -> tuple[list[Number], dict[str, list[str]]]:
    """The numbers of a part that can be cropped, in the table's order, and the names of the others by reason."""
    numbers, left_out, names_so_far = [], {}, set()
    entries = set(map(str, table.names))
    for reason, names in ((NO_IMAGE, entries - images), (NO_ENTRY, images - entries)):
        if names:
            left_out[reason] = [f"{part}/{name}" for name in names]
    for name, start, end in zip(map(str, table.names), table.start[:-1], table.start[1:], strict=True):
        boxes, labels = table.boxes[start:end].astype(np.float64), table.labels[start:end]
        if name not in images:
            continue
        if name in names_so_far:
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
            names_so_far.add(name)
            continue
        left_out.setdefault(reason, []).append(f"{part}/{name}")
    return numbers, left_out


@contextmanager
def _crew(workers: int) -> Iterator[Executor]:
    """Yield worker processes, because Pillow holds the interpreter's lock mostly; for one worker a thread."""
    if workers == 1:
        crew: Executor = ThreadPoolExecutor(1)
    else:
        ignore = (signal.SIGINT, signal.SIG_IGN)  # only the main process reports an interrupt
        crew = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), signal.signal, ignore)
    try:
        yield crew
    finally:
        crew.shutdown(cancel_futures=True)


def _cropped(
    part: Path, numbers: dict[str, Number], plan: dict, work: Path, crew: Executor, workers: int
) -> Iterator[tuple[Number, np.ndarray | str]]:
    """Crop `numbers`, by their images' names, into files below `work`; yields their boxes or why they are left out."""

    def sources() -> Iterator[tuple[Number, Path | bytes]]:
        if part.is_dir():
            yield from ((number, part / name) for name, number in numbers.items())
            return
        with whole(part), archive(part) as files:
            yield from ((numbers[name], stream.read()) for name, stream in files if name in numbers)

    with progress(f"cropping {part}", len(numbers), unit="images") as tell:
        running, waiting, done = deque(), sources(), 0  # type: ignore[var-annotated]
        while (batch := list(itertools.islice(waiting, BATCH))) or running:
            if batch:
                running.append((batch, crew.submit(_crop_all, batch, plan, work)))
            if not batch or len(running) > 2 * workers:
                batch, job = running.popleft()
                yield from zip((number for number, _ in batch), job.result(), strict=True)
                done += len(batch)
                tell(done)


def _crop_all(batch: list[tuple[Number, Path | bytes]], plan: dict, work: Path) -> list[np.ndarray | str]:
    """Write the crops of a batch. Returns the box of each number, or the reason to leave it out."""
    images = {
        split: np.load(work / f"{split}_images.npy", mmap_mode="r+") for split in {number.split for number, _ in batch}
    }
    results: list[np.ndarray | str] = []
    for number, source in batch:
        try:
            images[number.split][number.row], box = crop(source, number, plan)
            results.append(box)
        except _LeftOut as error:
            results.append(str(error))
    return results


class _LeftOut(Exception):
    """A number is left out; the message is the reason."""


def crop(source: Path | bytes, number: Number, plan: dict) -> tuple[np.ndarray, np.ndarray]:
    """The crop (canvas, canvas, 3) uint8 of a number, and the number's box (4,) in the canvas; `plan` is a `recipe`.

    Pillow resizes in integer arithmetic, so the bytes are the same on every machine.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError):
        raise _LeftOut(UNREADABLE) from None
    box = np.clip(number.box, 0, [image.width, image.height] * 2)
    if (box[2:] <= box[:2]).any():
        raise _LeftOut(OUTSIDE)
    if plan.get("whole") and (number.part != "extra" or plan["place"] is None):
        pixels = image.resize((plan["canvas"], plan["canvas"]), Image.Resampling.BILINEAR)
        return np.asarray(pixels), in_frame(box, np.array([0, 0, *image.size]))
    if plan["place"] is not None:
        return _placed(image, box, plan["canvas"], plan["place"], _random(plan["seed"], number.name))
    window = box + np.tile((box[2:] - box[:2]) * plan["expand"] / 2, 2) * [-1, -1, 1, 1]
    # Paper and Goodfellow: silent on windows that exceed the image. We: repeat its edge pixels, so that a number fills
    # the same part of every crop.
    before = np.ceil(np.maximum(0, -window[:2])).astype(int)
    after = np.ceil(np.maximum(0, window[2:] - image.size)).astype(int)
    if before.any() or after.any():
        (left, top), (right, bottom) = before, after
        image = Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), "edge"))
    inside = np.clip(window + np.tile(before, 2), 0, [image.width, image.height] * 2)  # changes rounding errors only
    pixels = image.resize((plan["canvas"], plan["canvas"]), Image.Resampling.BILINEAR, tuple(inside.tolist()))
    return np.asarray(pixels), in_frame(box, window)


def in_frame(box: np.ndarray, window: np.ndarray) -> np.ndarray:
    """A box (..., 4) in the frame in which a window (4,) spans [-1, 1]; both are given in the same pixels."""
    first, size = np.tile(window[:2], 2), np.tile(window[2:] - window[:2], 2)
    return (2 * (box - first) / size - 1).astype(np.float32)


def _random(seed: int, name: str) -> np.random.RandomState:
    """A random generator whose state is a function of the seed and an image's name."""
    return np.random.RandomState(np.frombuffer(hashlib.blake2b(f"{seed}/{name}".encode()).digest(), "<u4"))


def _placed(
    image: Image.Image,
    box: np.ndarray,
    canvas: int,
    place: Sequence,
    draws: np.random.RandomState,
) -> tuple[np.ndarray, np.ndarray]:
    """The crop and box of a number that fills a random share of the canvas, by `place`, at a random place inside it."""
    sides, ranges = box[2:] - box[:2], np.array(place, float)
    if ranges.ndim == 2:  # one range for x and one for y
        scale = draws.uniform(*ranges.T) * canvas / sides
    else:  # one range, for the longer side
        scale = draws.uniform(*ranges) * canvas / sides.max()
    size = np.maximum(1, np.round(np.array(image.size) * scale)).astype(int)
    shrunk = np.asarray(image.resize(tuple(size.tolist()), Image.Resampling.BILINEAR))
    box = box * np.tile(size / image.size, 2)
    corner = np.round(draws.uniform(0, np.maximum(0, canvas - (box[2:] - box[:2]))) - box[:2])
    # Rounding must not push the number across an edge if it fits.
    corner = np.maximum(np.minimum(corner, np.floor(canvas - box[2:])), np.ceil(-box[:2])).astype(int)
    return _grown(shrunk, corner, canvas, draws), in_frame(box + np.tile(corner, 2), np.array([0, 0, canvas, canvas]))


def _grown(image: np.ndarray, corner: np.ndarray, canvas: int, draws: np.random.RandomState) -> np.ndarray:
    """A canvas with the image's upper left pixel at `corner` (x, y), and a background generated from the image's edges.

    A pixel outside the image takes the colour of a nearby edge pixel, displaced by smooth and rough random steps, and
    is then blurred. Steps and blur grow with the distance from the image. All arithmetic is in integers.
    """
    height, width = image.shape[:2]
    y, x = np.mgrid[:canvas, :canvas]
    x, y = x - corner[0], y - corner[1]
    beyond = np.maximum.reduce([-x, x - width + 1, -y, y - height + 1, np.zeros_like(x)])
    smooth = [_smooth(draws, canvas, 8) + _smooth(draws, canvas, 32) // 2 for _ in "xy"]
    rough = draws.randint(-128, 128, (2, canvas, canvas))
    right, down = (2 * np.stack(smooth) * np.minimum(beyond, 40) + rough * np.minimum(beyond, 8)) >> 7
    spread = image[np.clip(y + down, 0, height - 1), np.clip(x + right, 0, width - 1)]
    weak_blur, strong_blur = (
        np.asarray(Image.fromarray(spread).filter(ImageFilter.GaussianBlur(radius)), int) for radius in (1.2, 5)
    )
    share = np.minimum(12 * beyond, 192)[..., None]
    blurred = (weak_blur * (256 - share) + strong_blur * share) >> 8
    return np.where(beyond[..., None] > 0, blurred, spread).astype(np.uint8)


def _smooth(draws: np.random.RandomState, side: int, knots: int) -> np.ndarray:
    """A smooth random field (side, side) of integers from -128 to 127."""
    coarse = Image.fromarray(draws.randint(0, 256, (knots, knots)).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), int) - 128


def _close_gaps(path: Path, keep: np.ndarray) -> None:
    """Drop the rows of an .npy file where `keep` (n,) is False, in place: a copy may not fit on the disk."""
    if keep.all():
        return
    rows = np.load(path, mmap_mode="r+")
    for target, source in enumerate(np.flatnonzero(keep)):
        rows[target] = rows[source]
    start, shape = rows.offset, (int(keep.sum()), *rows.shape[1:])
    del rows
    with path.open("r+b") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
        if stream.tell() != start:
            raise AssertionError(f"{path}: the header of fewer rows has another length")
        stream.truncate(start + math.prod(shape))


def spot(images: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> str:
    """A digest of the labels, the boxes and up to `SPOT` images: reading all images of `extra` takes a minute."""
    return sha256(labels, boxes, *(images[i] for i in evenly(SPOT, len(images))))
