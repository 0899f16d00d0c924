"""The error that upslope raises on bad input."""


class UpslopeError(Exception):
    """Invalid input. The message states what was requested, why it is not possible, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class Interruption(BaseException):
    """A request to stop that arrives during a call. It does not mean that the call failed."""


STOPS = (KeyboardInterrupt, Interruption)
"""Exceptions that never mean that an environment failed. Every other exception counts as a failure, even if its class
derives only from `BaseException`, such as `SystemExit`, a panic in a Rust library, or a failure raised by a test
framework."""
