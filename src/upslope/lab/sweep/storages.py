"""The databases in which Optuna keeps the trials of a sweep."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upslope.core.reading import brief
from upslope.errors import UpslopeError
from upslope.lab.sweep.samplers import require_optuna, without_warnings

BUSY_SECONDS = 60
"""Number of seconds that a process waits while another one writes to the same SQLite file."""
BEGIN_SECONDS, AGAIN_SECONDS = 30.0, 0.5
"""Number of seconds that a process waits while another one creates the tables or the study, and seconds between
checks."""


def storage_of(storage: str) -> Any:
    """The storage at a URL. SQLite waits while another process writes; this function waits while another process
    creates the same tables."""
    optuna = require_optuna()
    arguments = {"connect_args": {"timeout": BUSY_SECONDS}} if storage.startswith("sqlite") else {"pool_pre_ping": True}
    until = time.monotonic() + BEGIN_SECONDS
    with without_warnings():
        while True:
            try:
                found = optuna.storages.RDBStorage(storage, engine_kwargs=arguments)
                if storage.startswith("sqlite"):
                    lock_at_once(found.engine)
                return found
            except Exception as error:  # each database driver has its own exceptions
                if not is_made_twice(error) or time.monotonic() > until:
                    raise
            time.sleep(AGAIN_SECONDS)


def lock_at_once(engine: Any) -> None:
    """Let SQLite transactions take the lock when they begin, not when they first write. Otherwise two processes could
    both read that a trial is waiting, and both take it."""
    from sqlalchemy import event

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # keeps the driver from beginning transactions itself

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # closes connections that were opened earlier


def is_made_twice(error: Exception) -> bool:
    """Whether a table or row could not be created because another process has just created it."""
    return type(error).__name__ == "IntegrityError" or "already exists" in str(error)


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Turn the errors of a database into one message that omits the password, which a URL may contain."""
    try:
        yield
    except UpslopeError:
        raise
    except Exception as error:  # each database driver has its own exceptions
        scheme = storage.partition(":")[0] if "://" in storage else "?"
        words = brief(error).replace(storage, f"{scheme}://…")
        raise UpslopeError(
            f"The storage {scheme}://… cannot be used: {type(error).__name__}: {words}. Pass --storage a URL such as "
            "sqlite:///study.db or postgresql+psycopg://user@host/database, and install its driver (pip install "
            '"psycopg[binary]").'
        ) from error


def is_of_storage(error: Exception) -> bool:
    """Whether an error comes from the database, e.g. because its server cannot be reached."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return "sqlalchemy" in modules or type(error).__name__ == "StorageInternalError"
