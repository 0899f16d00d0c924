"""The one error that upslope raises on bad input."""


class UpslopeError(Exception):
    """Bad input, told in one message: what was asked, why it cannot be, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
