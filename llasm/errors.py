"""The one exception that a user can cause."""


class LlasmError(ValueError):
    """A mistake in what the user gave: one line that names the value and what would be right.

    The command line prints it without a traceback and exits with code 2; a library caller
    catches it as a ValueError.
    """
