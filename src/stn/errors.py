"""The exception for errors that the user can fix."""


class UserError(Exception):
    """One line: what is wrong, where, and what to do."""
