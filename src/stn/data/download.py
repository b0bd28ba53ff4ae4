"""Raw data: fetched once, checked, never changed.

`$STN_DATA_MIRROR`, a folder or an http, https or file URL laid out as `mnist/ svhn/ cub/ weights/`, is asked first,
then the official URLs in turn. A file grows in `outputs/downloads/`, which outlives DVC's deletion of a stage's outs
and lets an interrupted download continue. It is renamed into place once its checksum is right: what stands there is
whole.
"""

import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from stn.data.progress import progress, say, why, writing
from stn.data.reading import BrokenArchive, archive
from stn.errors import UserError

SCRATCH = Path("outputs/downloads")
TIMEOUT = 30.0  # seconds without a single byte
ATTEMPTS = 3  # in a row that bring nothing new, per source
PAUSE = 1.0  # seconds before the second attempt, doubled each time
CHUNK = 1 << 16

SVHN = "http://ufldl.stanford.edu/housenumbers/"
SVHN_BYTES = {"train": 404_141_560, "test": 276_555_967, "extra": 1_955_489_752}  # no checksum is published
DIGITS = "digitStruct.mat"  # the labels and boxes in each archive of SVHN
LABELS = "labels.json"  # the labels of photographs of house numbers, without boxes
ELSEWHERE = {  # parts of a source of house numbers that lie in another folder of a mirror
    ("svhn_photos", "extra"): ("svhn_strips", "train"),
    ("svhn_photos", "test"): ("svhn_strips", "test"),
}
LABELLED = {("svhn_photos", "train")}  # folders of a mirror that hold LABELS in place of DIGITS
CUB = "CUB_200_2011"  # the archive's name without its suffix, and the folder in it
CUB_URLS = (
    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
    "https://s3.amazonaws.com/fast-ai-imageclas/CUB_200_2011.tgz",  # the same bytes, kept by fast.ai
)
CUB_MD5, CUB_BYTES = "97eceeb196236b17998738112f37df78", 1_150_585_339


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: `urls` in the order in which to try them, `md5` of the whole file and `size` in bytes if known.

    `holds` is the name of a file that must be in it if it is a tar.gz, which is then read to its end.
    """

    name: str
    urls: tuple[str, ...]
    md5: str | None
    size: int | None = None
    holds: str | None = None


def download(file: RemoteFile, folder: Path, mirror_folder: str) -> Path:
    """Make `folder / file.name` the checked file and return its path; a good file already there costs one reading.

    `mirror_folder` is its folder within the mirror. A mirror that lacks the file is passed over with a notice; one that
    holds other bytes under its name is an error, because the mirror was chosen on purpose.

    Raises UserError: no source has the file, the mirror's copy is wrong, or a path cannot be written.
    """
    target = folder / file.name
    fault = _fault(target, file)
    if fault is None:
        return target
    say(f"{target} {fault}: fetching it")
    mirror = _mirror()
    at_mirror = f"{mirror}/{mirror_folder}/{file.name}" if mirror else None
    part = SCRATCH / mirror_folder / f"{file.name}.part"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(part):
        if _fault(target, file) is None:  # another process was faster
            return target
        failures: list[str] = []
        for url in [at_mirror, *file.urls] if at_mirror else file.urls:
            try:
                _fetch(file, url, part)
            except _WrongContent as error:
                if url == at_mirror:
                    raise UserError(f"{_shown(url)} {error}; replace it, or correct STN_DATA_MIRROR") from None
                failures.append(f"{_shown(url)} {error}")
            except _Failed as error:
                failures.append(f"{_shown(url)}: {error}")
            else:
                move_in(part, target)
                return target
            if url == at_mirror:
                say(f"the mirror cannot give {file.name} ({failures[-1]}): trying the official sources")
        at_first = f"mirror: {failures[0]}; " if at_mirror and len(failures) > 1 else ""
        raise UserError(
            f"could not download {file.name} from any of {len(failures)} sources ({at_first}last: {failures[-1]}); "
            f"set STN_DATA_MIRROR to a folder or URL that holds {mirror_folder}/{file.name}"
        )


def fetch_mnist(folder: Path) -> list[Path]:
    """The four original gzipped files of MNIST (60,000 training and 10,000 test digits), checked, in `folder`."""
    from torchvision.datasets import MNIST  # for the names, checksums and hosts that torchvision keeps current

    return [
        download(RemoteFile(name, tuple(mirror + name for mirror in MNIST.mirrors), md5), folder, "mnist")
        for name, md5 in MNIST.resources
    ]


def fetch_numbers(folder: Path, source: str, extra: bool) -> list[Path]:
    """House numbers: `folder/train.tar.gz` or the folder that it unpacks to; so `test`, and with `extra` also `extra`.

    `source` is `svhn` (format 1, whole images), which has an official URL, or a folder of the mirror in its layout, of
    which parts may lie `ELSEWHERE`.
    """
    return [_fetch_part(folder, source, part) for part in ("train", "test", *(["extra"] if extra else []))]


def _fetch_part(folder: Path, source: str, part: str) -> Path:
    packed, unpacked, place = folder / f"{part}.tar.gz", folder / part, ELSEWHERE.get((source, part), (source, part))
    if not packed.exists():
        table = LABELS if place in LABELLED else DIGITS
        copied = _copied(unpacked, _at_mirror(*place), partial(_numbers_fault, table), (table, "*.png"))
        if copied:
            return copied
    if source == "svhn":
        file = RemoteFile(packed.name, (SVHN + packed.name,), None, SVHN_BYTES[part], holds=DIGITS)
        return download(file, folder, source)
    raise UserError(f"{source} has no official URL: set STN_DATA_MIRROR to a folder that holds {'/'.join(place)}")


def fetch_birds(folder: Path, fault: Callable[[Path], str | None]) -> list[Path]:
    """CUB-200-2011: `folder/CUB_200_2011.tgz`, or the folder that it unpacks to if a mirror holds only that.

    `fault` says what such a folder lacks, to be read after its name (`stn.experiments.cub.archive.fault`).
    """
    packed, unpacked, at_mirror = folder / f"{CUB}.tgz", folder / CUB, _at_mirror("cub", CUB)
    if not packed.exists():
        if at_mirror and at_mirror.with_suffix(".tgz").exists():
            at_mirror = None  # there is a checksum for it
        copied = _copied(unpacked, at_mirror, fault, ("*.txt", "parts/*.txt", "images/*/*"))
        if copied:
            return [copied]
    return [download(RemoteFile(packed.name, CUB_URLS, CUB_MD5, CUB_BYTES), folder, "cub")]


def _at_mirror(source: str, name: str) -> Path | None:
    """The place of a folder `source/name` in a mirror that is a folder itself."""
    mirror = _mirror() or ""
    if not mirror.startswith("file:"):
        return None
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(mirror).path), source, name)


def _copied(
    target: Path, at_mirror: Path | None, fault: Callable[[Path], str | None], patterns: tuple[str, ...]
) -> Path | None:
    """`target`, a folder that an archive unpacks to, once it is good or copied whole from the mirror; else None.

    `fault` says what is wrong with such a folder, to be read after its name; `patterns` are those of the
    files that are copied.
    """
    if target.is_dir():
        problem = fault(target)
        if problem is None:
            return target
        say(f"{target} {problem}: fetching it")
    if at_mirror is None or not at_mirror.is_dir():
        return None
    if problem := fault(at_mirror):
        raise UserError(f"{at_mirror} {problem}; replace it, or correct STN_DATA_MIRROR")
    scratch = SCRATCH / at_mirror.parent.name / f"{at_mirror.name}.part"
    with _alone(scratch), writing(target):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        files = [file for pattern in patterns for file in at_mirror.glob(pattern)]
        with progress(str(target), len(files), unit="files") as tell:
            for count, file in enumerate(files):
                copy = scratch / file.relative_to(at_mirror)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
                tell(count)
        target.parent.mkdir(parents=True, exist_ok=True)
        move_in(scratch, target)
    return target


def _numbers_fault(table: str, folder: Path) -> str | None:
    """What is wrong with a folder of images whose labels are in `table`; to be read after its name."""
    if not (folder / table).is_file():
        return f"holds no {table}"
    return None if any(folder.glob("*.png")) else "holds no PNG image"


def export_embedded(folder: Path) -> list[Path]:
    """Write the 8x8 digits inside scikit-learn as `images.npy` and `labels.npy`: what fetching is to MNIST."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "images.npy", bunch.images.astype(np.uint8))
        np.save(folder / "labels.npy", bunch.target.astype(np.int64))
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}; set data.raw elsewhere") from error
    return [folder / "images.npy", folder / "labels.npy"]


class _Failed(Exception):
    """This source cannot give the file; the next may."""


class _Interrupted(_Failed):
    """It may yet, if asked again."""


class _WrongContent(_Failed):
    """It gave other bytes than the checksum asks for. Reads on from the name of the file or source."""


def _mirror() -> str | None:
    """`$STN_DATA_MIRROR` as a URL without a slash at the end."""
    mirror = os.environ.get("STN_DATA_MIRROR")
    if not mirror:
        return None
    if re.match(r"(https?|file)://", mirror):
        return mirror.rstrip("/")
    folder = Path(mirror).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"STN_DATA_MIRROR={mirror} is neither a folder nor an http, https or file URL; correct or unset it"
        )
    return folder.resolve().as_uri()


def _fetch(file: RemoteFile, url: str, part: Path) -> None:
    """Leave the whole, checked file at `part`, going on from what is there, or raise _Failed."""
    furthest, attempt = _size(part), 1
    inherited = furthest > 0  # bytes of an earlier run or another source
    while True:
        try:
            if not inherited or _fault(part, file) is not None:
                _receive(file, url, part)
        except _Interrupted as error:
            if _size(part) > furthest:
                furthest, attempt = _size(part), 1
            if attempt == ATTEMPTS:
                raise
            say(f"{file.name}: {error}; trying again")
            time.sleep(PAUSE * 2 ** (attempt - 1))
            attempt += 1
            continue
        fault = _fault(part, file)
        if fault is None:
            return
        part.unlink()
        if not inherited:
            raise _WrongContent(fault)
        inherited, furthest, attempt = False, 0, 1  # the old beginning may be the culprit: once more from the start


def _receive(file: RemoteFile, url: str, part: Path) -> None:
    """One request: append what `part` lacks, or start over where the server has it so."""
    offset = _size(part)
    headers = {"User-Agent": "stn"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # `part` is no beginning of that file
            part.unlink()
            return _receive(file, url, part)
        again = error.code in (408, 425, 429) or error.code >= 500
        raise (_Interrupted if again else _Failed)(f"HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise (_Failed if url.startswith("file:") else _Interrupted)(why(error)) from None
    except ValueError as error:  # no URL at all, which only STN_DATA_MIRROR can bring
        raise _Failed(why(error)) from None

    with response:
        start, total = _extent(response)
        if start > offset:
            raise _Failed(f"sent the bytes from {start}, asked for those from {offset}")
        if file.size is not None and total not in (None, file.size):
            raise _WrongContent(f"is {total} bytes long, expected {file.size}")
        with writing(part), part.open("ab") as out, progress(file.name, total, start) as tell:
            if start < offset:
                out.truncate(start)
            position = start
            while chunk := _read(response):
                out.write(chunk)
                position += len(chunk)
                tell(position)
    if total is not None and position < total:
        raise _Interrupted(f"the connection closed after {position} of {total} bytes")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where in the file the body starts, and the length of the whole file if the server tells it."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and content_range:
        start, total = content_range.groups()
        return int(start), None if total == "*" else int(total)
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _read(response: http.client.HTTPResponse) -> bytes:
    """The next bytes. The errors of a network are OSErrors, as those of a disk: here they part ways."""
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(why(error)) from None


def move_in(part: Path, target: Path) -> None:
    """Put a whole file or folder in place of what is at `target`.

    `data/` may lie on another disk than `outputs/`, where no rename reaches: move beside the target first.
    """
    beside = target.with_name(f".{target.name}.part")
    with writing(target):
        if part.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        shutil.move(part, beside)
        if beside.is_dir():
            shutil.rmtree(target, ignore_errors=True)  # no rename replaces a folder that holds something
        beside.replace(target)


@contextmanager
def put_whole(target: Path, scratch: Path) -> Iterator[Path]:
    """Yields an empty folder below `scratch` to fill; then it takes the place of `target`, whole or not at all."""
    work = scratch / f"{target.name}.part"
    with writing(target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        target.parent.mkdir(parents=True, exist_ok=True)
        move_in(work, target)


def _fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with the file at `path`, None if nothing is; to be read after a name."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if file.size is not None and size != file.size:
                return f"is {size} bytes long, expected {file.size}"
            md5 = hashlib.file_digest(stream, "md5").hexdigest() if file.md5 else None
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}; check the path and its permissions") from None
    if md5 != file.md5:
        return f"has MD5 {md5}, expected {file.md5}"
    return _archive_fault(path, file.holds) if file.holds else None


def _archive_fault(path: Path, holds: str) -> str | None:
    try:
        with progress(f"checking {path.name}", path.stat().st_size) as tell, archive(path, tell) as files:
            names = {name for name, _ in files}
    except BrokenArchive as error:
        return str(error)
    return None if holds in names else f"holds no {holds}"


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Keep other processes from `part`: one that still appends to it would spoil the file after it has moved in."""
    lock = part.with_suffix(".lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream = lock.open("wb")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{part.stem}: waiting for another process that downloads it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _shown(url: str) -> str:
    return url.removeprefix("file://")
