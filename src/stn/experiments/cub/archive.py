"""The files of CUB-200-2011, and the sets of birds that are stored from them. Loads no torch.

Frame of every stored part and box: [-1, 1] spans the image from outer edge to outer edge, x right, y down, as in
`stn.geometry.transforms`; so it is the same for the image as it comes and as it is stored.
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

from stn.data.download import CUB
from stn.data.progress import progress, why, writing
from stn.data.reading import archive
from stn.data.stored import writing_sets
from stn.environment import cores
from stn.errors import UserError
from stn.experiments.svhn.archive import AGAIN, whole

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
SPOT = 64  # images of a set, evenly spaced, that are held against what was stored when a run starts


if TYPE_CHECKING:
    Item = TypeVar("Item")
    Made = TypeVar("Made")


class Unfit(Exception):
    """What a folder of CUB lacks. Reads on from its name."""


@dataclass
class Table:
    """What the text files say of n images, in their order.

    names (n,) below images/, labels (n,) from 0, train (n,) bool by the official split, boxes (n, 4) as left, top,
    width, height and parts (n, 15, 3) as x, y, visible (0 or 1), in pixels of the image.
    classes: their names as CUB writes them (`001.Black_footed_Albatross`); part_names: as `left eye`.
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
    """A stored set of n images, which stay on the disk: `image(i)` is one of them, (height, width, 3) uint8.

    sizes (n, 2) int64 height and width, labels (n,) int64 from 0, parts (n, 15, 3) float32 x, y, visible and boxes
    (n, 4) float32 x0, y0, x1, y1 in the frame of this module, names (n,) below images/. `pixels` holds the images one
    after the other.
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
        """A digest of some images, all of them in a small set: 200 classes take ten seconds to read whole."""
        n, hashed = len(self.sizes), hashlib.sha256()
        for i in np.unique(np.linspace(0, n - 1, min(SPOT, n)).round().astype(int)):
            hashed.update(self.image(i))  # type: ignore[arg-type]  # typed as a buffer from Python 3.12 on
        return hashed.hexdigest()


FACTS = [field.name for field in fields(StoredCub) if field.name != "pixels"]


def fault(folder: Path, classes: int) -> str | None:
    """What a folder CUB_200_2011 lacks of the first `classes` classes; to be read after its name."""
    try:
        table_of(folder, classes)
    except Unfit as error:
        return str(error)
    return None


def table_of(folder: Path, classes: int) -> Table:
    """The images of the first `classes` classes in a folder CUB_200_2011.

    Raises Unfit: a text file is missing or not CUB's, there are fewer classes (a mirror may hold a part), an image is
    missing, or a class has no images to train on or to test.
    """
    for name in TEXTS:
        if not (folder / name).is_file():
            raise Unfit(f"holds no {name}")
    try:
        kinds, paths, part_names = (_named(folder / name) for name in ("classes.txt", "images.txt", "parts/parts.txt"))
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
            classes=[kinds[i] for i in range(1, classes + 1) if i in kinds],
            part_names=[part_names[i] for i in range(1, PARTS + 1)],
        )
        if np.isnan(table.parts).any() or (table.labels < 0).any():
            raise ValueError("a part or a class is missing")
    except (ValueError, KeyError, IndexError) as error:
        raise Unfit(f"holds text files that are not CUB's or do not fit together ({why(error)})") from None
    there = sum(1 for _ in itertools.takewhile(lambda name: (folder / "images" / name).is_dir(), table.classes))
    if there < classes:
        as_in = ", as in data=cub50_224," if there == 50 else ""
        raise Unfit(f"holds {there} classes, not data.classes={classes} (data.classes={there}{as_in} takes these)")
    for kind, its in (("training", table.train), ("test", ~table.train)):
        lacking = np.flatnonzero(np.bincount(table.labels[its], minlength=classes) == 0)
        if len(lacking):
            raise Unfit(f"has no {kind} image of class {table.classes[lacking[0]]} in train_test_split.txt")
    missing = [name for name in table.names if not (folder / "images" / name).is_file()]
    if missing:
        raise Unfit(f"lacks {len(missing)} of {len(table.names)} images, such as images/{missing[0]}")
    return table


def _named(path: Path) -> dict[int, str]:
    """A file whose lines are a number and a name."""
    lines = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {int(number): name.strip() for number, _, name in lines}


def _numbers(path: Path, columns: int) -> np.ndarray:
    """A file of numbers (lines, columns)."""
    return np.array(path.read_text(encoding="utf-8").split(), float).reshape(-1, columns)


def check(data: DictConfig) -> None:
    """Raises UserError for a config of birds that makes no sense, whatever files there are."""
    if data.canvas > data.side:
        raise UserError(
            f"data.canvas={data.canvas} is larger than data.side={data.side}, the shorter side of the stored images: "
            f"no crop fits into them"
        )


def recipe(data: DictConfig) -> dict:
    """The part of a data config that decides what is stored."""
    keys = ("source", "classes", "side", "validation", "seed")
    everything: dict[str, Any] = OmegaConf.to_container(data, enum_to_str=True)  # type: ignore[assignment]
    return {key: everything[key] for key in keys}


def store(data: DictConfig, scratch: Path, workers: int | None = None) -> dict:
    """Store every image at the size that training needs, as three sets; returns what `sets.json` says of them.

    {split}_images.bin: the images of `StoredCub`, one after the other; {split}.npz: the rest of it. The shorter side
    is `data.side`, the aspect is kept. `test` and `train` are the official split; `data.validation` images of each
    class are taken out of `train` by a permutation that depends on the seed and the class alone, so that they are the
    same whatever `data.classes` is. The bytes depend on neither the machine, the number of workers nor interruptions.
    Written to `scratch` and moved to `data.stored` when whole.
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
    """Which rows of the table make up each set. Validation takes turns among the classes, the others keep its order."""
    held_out = []
    for label, name in enumerate(table.classes):
        its = np.flatnonzero(table.train & (table.labels == label))
        if data.validation >= len(its):
            raise UserError(
                f"data.validation={data.validation} leaves none of the {len(its)} training images of {name}: lower it"
            )
        # The legacy generator's streams are frozen for good, so the split is too.
        held_out.append(np.random.RandomState([data.seed, label]).permutation(its)[: data.validation])
    validation = np.stack(held_out, 1).ravel()
    train = np.setdiff1d(np.flatnonzero(table.train), validation)
    return {"train": train, "validation": validation, "test": np.flatnonzero(~table.train)}


def _write(
    work: Path, split: str, table: Table, members: np.ndarray, images: Iterable[tuple[np.ndarray, tuple[int, int]]]
) -> dict:
    """Write one set, given what `_resized` makes of its members; returns what sets.json says of it."""
    sizes, originals, hashed = [], [], hashlib.sha256()
    with (work / f"{split}_images.bin").open("wb") as out:
        for image, original in images:
            out.write(image)  # type: ignore[arg-type]
            hashed.update(image)  # type: ignore[arg-type]
            sizes.append(image.shape[:2])
            originals.append(original)
    per_side = 2 / np.array(originals, float)  # (n, 2) of the frame's units in a pixel, across and down
    boxes, parts = table.boxes[members], table.parts[members]
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    placed = np.concatenate([parts[..., :2] * per_side[:, None] - 1, parts[..., 2:]], -1)
    facts = {
        "sizes": np.array(sizes),
        "labels": table.labels[members],
        "parts": placed.astype(np.float32),
        "boxes": (corners * per_side[:, None] - 1).reshape(-1, 4).astype(np.float32),
        "names": table.names[members],
    }
    np.savez(work / f"{split}.npz", **facts)
    made = open_set(work, split)
    return {
        "images": len(members),
        "bytes": len(made.pixels),
        "sha256": hashed.hexdigest(),
        "facts": hashlib.sha256((work / f"{split}.npz").read_bytes()).hexdigest(),
        "spot": made.spot(),
    }


def open_set(folder: Path, split: str) -> StoredCub:
    """A set in `folder`, unchecked. Raises OSError, ValueError, KeyError, EOFError or BadZipFile if it is damaged."""
    with np.load(folder / f"{split}.npz") as kept:
        return StoredCub(np.memmap(folder / f"{split}_images.bin", mode="r"), **{name: kept[name] for name in FACTS})


def _resized(folder: Path, name: str, side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image (height, width, 3) uint8 whose shorter side is `side`; the width and height that it came with.

    Pillow and the libjpeg-turbo in it decode and resize in integers, so the bytes are the same on every machine.
    """
    try:
        with Image.open(folder / "images" / name) as opened:
            image = opened.convert("RGB")  # some are grey
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise Unfit(f"holds images/{name}, which is no whole image ({why(error)})") from None
    shorter = min(image.size)
    size = tuple((2 * length * side + shorter) // (2 * shorter) for length in image.size)
    # Paper: does not say how. We: bilinear over all pixels that fall into one, as torchvision does for ImageNet.
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)), image.size  # type: ignore[arg-type]


def _in_order(
    work: "Callable[[Item], Made]", items: "Iterable[Item]", workers: int, tell: Callable[[int], None]
) -> "Generator[Made]":
    """`work(item)` of each item, in their order, made by threads a few items ahead. `tell` hears how many are done.

    Threads, because Pillow decodes and resizes without the interpreter's lock.
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
    """What `data.raw` holds, and the folder CUB_200_2011: the same, or what the archive unpacks to within the block."""
    packed, folder = Path(data.raw, f"{CUB}.tgz"), Path(data.raw, CUB)
    if packed.exists():
        room = scratch / f"{Path(data.stored).name}.raw"
        try:
            _unpack(packed, room)
            yield packed, room / CUB
        finally:
            shutil.rmtree(room, ignore_errors=True)
    elif folder.is_dir():
        yield folder, folder
    else:
        raise UserError(f"{packed} is missing: run `python -m stn.fetch data={data.name}`")


def _unpack(packed: Path, room: Path) -> None:
    """Unpack the images and what is read of the text files to `room`."""
    shutil.rmtree(room, ignore_errors=True)
    size = packed.stat().st_size
    with (
        writing(room),
        whole(packed),
        progress(f"unpacking {packed}", size) as tell,
        archive(packed, tell, folders=True) as files,
    ):
        for name, stream in files:
            below = PurePosixPath(name)
            if below.parts[0] != CUB or ".." in below.parts:
                continue
            if str(below.relative_to(CUB)) in TEXTS or below.parts[1:2] == ("images",):
                target = room / below
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
