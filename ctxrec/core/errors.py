"""The exceptions that commands turn into one line instead of a traceback."""


class UserError(ValueError):
    """A mistake in the user's input: says what was found, what was expected and what to do.

    Commands print its one line on stderr and exit with status 2; nothing prints a traceback for it.
    """


class Stopped(Exception):
    """A long command was asked to end, has saved its work, and goes on when it is run again."""


class Failed(Exception):
    """A long command could not go on for a reason outside of it; goes on when the same command is run again."""
