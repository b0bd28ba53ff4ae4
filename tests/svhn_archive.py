"""Small archives in the exact form of SVHN, format 1: `train/1.png` ... and `train/digitStruct.mat` in a tar.gz."""

import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

FIELDS = ("height", "label", "left", "top", "width")  # as MATLAB orders them
HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Dec  5 21:09:26 2011 HDF5 schema 1.00 ."

Digit = tuple[float, float, float, float, int]  # left, top, width, height, label
Entry = tuple[str, list[Digit]]


def write_digit_struct(path: Path, entries: list[Entry], times: bool = True, chunks: tuple | None = None) -> None:
    """A MATLAB v7.3 file: HDF5 after a user block of 512 bytes, references from /digitStruct into /#refs#.

    With one digit the numbers themselves stand in an image's group, with several references to them. `times` and
    `chunks` are ways to write a data set that a reader must not depend on.
    """
    with h5py.File(path, "w", userblock_size=512, libver="earliest") as file:
        refs, struct = file.create_group("#refs#"), file.create_group("digitStruct")
        struct.attrs["MATLAB_class"] = np.bytes_("struct")

        def put(content: np.ndarray, kind: str) -> h5py.Reference:
            dataset = refs.create_dataset(_letters(len(refs)), data=content, track_times=times, chunks=chunks)
            dataset.attrs["MATLAB_class"] = np.bytes_(kind)
            return dataset.ref

        names, boxes = [], []
        for name, digits in entries:
            text = np.frombuffer(name.encode("utf-16-le"), np.uint16)[:, None]
            names.append(refs.create_dataset(_letters(len(refs)), data=text))
            names[-1].attrs["MATLAB_class"] = np.bytes_("char")
            names[-1].attrs["MATLAB_int_decode"] = np.int32(2)
            names[-1] = names[-1].ref
            group = refs.create_group(_letters(len(refs)))
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            for field in FIELDS:
                column = [digit[("left", "top", "width", "height", "label").index(field)] for digit in digits]
                if len(column) == 1:
                    single = group.create_dataset(field, data=np.array([column], np.float64), track_times=times)
                    single.attrs["MATLAB_class"] = np.bytes_("double")
                else:
                    several = group.create_dataset(field, (len(column), 1), h5py.ref_dtype)
                    several[:, 0] = [put(np.array([[value]], np.float64), "double") for value in column]
            boxes.append(group.ref)
        for key, column in (("bbox", boxes), ("name", names)):
            struct.create_dataset(key, (len(column), 1), h5py.ref_dtype)[:, 0] = column
    with path.open("r+b") as stream:
        stream.write(HEADER.ljust(124) + b"\x00\x02IM")


def _letters(number: int) -> str:
    """a, b, ..., z, ba, ...: the names MATLAB gives."""
    letters = ""
    while not letters or number:
        number, digit = divmod(number, 26)
        letters = chr(97 + digit) + letters
    return letters


def ramp(width: int, height: int, blue: int) -> Image.Image:
    """An image that tells where it is: red is the column, green the row (both below 256)."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = np.arange(width), np.arange(height)[:, None], blue
    return Image.fromarray(pixels)


def write_part(folder: Path, n: int, seed: int) -> list[Entry]:
    """A folder of n ramps of varying size with one to five digits each; the digits of its digitStruct.mat."""
    draws = np.random.RandomState(seed)
    folder.mkdir(parents=True)
    entries = []
    for i in range(1, n + 1):
        digits, height = 1 + (i - 1) % 5, draws.randint(12, 30)
        widths = draws.randint(6, 14, digits)
        left, top = draws.randint(0, 40), draws.randint(0, 40)
        boxes = [(left + widths[:k].sum(), top + k % 2, widths[k], height, draws.randint(1, 11)) for k in range(digits)]
        size = left + widths.sum() + draws.randint(1, 60), top + height + draws.randint(2, 60)
        ramp(*map(int, size), blue=i % 256).save(folder / f"{i}.png")
        entries.append((f"{i}.png", [tuple(map(float, box)) for box in boxes]))
    write_digit_struct(folder / "digitStruct.mat", entries)
    return entries


def write_photographs(folder: Path, numbers: dict[str, str]) -> None:
    """A folder of ramps of varying size and the labels.json of their numbers; blue is the place in it, from 1 on."""
    folder.mkdir(parents=True)
    for i, name in enumerate(numbers, 1):
        ramp(40 + 20 * i, 30 + 10 * i, blue=i).save(folder / name)
    labels = {name: {"number": number, "agree": "A3"} for name, number in numbers.items()}
    (folder / "labels.json").write_text(json.dumps(labels))


def pack(folder: Path, archive: Path) -> Path:
    """The folder as an archive of the official form."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.addfile(_member(f"{folder.name}/", 0, tarfile.DIRTYPE))
        for path in sorted(folder.iterdir(), reverse=True):  # an order that is not the table's
            tar.addfile(_member(f"{folder.name}/{path.name}", path.stat().st_size), io.BytesIO(path.read_bytes()))
    return archive


def _member(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.mode = size, kind, 0o755 if kind == tarfile.DIRTYPE else 0o644
    return member
