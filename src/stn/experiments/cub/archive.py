"""The files of CUB-200-2011, and the stored sets of birds made from them. This module does not import torch.

The frame of every stored part and box is [-1, 1] from outer edge to outer edge of the image, x right, y down, as in
`stn.geometry.transforms`. So it is the same for the original image and for the resized one.
"""

import hashlib
import itertools
import shutil
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from stn.data.progress import progress, why, writing
from stn.data.reading import AGAIN, archive, whole
from stn.data.stored import evenly, sha256, writing_sets
from stn.environment import cores
from stn.errors import UserError

CUB = "CUB_200_2011"  # the name of the archive without its suffix, and of the folder inside it
PARTS = 15
TEXTS = (
    "classes.txt",
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "parts/parts.txt",
    "parts/part_locs.txt",
)
SPOT = 64  # images of a set, evenly spaced, whose digest is checked when a run starts


if TYPE_CHECKING:
    Item = TypeVar("Item")
    Result = TypeVar("Result")


class Unfit(Exception):
    """A folder of CUB is unusable. The message follows the folder's name."""


@dataclass
class Table:
    """The contents of the text files for n images, in their order.

    names (n,) below images/, labels (n,) from 0, train (n,) bool by the official split, boxes (n, 4) as left, top,
    width, height and parts (n, 15, 3) as x, y, visible (0 or 1), in pixels of the image. classes: the names in CUB's
    form (`001.Black_footed_Albatross`); part_names: such as `left eye`.
    """

    names: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    boxes: np.ndarray
    parts: np.ndarray
    classes: list[str]
    part_names: list[str]


@dataclass
class StoredCub:
    """A stored set of n images, which stay on the disk: `image(i)` is image i, (height, width, 3) uint8.

    sizes (n, 2) int64 height and width, labels (n,) int64 from 0, parts (n, 15, 3) float32 x, y, visible and boxes
    (n, 4) float32 x0, y0, x1, y1 in the frame of this module, names (n,) below images/. `pixels` contains the images in
    sequence.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    boxes: np.ndarray
    names: np.ndarray

    def __post_init__(self):
        self._ends = np.cumsum(self.sizes.prod(1) * 3)

    def image(self, i: int) -> np.ndarray:
        height, width = self.sizes[i]
        end = self._ends[i]
        return self.pixels[end - height * width * 3 : end].reshape(height, width, 3)

    def spot(self) -> str:
        """A digest of up to `SPOT` images: reading all images of 200 classes takes ten seconds."""
        return sha256(*(self.image(i) for i in evenly(SPOT, len(self.sizes))))


FACTS = [field.name for field in fields(StoredCub) if field.name != "pixels"]


def fault(folder: Path, classes: int) -> str | None:
    """What is wrong with a folder CUB_200_2011 for the first `classes` classes; None if nothing is."""
    try:
        table_of(folder, classes)
    except Unfit as error:
        return str(error)
    return None


def table_of(folder: Path, classes: int) -> Table:
    """The table of the images of the first `classes` classes in a folder CUB_200_2011.

    Raises Unfit: a text file is missing or is not CUB's, there are fewer classes (a mirror may hold a part), an image
    is missing, or a class has no training or no test images.
    """
    for name in TEXTS:
        if not (folder / name).is_file():
            raise Unfit(f"holds no {name}")
    try:
        class_names, paths, part_names = (
            _named(folder / name) for name in ("classes.txt", "images.txt", "parts/parts.txt")
        )
        label, train = (
            dict(_numbers(folder / name, 2).tolist()) for name in ("image_class_labels.txt", "train_test_split.txt")
        )
        boxes = {row[0]: row[1:] for row in _numbers(folder / "bounding_boxes.txt", 5)}
        rows = _numbers(folder / "parts/part_locs.txt", 5)
        ids = np.array([i for i in sorted(paths) if label[i] <= classes], int)
        parts = np.full((max(paths) + 1, PARTS, 3), np.nan)
        parts[rows[:, 0].astype(int), rows[:, 1].astype(int) - 1] = rows[:, 2:]
        table = Table(
            names=np.array([paths[i] for i in ids]),
            labels=np.array([label[i] for i in ids], int) - 1,
            train=np.array([train[i] for i in ids], int) == 1,
            boxes=np.array([boxes[i] for i in ids]),
            parts=parts[ids],
            classes=[class_names[i] for i in range(1, classes + 1) if i in class_names],
            part_names=[part_names[i] for i in range(1, PARTS + 1)],
        )
        if np.isnan(table.parts).any() or (table.labels < 0).any():
            raise ValueError("a part or a class is missing")
    except (ValueError, KeyError, IndexError) as error:
        raise Unfit(f"holds text files that are not CUB's or do not fit together ({why(error)})") from None
    count = sum(1 for _ in itertools.takewhile(lambda name: (folder / "images" / name).is_dir(), table.classes))
    if count < classes:
        hint = ", as in data=cub50_224," if count == 50 else ""
        raise Unfit(f"holds {count} classes, not data.classes={classes} (data.classes={count}{hint} takes these)")
    for kind, in_split in (("training", table.train), ("test", ~table.train)):
        lacking = np.flatnonzero(np.bincount(table.labels[in_split], minlength=classes) == 0)
        if len(lacking):
            raise Unfit(f"has no {kind} image of class {table.classes[lacking[0]]} in train_test_split.txt")
    missing = [name for name in table.names if not (folder / "images" / name).is_file()]
    if missing:
        raise Unfit(f"lacks {len(missing)} of {len(table.names)} images, such as images/{missing[0]}")
    return table


def _named(path: Path) -> dict[int, str]:
    """Read a file whose lines are a number and a name."""
    lines = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {int(number): name.strip() for number, _, name in lines}


def _numbers(path: Path, columns: int) -> np.ndarray:
    """Read a file of numbers as an array (lines, columns)."""
    return np.array(path.read_text(encoding="utf-8").split(), float).reshape(-1, columns)


def check(data: DictConfig) -> None:
    """Raise UserError if the canvas is larger than the stored images."""
    if data.canvas > data.side:
        raise UserError(
            f"data.canvas={data.canvas} is larger than data.side={data.side}, the shorter side of the stored images: "
            f"no crop fits into them"
        )


def recipe(data: DictConfig) -> dict:
    """The part of a data config that determines the stored sets."""
    keys = ("source", "classes", "side", "validation", "seed")
    settings: dict[str, Any] = OmegaConf.to_container(data, enum_to_str=True)  # type: ignore[assignment]
    return {key: settings[key] for key in keys}


def store(data: DictConfig, scratch: Path, workers: int | None = None) -> dict:
    """Store every image at the size that training needs, as three sets. Returns the contents of `sets.json`.

    Files: {split}_images.bin, the `pixels` of `StoredCub`; {split}.npz, its other arrays. The shorter side of an image
    is `data.side`. `test` and `train` are the official split, without the `data.validation` images of each class that
    are taken from `train`. They are chosen by a permutation that depends on the seed and the class only, so they are
    the same for all `data.classes`. The bytes do not depend on the machine, the number of workers or interruptions. The
    sets are written to `scratch` and moved to `data.stored` when complete.
    """
    check(data)
    about: dict = {"recipe": recipe(data), "part": data.part, "sets": {}}
    with unpacked(data, scratch) as (source, folder), writing_sets(Path(data.stored), scratch, about) as work:
        try:
            table = table_of(folder, data.classes)
            sets = _sets(data, table)
            about |= {"classes": table.classes, "part_names": table.part_names}
            names, resized = table.names[np.concatenate(list(sets.values()))], partial(_resized, folder, side=data.side)
            with (
                progress(f"storing {source}", len(names), unit="images") as tell,
                closing(_in_order(resized, names, workers or cores(), tell)) as images,
            ):
                for split, members in sets.items():
                    about["sets"][split] = _write(work, split, table, members, itertools.islice(images, len(members)))
        except Unfit as error:
            raise UserError(f"{source} {error}; {AGAIN}") from None
    return about


def _sets(data: DictConfig, table: Table) -> dict[str, np.ndarray]:
    """The rows of the table in each set. In validation the classes alternate; the others have the table's order."""
    held_out = []
    for label, name in enumerate(table.classes):
        rows = np.flatnonzero(table.train & (table.labels == label))
        if data.validation >= len(rows):
            raise UserError(
                f"data.validation={data.validation} leaves none of the {len(rows)} training images of {name} to train "
                "on: lower it"
            )
        # numpy guarantees that the streams of its legacy generator never change, so the split does not either.
        held_out.append(np.random.RandomState([data.seed, label]).permutation(rows)[: data.validation])
    validation = np.stack(held_out, 1).ravel()
    train = np.setdiff1d(np.flatnonzero(table.train), validation)
    return {"train": train, "validation": validation, "test": np.flatnonzero(~table.train)}


def _write(
    work: Path, split: str, table: Table, members: np.ndarray, images: Iterable[tuple[np.ndarray, tuple[int, int]]]
) -> dict:
    """Write the set of the table's rows `members`; `images` come from `_resized`. Returns its entry in sets.json."""
    sizes, originals, hashed = [], [], hashlib.sha256()
    with (work / f"{split}_images.bin").open("wb") as out:
        for image, original in images:
            out.write(image)  # type: ignore[arg-type]
            hashed.update(image)  # type: ignore[arg-type]
            sizes.append(image.shape[:2])
            originals.append(original)
    per_side = 2 / np.array(originals, float)  # (n, 2), the size of a pixel in the frame, in x and y
    boxes, parts = table.boxes[members], table.parts[members]
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    parts_in_frame = np.concatenate([parts[..., :2] * per_side[:, None] - 1, parts[..., 2:]], -1)
    facts = {
        "sizes": np.array(sizes),
        "labels": table.labels[members],
        "parts": parts_in_frame.astype(np.float32),
        "boxes": (corners * per_side[:, None] - 1).reshape(-1, 4).astype(np.float32),
        "names": table.names[members],
    }
    np.savez(work / f"{split}.npz", **facts)
    stored = open_set(work, split)
    return {
        "images": len(members),
        "bytes": len(stored.pixels),
        "sha256": hashed.hexdigest(),
        "facts": hashlib.sha256((work / f"{split}.npz").read_bytes()).hexdigest(),
        "spot": stored.spot(),
    }


def open_set(folder: Path, split: str) -> StoredCub:
    """Open a set in `folder` unchecked. Raises OSError, ValueError, KeyError, EOFError or BadZipFile if damaged."""
    with np.load(folder / f"{split}.npz") as arrays:
        return StoredCub(np.memmap(folder / f"{split}_images.bin", mode="r"), **{name: arrays[name] for name in FACTS})


def _resized(folder: Path, name: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image (height, width, 3) uint8 whose shorter side is `side`, and its original width and height.

    Pillow with libjpeg-turbo decodes and resizes in integer arithmetic, so the bytes are the same on every machine.
    """
    try:
        with Image.open(folder / "images" / name) as opened:
            image = opened.convert("RGB")  # some images are grey
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise Unfit(f"holds images/{name}, which is not a complete image ({why(error)})") from None
    shorter = min(image.size)
    size = tuple((2 * length * side + shorter) // (2 * shorter) for length in image.size)
    # Paper: silent. We: antialiased bilinear resizing, as torchvision does for ImageNet.
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)), image.size  # type: ignore[arg-type]


def _in_order(
    work: "Callable[[Item], Result]", items: "Iterable[Item]", workers: int, tell: Callable[[int], None]
) -> "Generator[Result]":
    """Yield `work(item)` of each item in order; threads compute a few items ahead.

    `tell` is called with the number of items done. Threads suffice because Pillow decodes and resizes without the
    interpreter's lock.
    """
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as crew:
        try:
            for submitted, item in enumerate(items):
                waiting.append(crew.submit(work, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
                    tell(submitted + 1 - len(waiting))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()


@contextmanager
def unpacked(data: DictConfig, scratch: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the archive in `data.raw` and the folder to which it is unpacked; or twice the folder in `data.raw`."""
    packed, folder = Path(data.raw, f"{CUB}.tgz"), Path(data.raw, CUB)
    if packed.exists():
        temporary = scratch / f"{Path(data.stored).name}.raw"
        try:
            _unpack(packed, temporary)
            yield packed, temporary / CUB
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    elif folder.is_dir():
        yield folder, folder
    else:
        raise UserError(f"{packed} is missing: run `python -m stn.fetch data={data.name}`")


def _unpack(packed: Path, target_folder: Path) -> None:
    """Unpack the images and the required text files to `target_folder`."""
    shutil.rmtree(target_folder, ignore_errors=True)
    size = packed.stat().st_size
    with (
        writing(target_folder),
        whole(packed),
        progress(f"unpacking {packed}", size) as tell,
        archive(packed, tell, folders=True) as files,
    ):
        for name, stream in files:
            path = PurePosixPath(name)
            if path.parts[0] != CUB or ".." in path.parts:
                continue
            if str(path.relative_to(CUB)) in TEXTS or path.parts[1:2] == ("images",):
                target = target_folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
