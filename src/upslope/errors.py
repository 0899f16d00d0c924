"""The error that upslope raises on bad input."""


class UpslopeError(Exception):
    """Invalid input. The message states what was requested, why it is not possible, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """
