"""The seam between learning and networks: what a model is, how it runs over time, and its groups of parameters.

Everything above sees numbers [T, N]; how they are computed is the model's business. A user's own model plugs in here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upslope.core.distributions import Distribution

Carry = Any
"""A model's memory of each of N columns: a pytree of arrays [N, …], or () without memory."""
POLICY, VALUE, SHARED = "policy", "value", "shared"
"""The groups of parameters: separate networks have the first two, a shared trunk the last alone."""


class Outputs(NamedTuple):
    """What a model says of N states: π(·|s) and V(s), the latter in the learner's unit of reward."""

    policy: Distribution
    value: Float[Array, "N"]


class Memory(NamedTuple):
    """What a model remembers where a rollout begins."""

    carry: Carry
    """Of each column, at its start where an episode begins."""
    fresh: Bool[Array, "N"]
    """Where an episode begins."""


@runtime_checkable
class Model(Protocol):
    """What acts and judges: any pytree with these methods. Its float arrays are its parameters."""

    def prepare(self, observation: Any) -> Any:
        """A batch of normalised observations → what `step` reads. Computed once a batch, so it has no parameters."""
        ...

    def start(self, num: int) -> Carry:
        """The memory of `num` columns at the start of an episode; () without memory."""
        ...

    def step(self, features: Any, carry: Carry, fresh: Bool[Array, "N"]) -> tuple[Outputs, Carry]:
        """One step of N columns; `fresh` where an episode begins, whose carry has been restarted already. A model
        without memory is not told."""
        ...

    def groups(self) -> dict[str, Any]:
        """Disjoint subtrees of parameters, each with an optimiser of its own: `policy` and `value`, or `shared`."""
        ...


def has_memory(model: Model) -> bool:
    """Whether the model carries anything from step to step."""
    return bool(jax.tree.leaves(jax.eval_shape(lambda: model.start(1))))


def start_memory(model: Model, num: int) -> Memory:
    """The memory of `num` columns that all begin an episode."""
    return Memory(model.start(num), jnp.ones(num, bool))


def restarted(model: Model, carry: Carry, fresh: Bool[Array, "N"]) -> Carry:
    """The carry, at its start where an episode begins."""
    start = model.start(fresh.shape[0])
    return jax.tree.map(lambda a, b: jnp.where(fresh.reshape(-1, *(1,) * (b.ndim - 1)), a, b), start, carry)


def allowed(policy: Any, mask: Any) -> Any:
    """π(·|s) given that only allowed actions are taken. Everything that acts or learns asks here, never a model itself,
    so that no model can forget it."""
    return policy if mask is None else policy.masked(mask)


def unroll(
    model: Model, features: Any, carry: Carry, fresh: Bool[Array, "T N"], mask: Bool[Array, "T N M"] | None = None
) -> tuple[Outputs, Carry]:
    """A model over T steps of N columns: outputs [T, N], and the carry after each step [T, N, …].

    Without memory it is one large batch; with memory a scan that restarts the carry where an episode begins.
    """
    if not has_memory(model):
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), features)
        outputs, _ = model.step(flat, (), jnp.zeros(fresh.size, bool))
        outputs = jax.tree.map(lambda x: x.reshape(*fresh.shape, *x.shape[1:]), outputs)
        return outputs._replace(policy=allowed(outputs.policy, mask)), ()

    def one(carry: Carry, now: tuple[Any, Array]) -> tuple[Carry, tuple[Outputs, Carry]]:
        x, begins = now
        outputs, carry = model.step(x, restarted(model, carry, begins), begins)
        return carry, (outputs, carry)

    outputs, after = jax.lax.scan(one, carry, (features, fresh))[1]
    return outputs._replace(policy=allowed(outputs.policy, mask)), after


class Place(int):
    """Stands for a parameter by its place among the leaves."""


def group_places(model: Model) -> dict[str, list[int]]:
    """Which leaves of the model belong to each group, by their place.

    Raises:
        ValueError: the groups are unknown, overlap, or leave a parameter out.
    """
    leaves, structure = jax.tree.flatten(model)
    numbered: Any = jax.tree.unflatten(structure, map(Place, range(len(leaves))))
    places = {name: jax.tree.leaves(subtree) for name, subtree in numbered.groups().items()}
    if set(places) not in ({POLICY, VALUE}, {SHARED}):
        raise ValueError(f"groups() gives {sorted(places)}; it must give `policy` and `value`, or `shared` alone")
    taken = sorted(place for mine in places.values() for place in mine)
    if taken != list(range(len(leaves))):
        raise ValueError("groups() must give every parameter once: some are left out or belong to two groups")
    return places


def parameters_of(model: Model, group: str) -> list[Array]:
    """The parameters of a group."""
    leaves = jax.tree.leaves(model)
    return [leaves[place] for place in group_places(model)[group]]


def with_parameters(model: Model, parameters: Mapping[str, Sequence[Any]]) -> Any:
    """The model with other parameters for these groups."""
    leaves, structure = jax.tree.flatten(model)
    places = group_places(model)
    for name, mine in parameters.items():
        for place, x in zip(places[name], mine, strict=True):
            leaves[place] = x
    return jax.tree.unflatten(structure, leaves)
