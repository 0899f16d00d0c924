"""The error that upslope raises on bad input."""


class UpslopeError(Exception):
    """Invalid input. The message states what was requested, why it is not possible, and what to do.

    The command line prints the message without a traceback and exits with status 2.
    """


class Interruption(BaseException):
    """A request to stop that arrives during a call. It does not mean that the call failed."""


STOPS = (KeyboardInterrupt, Interruption)
"""Exceptions that an environment's failure never raises. Every other one is a failure, also if its class derives from
`BaseException` alone, such as `SystemExit`, a panic of a library in Rust, or the failure of a test framework."""
