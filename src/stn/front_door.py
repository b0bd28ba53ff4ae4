"""The frame of every front door: it prepares the environment, and reports errors and interrupts in one line."""

import atexit
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stn.checkout import foreign_source
from stn.environment import check_folder, settle
from stn.errors import UserError

OUTERMOST = "STN_FRONT_DOOR"  # the process of the front door that started the others: on Ctrl-C it speaks for them
NO_MEMORY = (
    "not enough memory: lower budget.batch_size, or keep it and pass each batch in parts, with trainer.accumulate=8; "
    "make takes JOBS=1, one cell at a time"
)
HELP = {"-h", "--help", "--hydra-help", "--version"}  # these work in any folder


@contextmanager
def guard(describe_rest: Callable[[], str] = str) -> Iterator[None]:
    """Prints a UserError as `error: ...` on stderr and exits with 2; an interrupt exits with 130.

    The line on an interrupt says how to go on, and then what `describe_rest` says of files that are left changed.

    The current folder must be a project's, and the running code that project's: else it exits with such an error too.
    Where one front door starts another, the first alone reports an interrupt, and reports it once.
    """
    own = str(os.getpid())
    outermost = os.environ.setdefault(OUTERMOST, own) == own
    try:
        settle()
        if not HELP & set(sys.argv[1:]):
            check_folder()
            _refuse_foreign_code()
        yield
        if sys.stdout:
            sys.stdout.flush()  # here, because an error at Python's exit could not be caught
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, RuntimeError, MemoryError) as error:
        if _is_out_of_memory(error):
            print(f"error: {NO_MEMORY}", file=sys.stderr)
            sys.exit(2)
        if not _is_interrupt(error):
            raise
        _on_interrupt(signal.SIG_IGN)  # further ones, until the line is printed
        if outermost:
            print(f"interrupted; run the same command again{describe_rest()}", file=sys.stderr, flush=True)
        _on_interrupt(_end_at_once)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        sys.exit(141)  # a shell's status for SIGPIPE
    finally:
        if outermost:
            os.environ.pop(OUTERMOST, None)  # a front door within another of this process may have done so
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a job in the background
            atexit.register(_on_interrupt, _end_at_once)


def _on_interrupt(handler: Any) -> None:
    """Handle SIGINT so from now on. Python allows this in the main thread only."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _end_at_once(number: int, frame: object) -> None:
    """End without a traceback: all that is left is Python's own end, which waits for threads and unloads modules."""
    os._exit(130)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt is behind an error: where it cuts `torch.save` short, that raises a RuntimeError instead."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of this machine or of its GPU did not suffice."""
    kind = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # PyTorch's, of a GPU
    return kind or "can't allocate memory" in str(error)


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more, as after `| head`."""
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is no stdout, or it is no file
        return False
    reader = select.poll()
    reader.register(stdout, 0)
    return bool(reader.poll(0))


def _refuse_foreign_code() -> None:
    if source := foreign_source():
        cure = "unset PYTHONPATH" if os.environ.get("PYTHONPATH") else "run `make setup` there and use its .venv"
        raise UserError(f"this Python runs the code in {Path(__file__).parents[1]}, not {source}: {cure}")
