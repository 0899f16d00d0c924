"""What is said when upslope fails under settings of JAX for which it is not made."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from upslope.core.reading import brief
from upslope.errors import UpslopeError

USUAL: dict[str, Any] = {
    "jax_enable_x64": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_debug_nans": False,
    "jax_debug_infs": False,
    "jax_disable_jit": False,
}
"""Settings that the shell, or the library of an environment, may have changed, and their usual values."""


def unusual_settings() -> dict[str, Any]:
    """The settings that are not as usual; none as long as JAX is not imported."""
    jax = sys.modules.get("jax")
    if jax is None:
        return {}
    now = {name: getattr(jax.config, name, usual) for name, usual in USUAL.items()}
    return {name: value for name, value in now.items() if value != USUAL[name]}


@contextmanager
def settings_in_words() -> Iterator[None]:
    """Name the unusual settings of JAX under which an error occurred.

    Raises:
        UpslopeError: there are such settings.
    """
    try:
        yield
    except UpslopeError:
        raise
    except Exception as error:
        if not (unusual := unusual_settings()):
            raise
        settings = ", ".join(f"{name}={value}" for name, value in unusual.items())
        raise UpslopeError(
            f"upslope's programs are not made for {settings}, and failed: {type(error).__name__}: {brief(error)}. The "
            f"shell ({next(iter(unusual)).upper()}), your code, or the library of the environment has set this in JAX. "
            "Leave it as it is by default."
        ) from error
