"""Raw data: each file is downloaded once, checked, and never changed.

`$STN_DATA_MIRROR`, a folder or an http, https or file URL laid out as `mnist/ svhn/ cub/ weights/`, is tried first,
then the official URLs in turn. Unfinished downloads lie in `outputs/downloads/`, which DVC never deletes, so they can
continue. A file is renamed into place once its checksum is right, so every file in place is complete.
"""

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
from pathlib import Path

import numpy as np

from stn.data.progress import progress, say, why, writing
from stn.data.reading import BrokenArchive, archive
from stn.errors import UserError
from stn.files import alone

SCRATCH = Path("outputs/downloads")
TIMEOUT = 30.0  # seconds without receiving a byte
ATTEMPTS = 3  # successive attempts without new bytes, per source
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
CHUNK = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """A file to download; `md5` and `size` in bytes are None if unknown. `urls` are tried in order.

    `holds` is the name of a file that a tar.gz must contain. The check reads the archive to its end.
    """

    name: str
    urls: tuple[str, ...]
    md5: str | None
    size: int | None = None
    holds: str | None = None


def download(file: RemoteFile, folder: Path, mirror_folder: str) -> Path:
    """Download a file to `folder / file.name`, check it and return its path. A good file already there is only checked.

    `mirror_folder` is the file's folder within the mirror. If the mirror lacks the file, a notice is printed and the
    official URLs are tried. Wrong content in the mirror is an error, because the user chose the mirror on purpose.

    Raises UserError: no source has the file, the mirror's file is wrong, or a path cannot be written.
    """
    target = folder / file.name
    fault = _fault(target, file)
    if fault is None:
        return target
    say(f"{target} {fault}: fetching it")
    mirror = find_mirror()
    mirror_url = f"{mirror}/{mirror_folder}/{file.name}" if mirror else None
    part = SCRATCH / mirror_folder / f"{file.name}.part"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(part):
        if _fault(target, file) is None:  # another process has downloaded it meanwhile
            return target
        failures: list[str] = []
        for url in [mirror_url, *file.urls] if mirror_url else file.urls:
            try:
                _fetch(file, url, part)
            except _WrongContent as error:
                if url == mirror_url:
                    raise UserError(f"{_shown(url)} {error}; replace it, or correct STN_DATA_MIRROR") from None
                failures.append(f"{_shown(url)} {error}")
            except _Failed as error:
                failures.append(f"{_shown(url)}: {error}")
            else:
                move_in(part, target)
                return target
            if url == mirror_url:
                say(f"the mirror cannot give {file.name} ({failures[-1]}): trying the official sources")
        mirror_error = f"mirror: {failures[0]}; " if mirror_url and len(failures) > 1 else ""
        raise UserError(
            f"could not download {file.name} from any of {len(failures)} sources ({mirror_error}last: {failures[-1]}); "
            f"set STN_DATA_MIRROR to a folder or URL that holds {mirror_folder}/{file.name}"
        )


def fetch_mnist(folder: Path) -> list[Path]:
    """Download MNIST's four gzipped files (60,000 training and 10,000 test digits) to `folder`; returns their paths."""
    from torchvision.datasets import MNIST  # torchvision keeps the names, checksums and hosts up to date

    return [
        download(RemoteFile(name, tuple(mirror + name for mirror in MNIST.mirrors), md5), folder, "mnist")
        for name, md5 in MNIST.resources
    ]


def find_in_mirror(source: str, name: str) -> Path | None:
    """The path of `source/name` in the mirror, which need not exist; None if the mirror is not a local folder."""
    mirror = find_mirror() or ""
    if not mirror.startswith("file:"):
        return None
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(mirror).path), source, name)


def copy_folder(
    target: Path, mirror_folder: Path | None, fault: Callable[[Path], str | None], patterns: tuple[str, ...]
) -> Path | None:
    """Copy an unpacked folder from the mirror to `target` unless it is there already, and return it; None if neither.

    `fault` returns what is wrong with a folder, or None. Files that match `patterns` are copied.
    """
    if target.is_dir():
        problem = fault(target)
        if problem is None:
            return target
        say(f"{target} {problem}: fetching it")
    if mirror_folder is None or not mirror_folder.is_dir():
        return None
    if problem := fault(mirror_folder):
        raise UserError(f"{mirror_folder} {problem}; replace it, or correct STN_DATA_MIRROR")
    scratch = SCRATCH / mirror_folder.parent.name / f"{mirror_folder.name}.part"
    with _alone(scratch), writing(target):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        files = [file for pattern in patterns for file in mirror_folder.glob(pattern)]
        with progress(str(target), len(files), unit="files") as tell:
            for count, file in enumerate(files):
                copied_file = scratch / file.relative_to(mirror_folder)
                copied_file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copied_file)
                tell(count)
        target.parent.mkdir(parents=True, exist_ok=True)
        move_in(scratch, target)
    return target


def export_embedded(folder: Path) -> list[Path]:
    """Write the 8x8 digits that scikit-learn contains as `images.npy` and `labels.npy`; returns the two paths."""
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
    """The source cannot provide the file."""


class _Interrupted(_Failed):
    """Another attempt may succeed."""


class _WrongContent(_Failed):
    """The content does not match the checksum or size. The message follows the source's name."""


def find_mirror() -> str | None:
    """`$STN_DATA_MIRROR` as a URL without a trailing slash; None if it is not set."""
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
    """Download the complete, checked file to `part`, continuing after the bytes already there; else raise _Failed."""
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
        inherited, furthest, attempt = False, 0, 1  # the inherited bytes may be wrong: try again from the start


def _receive(file: RemoteFile, url: str, part: Path) -> None:
    """Make one request: append what `part` lacks, or start over if the server sends the whole file."""
    offset = _size(part)
    headers = {"User-Agent": "stn"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # `part` is not shorter than the server's file
            part.unlink()
            return _receive(file, url, part)
        temporary = error.code in (408, 425, 429) or error.code >= 500
        raise (_Interrupted if temporary else _Failed)(f"HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise (_Failed if url.startswith("file:") else _Interrupted)(why(error)) from None
    except ValueError as error:  # a malformed URL, which can only come from STN_DATA_MIRROR
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
    """The offset at which the response's body starts in the file, and the file's length if the server states it."""
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and content_range:
        start, total = content_range.groups()
        return int(start), None if total == "*" else int(total)
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read the next bytes. A network error becomes _Interrupted here, because a disk error is an OSError as well."""
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(why(error)) from None


def move_in(part: Path, target: Path) -> None:
    """Replace `target` by a complete file or folder.

    It is moved beside the target before the rename, which works within one disk only: `data/` may lie on another disk
    than `outputs/`.
    """
    staged = target.with_name(f".{target.name}.part")
    with writing(target):
        if part.is_dir():
            shutil.rmtree(staged, ignore_errors=True)
        shutil.move(part, staged)
        if staged.is_dir():
            shutil.rmtree(target, ignore_errors=True)  # a rename cannot replace a folder that is not empty
        staged.replace(target)


@contextmanager
def put_whole(target: Path, scratch: Path) -> Iterator[Path]:
    """Yield an empty folder below `scratch` to fill. If the block succeeds, that folder replaces `target`."""
    work = scratch / f"{target.name}.part"
    with writing(target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
        target.parent.mkdir(parents=True, exist_ok=True)
        move_in(work, target)


def _fault(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with the file at `path`, as text to follow its name; None if nothing is."""
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
    """Lock `part` against other processes: one that still appends to it would damage the file after its rename."""
    lock = part.with_suffix(".lock")
    with writing(lock), alone(lock, f"{part.stem}: waiting for another process that downloads it"):
        yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _shown(url: str) -> str:
    return url.removeprefix("file://")
