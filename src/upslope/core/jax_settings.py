"""Explain errors that occur under JAX settings that upslope does not support."""

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
"""JAX settings that the shell or an environment's library may have changed, with their default values."""


def unusual_settings() -> dict[str, Any]:
    """The settings that differ from their defaults; none if JAX has not been imported."""
    jax = sys.modules.get("jax")
    if jax is None:
        return {}
    now = {name: getattr(jax.config, name, usual) for name, usual in USUAL.items()}
    return {name: value for name, value in now.items() if value != USUAL[name]}


@contextmanager
def settings_in_words() -> Iterator[None]:
    """If an error occurs within this block under unusual JAX settings, raise an error that names the settings.

    Raises:
        UpslopeError: an error occurred, and at least one setting is unusual.
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
            f"upslope does not support {settings}, and failed: {type(error).__name__}: {brief(error)}. The "
            f"shell ({next(iter(unusual)).upper()}), your code, or the environment's library has set this in JAX. "
            "Leave it at its default."
        ) from error
