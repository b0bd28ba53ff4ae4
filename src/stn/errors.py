"""The one exception that is meant for the user's eyes, and how it meets them."""

import sys
from contextlib import contextmanager


class UserError(Exception):
    """One line: what is wrong, where, and what to do."""


@contextmanager
def told():
    """Prints a UserError as `error: ...` on stderr and exits with 2; an interrupt exits with 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
