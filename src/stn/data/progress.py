"""Progress while data is downloaded, read and written, and clear errors where a file cannot be written."""

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stn.errors import UserError

SMALL = 1 << 20  # bytes: the progress of smaller files is not shown
SECONDS_BETWEEN_LINES = 10.0

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EEXIST: "move away the file that is there",
    errno.ENOTDIR: "move away the file that stands for one of its folders",
    errno.EISDIR: "move away the folder that is there",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a UserError that names the file that could not be written, or `path`."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "make it writable")
        raise UserError(f"cannot write {error.filename or path}: {why(error)}; {remedy} and run this again") from None


@contextmanager
def progress(name: str, total: int | None, amount: int = 0, unit: str = "MB") -> Iterator[Callable[[int], None]]:
    """Yield a function that shows the amount done so far: as a bar in a terminal, else as occasional lines.

    `total` and the amounts are in bytes if the unit is MB, else in units. `amount` is done at the start.
    """
    if unit == "MB" and total is not None and total < SMALL:
        yield lambda amount: None
    elif sys.stderr.isatty():
        from rich import progress as bars
        from rich.console import Console

        amounts = (bars.DownloadColumn(), bars.TransferSpeedColumn()) if unit == "MB" else (bars.MofNCompleteColumn(),)
        columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *amounts, bars.TimeRemainingColumn())
        with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total, completed=amount)
            yield lambda amount: bar.update(task, completed=amount)
    else:
        first, start = amount, time.monotonic()
        last_line = start
        scale = 1e6 if unit == "MB" else 1

        def tell(amount: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            if now - last_line < SECONDS_BETWEEN_LINES:
                return
            last_line = now
            line = f"{name}: {amount / scale:.0f} {unit}"
            if total is not None and amount > first:
                minutes, seconds = divmod(round((total - amount) * (now - start) / (amount - first)), 60)
                line = f"{name}: {amount / scale:.0f} of {total / scale:.0f} {unit}, ETA {minutes}:{seconds:02}"
            say(line)

        yield tell


def why(error: Exception) -> str:
    """The message of an error on one line, without error numbers and class names."""
    reason = getattr(error, "reason", None) or error
    return " ".join(str(getattr(reason, "strerror", None) or reason or type(reason).__name__).split())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
