"""The error message for running out of memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from upslope.core.reading import brief
from upslope.errors import UpslopeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine or its accelerator has run out of memory. JAX has no dedicated exception type for this."""
    is_from_jax = type(error).__module__.partition(".")[0] in ("jax", "jaxlib")
    return isinstance(error, MemoryError) or (is_from_jax and "RESOURCE_EXHAUSTED" in str(error))


@contextmanager
def memory_in_words() -> Iterator[None]:
    """If memory runs out within this block, suggest which settings to lower.

    Raises:
        UpslopeError: there is not enough memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UpslopeError(
            f"There is not enough memory for this: {brief(error) or type(error).__name__}. Lower --num-envs, "
            "--rollout-steps, --seeds or the size of the networks; for a command without these flags, lower --episodes "
            "or --workers."
        ) from error
