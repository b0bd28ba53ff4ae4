"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """One line: what is wrong, where, and what to do."""
