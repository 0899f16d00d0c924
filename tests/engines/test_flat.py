"""Conversion of a training state to a flat list of arrays, and of metrics to a single vector."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import SEGMENTS

from upslope.config.prepare import prepare
from upslope.engines.flat import Layout, packed, unpacked
from upslope.learning.health import PREFIX, RAW
from upslope.learning.iteration import initialise_all


def take(tree: Any, s: int) -> Any:
    """Return seed s of a stacked pytree."""
    return jax.tree.map(lambda x: x[s], tree)


SMALL: dict[str, Any] = SEGMENTS | {"hidden_sizes": (8,), "seeds": 2}
del SMALL["preset"]  # `prepare` takes it as a separate argument


@pytest.mark.parametrize("settings", [{}, {"memory": "gru", "memory_size": 3}], ids=["plain", "memory"])
def test_the_parts_of_a_state_are_found_by_their_places(settings: dict[str, Any]):
    _, task = prepare("CartPole-v1", "ppo", preset=False, settings=SMALL | settings)
    states = initialise_all(task, [0, 1])
    layout = Layout(states)
    each = [layout.flat(take(states, s)) for s in range(2)]
    for s, flat in enumerate(each):
        found, expected = jax.tree.leaves(layout.whole(flat)), jax.tree.leaves(take(states, s))
        assert all(jnp.array_equal(x, y) for x, y in zip(found, expected, strict=True))
    agents = layout.agents_on_host(each)
    assert jax.tree.structure(agents) == jax.tree.structure(states.learner.agent)
    jax.tree.map(np.testing.assert_array_equal, agents, states.learner.agent)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(agents))
    np.testing.assert_array_equal(layout.steps_of(each), [0, 0])
    other = jax.tree.map(lambda x: jnp.ones_like(x[0]), states.memory)
    changed = layout.whole(layout.with_memory(each[0], jax.tree.leaves(other)))
    jax.tree.map(np.testing.assert_array_equal, changed.memory, other)
    jax.tree.map(np.testing.assert_array_equal, changed.learner.agent, take(states, 0).learner.agent)


def test_metrics_come_back_by_name_and_idle_seeds_have_none():
    first, second = ({"a": jnp.float32(x), "b": jnp.asarray([x, x + 1], jnp.float32)} for x in (1.0, 5.0))
    found = unpacked([[packed(first), None], [packed(second), packed(first)]])
    np.testing.assert_array_equal(found["a"], [[1.0, 5.0], [np.nan, 1.0]])
    np.testing.assert_array_equal(found["b"], [[[1.0, 2.0], [5.0, 6.0]], [[np.nan, np.nan], [1.0, 2.0]]])
    assert unpacked([[None, None]]) == {}
    assert not any(name.startswith(PREFIX) or name == RAW for name in found)
