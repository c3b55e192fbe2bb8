"""The one exception type that a user's mistake raises."""


class UserError(ValueError):
    """A mistake in the user's input: says what was found, what was expected and what to do.

    Commands print its one line on stderr and exit with status 2; nothing prints a traceback for it.
    """
