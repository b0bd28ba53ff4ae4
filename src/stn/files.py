"""Writes files so that a killed writer leaves no part of one, and names contents by digests."""

import errno
import fcntl
import hashlib
import os
import signal
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from stn.errors import UserError

# What reading a file of arrays (.npz) raises if it is missing or damaged.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
TYPED_IN = "STN_TYPED_IN"  # the folder where the command was typed, set by a command that goes on in another


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix; the file written there then replaces `path`."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with _removed(part):
        yield part
        part.replace(path)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a temporary file, which replaces `path` once it is complete. Raises OSError."""
    part = _beside(path)
    with _removed(part):
        with part.open("wb") as file:
            write(file)
        part.replace(path)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write these files in UTF-8. All are complete before the first is moved into place; interrupts wait for the moves.

    So files that belong together, such as those of a table, are of one run, unless a SIGKILL hits the moves. Raises
    UserError if a file cannot be written.
    """
    parts = {path: _beside(path) for path in texts}
    try:
        with _removed(*parts.values()):
            for path, part in parts.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                part.write_bytes(texts[path].encode())
            with _uninterrupted():
                for path, part in parts.items():
                    part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or ', '.join(map(str, texts))}: {error.strerror}; make it writable and run "
            "this again"
        ) from error


@contextmanager
def alone(lock: Path, waiting: str) -> Iterator[None]:
    """Keeps other processes out of this block by the file `lock`, and prints `waiting` while one of them is in it.

    On a file system without locks none is kept out. Raises OSError if `lock` cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        yield


def digest(*parts: bytes | str) -> str:
    """The digest of the parts: twelve hexadecimal digits."""
    hasher = hashlib.blake2b(digest_size=6)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.hexdigest()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delays SIGINT and SIGTERM until the end of this block. Only the main thread receives them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in received:
            signal.raise_signal(number)


@contextmanager
def _removed(*parts: Path) -> Iterator[None]:
    """Removes these files at the end of this block."""
    try:
        yield
    finally:
        for part in parts:
            with suppress(OSError):  # the error that matters was raised before
                part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def openable(path: Path) -> str:
    """A path as its reader can open it: from the folder where the command was typed."""
    return os.path.relpath(path, os.environ.get(TYPED_IN, "."))
