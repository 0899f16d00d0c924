"""Convert a library's environments to upslope's: their names, their spaces, and the results of their steps."""

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, PRNGKeyArray

from upslope.core.messages import told
from upslope.core.types import Transition
from upslope.core.user_modules import without_current_folder
from upslope.environments.base import CompiledEnvironment, Request, Source
from upslope.environments.compiled import check_protocol, finished
from upslope.environments.libraries import LIBRARIES, Library
from upslope.environments.names import near
from upslope.errors import UpslopeError
from upslope.models.encoders import BOARD

NO_LIMIT = int(np.iinfo(np.int32).max)
"""A time limit that no episode reaches."""
Maker = Callable[[str, dict[str, Any]], CompiledEnvironment]
"""Creates an environment from an id and keyword arguments."""


def source_of(prefix: str, ids: Callable[[], Iterable[str]], create: Maker) -> Source:
    """The source of a library's environments.

    Only `ids` and `create` import the library, so it is imported only when one of its environments is requested.
    """
    library = next(one for one in LIBRARIES if one.prefix == prefix)

    def make(request: Request) -> CompiledEnvironment:
        name = request.name.removeprefix(f"{prefix}:")
        with without_current_folder():
            import_library(library)
            known = list(ids())
            if name not in known:
                raise UpslopeError(not_there(library, name, known))
            environment = created(create, request.name, name, request.env_kwargs)
        check_protocol(environment, request.name)
        return finished(environment, request)

    return Source(f"{prefix}:", make)


def import_library(library: Library) -> None:
    """Import a library, or explain how to install it. Callers exclude the current folder from the search path, since
    another module there may have the same name."""
    if importlib.util.find_spec(library.package) is None:
        raise UpslopeError(
            f"{library.prefix}: names environments of {library.package}, which is not installed. Install it: "
            f"{library.install}"
        )
    try:
        importlib.import_module(library.package)
    except Exception as error:
        raise UpslopeError(
            f"{library.package} is installed but cannot be imported: {told(error)}. Install compatible "
            f"versions: {library.install}"
        ) from error


def module(name: str) -> Any:
    """Import a library's module when it is needed. A plain `import gymnax` in `gymnax.py` would look as if the file
    imported itself."""
    return importlib.import_module(name)


def not_there(library: Library, name: str, known: list[str]) -> str:
    """The message for an id that the library does not have."""
    hint = near(name, known)
    if not hint.startswith("Did"):
        hint = f"It has {', '.join(known)}."
    return f'{library.package} has no environment "{name}". {hint}'


def created(create: Maker, full_name: str, name: str, env_kwargs: dict[str, Any]) -> CompiledEnvironment:
    """Create an environment, or report the library's error."""
    try:
        return create(name, dict(env_kwargs))
    except UpslopeError:
        raise
    except Exception as error:
        what, remedy = (f" from {env_kwargs}", " Correct --env-kwargs.") if env_kwargs else ("", "")
        raise UpslopeError(f"{full_name} could not be created{what}: {told(error)}.{remedy}") from error


def raw(key: PRNGKeyArray) -> Array:
    """A key as the array of integers that libraries keep in their states."""
    return jax.random.key_data(key)


def arrays(state: Any) -> Any:
    """A state with its Python numbers converted to arrays."""
    return jax.tree.map(jnp.asarray, state)


def fitted(space: spaces.Space, observation: Any) -> Any:
    """An observation cast to the dtypes of its space."""
    if isinstance(space, spaces.Dict):
        return {name: fitted(part, observation[name]) for name, part in space.items()}
    dtype = np.dtype(space.dtype or np.float32)
    return jnp.asarray(observation).astype(jnp.int32 if dtype.kind == "i" else dtype)


def stepped(space: spaces.Space, observation: Any, reward: Any, terminated: Any) -> Transition:
    """A step's results as a transition that is not truncated."""
    return Transition(
        fitted(space, observation),
        jnp.asarray(reward, jnp.float32).reshape(()),
        jnp.asarray(terminated).astype(bool).reshape(()),
        jnp.zeros((), bool),
    )


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> spaces.Box:
    """A Box with the given bounds, which are numbers or arrays; a bound at the end of its dtype's range becomes
    infinite."""
    shape = tuple(int(n) for n in shape)
    low, high = (np.broadcast_to(np.asarray(x, dtype), shape) for x in (low, high))
    if np.dtype(dtype).kind == "f":
        most = np.finfo(dtype).max
        low, high = np.where(low <= -most, -np.inf, low), np.where(high >= most, np.inf, high)
    return spaces.Box(low.astype(dtype), high.astype(dtype), shape, dtype)


def is_board(shape: tuple[int, ...]) -> bool:
    """Whether an array of integers has the shape of a small board [height, width, …]."""
    return len(shape) in (2, 3) and all(3 <= side <= BOARD for side in shape[:2])


def space_like(observe: Callable[[Any], Any]) -> spaces.Space:
    """An unbounded space for observations that a library does not describe, with the shapes of `observe(key)`."""
    return unbounded(jax.eval_shape(lambda: observe(raw(jax.random.key(0)))))


def unbounded(observation: Any) -> spaces.Space:
    """The unbounded space of an array, or of dictionaries of arrays."""
    if hasattr(observation, "shape"):
        return box(-np.inf, np.inf, observation.shape)
    return spaces.Dict({name: unbounded(part) for name, part in observation.items()})
