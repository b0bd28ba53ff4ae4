"""Readers of raw data: gzipped IDX files, and the files in a tar.gz."""

import gzip
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from stn.data.progress import why
from stn.errors import UserError

CHUNK = 1 << 16
AGAIN = "delete it and run `python -m stn.fetch` again"


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file as a writable uint8 array: images (n, height, width) or labels (n,).

    Raises UserError: the file is missing, not gzip, truncated, not an IDX file of bytes, or its header has another
    length.
    """
    remedy = "delete it and run `python -m stn.fetch data=mnist_r` (or check STN_DATA_MIRROR)"
    try:
        with gzip.open(path) as stream:
            content = stream.read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run `python -m stn.fetch data=mnist_r`") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file ({why(error)}); {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}; check the path and its permissions") from None
    magic = int.from_bytes(content[:4], "big")
    axes = {0x801: 1, 0x803: 3}.get(magic)  # 8 stands for unsigned bytes; the last digit is the number of axes
    if axes is None or len(content) < 4 + 4 * axes:
        raise UserError(f"{path} starts with 0x{content[:4].hex()}, expected 0x00000801 or 0x00000803; {remedy}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", axes, offset=4))
    content_size, expected = len(content) - 4 - 4 * axes, math.prod(shape)
    if content_size != expected:
        size = " x ".join(map(str, shape))
        raise UserError(f"{path} holds {content_size} bytes of data, its header promises {size} = {expected}; {remedy}")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy()


class BrokenArchive(Exception):
    """A tar.gz cannot be read to its end. The message follows the archive's name."""


@contextmanager
def archive(
    path: Path, tell: Callable[[int], None] = lambda amount: None, folders: bool = False
) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Yield the files in a tar.gz as pairs (name, stream), in order. Each stream must be read before the next pair.

    Names are without their folders unless `folders`. `tell` is called with the number of archive bytes read so far.
    Raises BrokenArchive, at the end of the block also for a wrong checksum, and the OSErrors of `open`.
    """

    def files() -> Iterator[tuple[str, IO[bytes]]]:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # else tarfile keeps them all: 200,000 in `extra`
            tell(packed.tell())
            if member.isfile():
                yield member.name if folders else PurePosixPath(member.name).name, tar.extractfile(member)  # type: ignore[misc]

    with path.open("rb") as packed:
        try:
            with gzip.open(packed) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
                yield files()
                while stream.read(CHUNK):  # read on to the end, where gzip checks the checksum
                    pass
        except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
            raise BrokenArchive(f"is not a complete tar.gz ({why(error)})") from None


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turn a BrokenArchive of the block into a UserError that names the archive."""
    try:
        yield
    except BrokenArchive as error:
        raise UserError(f"{path} {error}; {AGAIN}") from None
