"""Files that appear whole or not at all, wherever their writer is killed, and names for what they hold."""

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from stn.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a path beside `path`, with its suffix, to write to; what is there at the end takes the place of `path`."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    with _removed(part):
        yield part
        part.replace(path)


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """`write` gets the file to write to; it takes the place of `path` when all is written. Raises OSError."""
    part = _beside(path)
    with _removed(part):
        with part.open("wb") as file:
            write(file)
        part.replace(path)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write these files in UTF-8. All are written before the first is moved into place, and no interrupt comes between.

    So files that belong together, such as those of a table, are of one run; a SIGKILL would have to meet the moves.
    A UserError if one cannot be written.
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


def digest(*parts: bytes | str) -> str:
    """Twelve hexadecimal digits that stand for the parts."""
    hashed = hashlib.blake2b(digest_size=6)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """An interrupt, or a request to end, waits until the end of this block. Other threads receive none anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in received:
            signal.raise_signal(number)


@contextmanager
def _removed(*parts: Path) -> Iterator[None]:
    """Leaves none of these files behind."""
    try:
        yield
    finally:
        for part in parts:
            with suppress(OSError):  # what went wrong is told already
                part.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
