"""Small models for the tests, as users might write them."""

from typing import Any

import equinox
import jax
import jax.numpy as jnp
from equinox.nn import GRUCell, Linear
from gymnasium import spaces

from upslope import Outputs
from upslope.core.distributions import Categorical


def over_columns(layer: Any, *arrays: Any) -> Any:
    """Apply an Equinox layer, which takes a single vector, to each of N vectors."""
    return jax.vmap(layer)(*arrays)


class Recurrent(equinox.Module):
    """Separate GRUs and linear layers for policy and value; each GRU also receives a flag that marks episode starts."""

    policy_cell: GRUCell
    value_cell: GRUCell
    policy_layer: Linear
    value_layer: Linear
    hidden: int

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any, hidden: int = 4):
        keys = jax.random.split(key, 4)
        inputs = observation_space.shape[0] + 1
        self.policy_cell, self.value_cell = (GRUCell(inputs, hidden, key=k) for k in keys[:2])
        self.policy_layer = Linear(hidden, int(action_space.n), key=keys[2])
        self.value_layer = Linear(hidden, "scalar", key=keys[3])
        self.hidden = hidden

    def prepare(self, observation: Any) -> Any:
        return observation.astype(jnp.float32)

    def start(self, num: int) -> Any:
        # These values are not 0, so that a restart is visible.
        return {"policy": jnp.full((num, self.hidden), 0.5), "value": jnp.full((num, self.hidden), -0.5)}

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        told = jnp.concatenate([features, fresh[:, None].astype(jnp.float32)], axis=1)
        policy = over_columns(self.policy_cell, told, carry["policy"])
        value = over_columns(self.value_cell, told, carry["value"])
        outputs = Outputs(Categorical(over_columns(self.policy_layer, policy)), over_columns(self.value_layer, value))
        return outputs, {"policy": policy, "value": value}

    def groups(self) -> dict[str, Any]:
        return {"policy": (self.policy_cell, self.policy_layer), "value": (self.value_cell, self.value_layer)}


class SharedTrunk(equinox.Module):
    """A single GRU whose output is used for both policy and value."""

    cell: GRUCell
    policy_layer: Linear
    value_layer: Linear
    hidden: int

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any, hidden: int = 4):
        keys = jax.random.split(key, 3)
        self.cell = GRUCell(observation_space.shape[0], hidden, key=keys[0])
        self.policy_layer = Linear(hidden, int(action_space.n), key=keys[1])
        self.value_layer = Linear(hidden, "scalar", key=keys[2])
        self.hidden = hidden

    def prepare(self, observation: Any) -> Any:
        return observation.astype(jnp.float32)

    def start(self, num: int) -> Any:
        return jnp.zeros((num, self.hidden))

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        carry = over_columns(self.cell, features, carry)
        policy = Categorical(over_columns(self.policy_layer, carry))
        return Outputs(policy, over_columns(self.value_layer, carry)), carry

    def groups(self) -> dict[str, Any]:
        return {"shared": self}


class Forgetful(equinox.Module):
    """Two linear layers. The model carries a number from step to step but ignores it."""

    policy_layer: Linear
    value_layer: Linear

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any):
        keys = jax.random.split(key)
        self.policy_layer = Linear(observation_space.shape[0], int(action_space.n), key=keys[0])
        self.value_layer = Linear(observation_space.shape[0], "scalar", key=keys[1])

    def prepare(self, observation: Any) -> Any:
        return observation.astype(jnp.float32)

    def start(self, num: int) -> Any:
        return jnp.zeros(num)

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        policy = Categorical(over_columns(self.policy_layer, features))
        return Outputs(policy, over_columns(self.value_layer, features)), carry + 1

    def groups(self) -> dict[str, Any]:
        return {"policy": self.policy_layer, "value": self.value_layer}


class Memoryless(Forgetful):
    """`Forgetful` without the number that it carries."""

    def start(self, num: int) -> Any:
        return ()

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        return super().step(features, jnp.zeros(len(fresh)), fresh)[0], carry


class Overlapping(Forgetful):
    """Assigns one parameter to two groups."""

    def groups(self) -> dict[str, Any]:
        return {"policy": self.policy_layer, "value": (self.value_layer, self.policy_layer.bias)}


class Missing(Forgetful):
    """Leaves one parameter out of all groups."""

    def groups(self) -> dict[str, Any]:
        return {"policy": self.policy_layer, "value": self.value_layer.weight}


class Unknown(Forgetful):
    """Has a group whose name does not belong to any known loss."""

    def groups(self) -> dict[str, Any]:
        return {"policy": self.policy_layer, "critic": self.value_layer}


class WithoutStart(equinox.Module):
    """Lacks some of the methods that a model needs."""

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any):
        pass

    def step(self, features: Any, carry: Any, fresh: Any) -> Any:
        return features, carry


class OtherCarry(Forgetful):
    """Returns a carry from `step` whose shape differs from that of the carry it received."""

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        outputs, carry = super().step(features, carry, fresh)
        return outputs, carry[:, None]


class TwoValues(Forgetful):
    """Returns values with an extra axis instead of one number per column."""

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        outputs, carry = super().step(features, carry, fresh)
        return outputs._replace(value=outputs.value[:, None]), carry


class TooManyChoices(Forgetful):
    """Has a logit for an action that does not exist."""

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any):
        super().__init__(observation_space, spaces.Discrete(int(action_space.n) + 1), key=key)


class HalfPrecision(Forgetful):
    """Returns values with 16 bits."""

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        outputs, carry = super().step(features, carry, fresh)
        return outputs._replace(value=outputs.value.astype(jnp.bfloat16)), carry


class HalfLogits(Forgetful):
    """Returns a policy with 16 bits."""

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        outputs, carry = super().step(features, carry, fresh)
        return outputs._replace(policy=Categorical(outputs.policy.logits.astype(jnp.float16))), carry


class CarriesKeys(Forgetful):
    """Carries random keys from step to step."""

    def start(self, num: int) -> Any:
        return jax.random.split(jax.random.key(0), num)

    def step(self, features: Any, carry: Any, fresh: Any) -> tuple[Outputs, Any]:
        outputs, _ = super().step(features, jnp.zeros(len(fresh)), fresh)
        return outputs, jax.vmap(lambda key: jax.random.split(key)[0])(carry)


class WithParameter(Forgetful):
    """Has a parameter of its own in the critic's group."""

    further: Any

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any, further: Any):
        super().__init__(observation_space, action_space, key=key)
        self.further = jnp.asarray(further)

    def groups(self) -> dict[str, Any]:
        return {"policy": self.policy_layer, "value": (self.value_layer, self.further)}


class NoPytree:
    """Has every method of a model, but its parameters cannot be found."""

    def __init__(self, observation_space: Any, action_space: Any, *, key: Any):
        self.model = Forgetful(observation_space, action_space, key=key)
        self.prepare, self.start = self.model.prepare, self.model.start
        self.step, self.groups = self.model.step, self.model.groups
