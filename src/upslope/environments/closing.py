"""Close environments without letting an error in `close()` hide a result."""

from collections.abc import Callable, Iterable
from typing import Any

from upslope.core.messages import counted, told, warn
from upslope.errors import STOPS


def close_all(name: str, environments: Iterable[Any], say: Callable[[str], None] = warn) -> None:
    """Close every environment. An error in one is reported but does not prevent the others from being closed. An
    interrupt is raised after all of them are closed."""
    every = list(environments)
    errors: list[BaseException] = []
    interrupts: list[BaseException] = []
    for environment in every:
        try:
            environment.close()
        except STOPS as interrupt:
            interrupts.append(interrupt)
        except BaseException as error:
            errors.append(error)
    if errors:
        how_many = "" if len(every) == 1 else f" of {len(errors)} of {counted(len(every), 'environment')}"
        say(
            f"warning: {name} raised {told(errors[0])} in close(){how_many}. No result is lost, but "
            "resources that it opened may still be open."
        )
    if interrupts:
        raise interrupts[0]
