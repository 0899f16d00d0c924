"""The interface between learning and networks: the `Model` protocol, unrolling over time, and parameter groups.

Learning sees only arrays [T, N], and the model decides how to compute them. A user's own model plugs in here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upslope.core.distributions import Distribution

Carry = Any
"""A model's memory for N columns: a pytree of arrays [N, …], or () without memory."""
POLICY, VALUE, SHARED = "policy", "value", "shared"
"""The groups of parameters: separate networks have the first two, and a shared trunk has only the last."""


class Outputs(NamedTuple):
    """A model's outputs for N states: π(·|s) and V(s), the latter in the learner's units of reward."""

    policy: Distribution
    value: Float[Array, "N"]


class Memory(NamedTuple):
    """A model's memory at the start of a rollout."""

    carry: Carry
    """The carry of each column, reset where an episode begins."""
    fresh: Bool[Array, "N"]
    """Whether an episode begins in each column."""


@runtime_checkable
class Model(Protocol):
    """A policy and critic: any pytree with these methods. Its float arrays are its parameters."""

    def prepare(self, observation: Any) -> Any:
        """Convert normalised observations to the input of `step`. This is computed once per batch, so it must not use
        parameters."""
        ...

    def start(self, num: int) -> Carry:
        """The memory of `num` columns at the start of an episode; () without memory."""
        ...

    def step(self, features: Any, carry: Carry, fresh: Bool[Array, "N"]) -> tuple[Outputs, Carry]:
        """Compute one step of N columns. `fresh` marks the columns in which an episode begins; their carry has already
        been reset. A model without memory can ignore `fresh`."""
        ...

    def groups(self) -> dict[str, Any]:
        """Disjoint subtrees of parameters, each with its own optimiser: `policy` and `value`, or `shared`."""
        ...


def has_memory(model: Any) -> bool:
    """Whether the model has a carry."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: model.start(1))))


def start_memory(model: Model, num: int) -> Memory:
    """The memory of `num` columns that each begin an episode."""
    return Memory(model.start(num), jnp.ones(num, bool))


def restarted(model: Model, carry: Carry, fresh: Bool[Array, "N"]) -> Carry:
    """The carry, reset where an episode begins."""
    start = model.start(fresh.shape[0])
    return jax.tree.map(lambda a, b: jnp.where(fresh.reshape(-1, *(1,) * (b.ndim - 1)), a, b), start, carry)


def allowed(policy: Any, mask: Any) -> Any:
    """Restrict π(·|s) to allowed actions. All acting and learning code applies masks here, so no model needs to do
    it."""
    return policy if mask is None else policy.masked(mask)


def unroll(
    model: Model, features: Any, carry: Carry, fresh: Bool[Array, "T N"], mask: Bool[Array, "T N M"] | None = None
) -> tuple[Outputs, Carry]:
    """Run a model over T steps of N columns: outputs [T, N], and the carry after each step [T, N, …].

    A model without memory processes one large batch. A model with memory runs in a scan that resets the carry where an
    episode begins.
    """
    if not has_memory(model):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)
        outputs, _ = model.step(flat, (), jnp.zeros(fresh.size, bool))
        outputs = jax.tree.map(lambda x: x.reshape(*fresh.shape, *x.shape[1:]), outputs)
        return outputs._replace(policy=allowed(outputs.policy, mask)), ()

    if hasattr(model, "unroll"):  # upslope's own models run everything but the memory as one batch
        outputs, after = model.unroll(features, carry, fresh)  # pyright: ignore[reportAttributeAccessIssue]
        return outputs._replace(policy=allowed(outputs.policy, mask)), after

    def one(carry: Carry, now: tuple[Any, Array]) -> tuple[Carry, tuple[Outputs, Carry]]:
        x, begins = now
        outputs, carry = model.step(x, restarted(model, carry, begins), begins)
        return carry, (outputs, carry)

    outputs, after = jax.lax.scan(one, carry, (features, fresh))[1]
    return outputs._replace(policy=allowed(outputs.policy, mask)), after


class Place(int):
    """A placeholder for a parameter: its index among the model's leaves."""


def group_places(model: Model) -> dict[str, list[int]]:
    """The indices of the model's leaves in each group.

    Raises:
        ValueError: the groups are unknown, overlap, or omit a parameter.
    """
    leaves, structure = jax.tree.flatten(model)
    numbered: Any = jax.tree.unflatten(structure, map(Place, range(len(leaves))))
    places = {name: jax.tree.leaves(subtree) for name, subtree in numbered.groups().items()}
    if set(places) not in ({POLICY, VALUE}, {SHARED}):
        raise ValueError(f"groups() returns {sorted(places)}; it must return `policy` and `value`, or `shared` alone")
    taken = sorted(place for mine in places.values() for place in mine)
    if taken != list(range(len(leaves))):
        raise ValueError(
            "groups() must return every parameter exactly once, but some are missing or belong to two groups"
        )
    return places


def parameters_of(model: Model, group: str) -> list[Array]:
    """The parameters of a group."""
    leaves = jax.tree.leaves(model)
    return [leaves[place] for place in group_places(model)[group]]


def with_parameters(model: Model, parameters: Mapping[str, Sequence[Any]]) -> Any:
    """The model with the parameters of these groups replaced."""
    leaves, structure = jax.tree.flatten(model)
    places = group_places(model)
    for name, mine in parameters.items():
        for place, x in zip(places[name], mine, strict=True):
            leaves[place] = x
    return jax.tree.unflatten(structure, leaves)
