"""What every front door does round its work: settle the environment, and tell errors and interrupts in one line."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stn.checkout import foreign_source
from stn.environment import check_folder, settle
from stn.errors import UserError

HELP = {"-h", "--help", "--hydra-help", "--version"}  # what can be asked for in any folder


@contextmanager
def guard() -> Iterator[None]:
    """Prints a UserError as `error: ...` on stderr and exits with 2; an interrupt exits with 130.

    The current folder must be a project's, and the code that runs must be that project's: else it is such an error too.
    """
    try:
        settle()
        if not HELP & set(sys.argv[1:]):
            check_folder()
            _refuse_foreign_code()
        yield
        if sys.stdout:
            sys.stdout.flush()  # here, not at Python's end, where an error could not be caught
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python writes at its end
        sys.exit(141)  # what a shell makes of SIGPIPE


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe from which nobody reads any more, as after `| head`."""
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is none, or it is no file
        return False
    reader = select.poll()
    reader.register(stdout, 0)
    return bool(reader.poll(0))


def _refuse_foreign_code() -> None:
    if source := foreign_source():
        cure = "unset PYTHONPATH" if os.environ.get("PYTHONPATH") else "run `make setup` there and use its .venv"
        raise UserError(f"this Python runs the code in {Path(__file__).parents[1]}, not {source}: {cure}")
