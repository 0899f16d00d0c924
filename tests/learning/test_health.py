"""The health metrics agree with numbers worked out by hand or by NumPy, and a run's rows contain them."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rollout_of

import upslope
from upslope.core.distributions import Categorical, DiagonalGaussian
from upslope.learning.action_effect import action_effect
from upslope.learning.health import (
    OTHERS,
    PAIRS,
    RAW,
    SERIES,
    correlations,
    ends_together,
    facts,
    moments,
    returns_before_the_end,
    unpack_health,
)


def test_the_return_before_an_end_is_summed_from_the_facts():
    # Column 0 terminates at step 2; column 1 is truncated at step 1, so its return is unknown.
    reward = [[1.0, 5.0], [2.0, 5.0], [4.0, 5.0], [7.0, 5.0]]
    terminated = [[False, False], [False, False], [True, False], [False, False]]
    truncated = [[False, False], [False, True], [False, False], [False, False]]
    following, known = returns_before_the_end(0.5, rollout_of(reward, terminated, truncated))
    assert np.asarray(known).tolist() == [[True, False], [True, False], [True, False], [False, False]]
    # 1 + 0.5·2 + 0.25·4 = 3, 2 + 0.5·4 = 4, 4.
    np.testing.assert_allclose(np.asarray(following)[:3, 0], [3.0, 4.0, 4.0])


def test_ends_that_fall_together_are_counted_in_pairs():
    over = np.zeros((4, 4), bool)
    over[1, :3] = over[3, 0] = True
    # Four ends form six pairs, and in three of them both ends fall on the same step.
    assert float(ends_together(rollout_of(np.zeros((4, 4)), over))) == pytest.approx(0.5)
    assert np.isnan(ends_together(rollout_of(np.zeros((4, 4)))))


def test_rows_that_do_not_go_on_are_seen_and_resets_are_not_taken_for_them():
    rollout = rollout_of(np.ones((4, 1)), terminated=[[False], [True], [False], [False]])
    observation = jnp.asarray([0.0, 1.0, 7.0, 9.0]).reshape(4, 1, 1)
    successor = jnp.asarray([1.0, 2.0, 8.0, 10.0]).reshape(4, 1, 1)
    found = facts(rollout._replace(observation=observation, next_observation=successor))
    means = {name: float(np.asarray(x, float)[np.asarray(where)].mean()) for name, (x, where) in found.items()}
    assert means["broken_links"] == 0.5  # 0 → 1 is continued, 8 → 9 is not, and 2 → 7 is a reset
    assert means["reset_as_successor"] == 0.0 and means["end_share"] == 0.25
    leaked = observation[jnp.asarray([1, 2, 3, 3])]
    twice = rollout_of(np.ones((4, 1)), terminated=[[False], [True], [True], [False]])
    x, where = facts(twice._replace(observation=observation, next_observation=leaked))["reset_as_successor"]
    assert np.asarray(x)[np.asarray(where)].tolist() == [True, True]


def test_moments_and_correlations_are_numpys_where_they_count():
    generator = np.random.default_rng(0)
    x, y = generator.normal(3, 2, (2, 6, 5)).astype(np.float32)
    where = generator.random((6, 5)) < 0.6
    found = np.asarray(moments({name: (jnp.asarray(x), jnp.asarray(where)) for name in SERIES})).reshape(4, -1)[:, 0]
    inside = x[where]
    np.testing.assert_allclose(found, [inside.mean(), inside.var(), inside.min(), inside.max()], rtol=1e-5)
    pair = (jnp.asarray(x), jnp.asarray(y), jnp.asarray(where))
    constant = (jnp.ones((6, 5)), pair[1], pair[2])
    rounded = (1 + jnp.asarray(x) * 1e-7, *constant[1:])
    got = np.asarray(correlations([pair, constant, rounded]))
    np.testing.assert_allclose(got[0], np.corrcoef(inside, y[where])[0, 1], rtol=1e-4)
    assert np.isnan(got[1:]).all()


def effect(policy, action, before, after, reward):
    """Compute `action_effect` for columns with one step each."""
    rollout = rollout_of(np.asarray(reward, np.float32)[:, None])._replace(
        observation=jnp.asarray(before, jnp.float32)[:, None, None],
        next_observation=jnp.asarray(after, jnp.float32)[:, None, None],
    )
    batch = SimpleNamespace(action=jnp.asarray(action), old_policy=policy, valid=jnp.ones(len(action), bool))
    return float(action_effect(batch, rollout))


def test_a_reward_that_is_the_action_has_the_largest_effect_and_one_beside_it_none():
    uniform, still = Categorical(jnp.zeros((4, 2))), np.zeros(4)
    # Scores are ±½, and rewards deviate by ±½ from their mean: z = 4·¼ / √(4·1/16) = 2. A constant reward has no
    # effect.
    assert effect(uniform, [0, 1, 0, 1], still, still, [1, 0, 1, 0]) == pytest.approx(4.0)
    assert effect(uniform, [0, 1, 0, 1], still, still, [1, 1, 0, 0]) == pytest.approx(0.0)
    assert np.isnan(effect(uniform, [0, 1, 0, 1], still, still, [1, 1, 1, 1]))


def test_what_goes_with_the_state_alone_is_no_effect_however_the_action_follows_the_state():
    generator, found = np.random.default_rng(0), {"ignored": [], "discrete": [], "continuous": []}
    for _ in range(200):
        state, chance = generator.normal(size=(2, 300))
        mean, zero = jnp.asarray(state[:, None]), np.zeros(300)
        action = (generator.random(300) < 1 / (1 + np.exp(-state))).astype(np.int32)
        policy = Categorical(jnp.concatenate([0 * mean, mean], axis=1))
        found["ignored"].append(effect(policy, action, zero, state, zero))
        found["discrete"].append(effect(policy, action, zero, state + action, zero))
        gaussian = DiagonalGaussian(mean, jnp.zeros_like(mean))
        pushed = state + chance
        found["continuous"].append(effect(gaussian, pushed[:, None], zero, state + pushed, zero))
    assert abs(np.corrcoef(action, state)[0, 1]) > 0.3
    assert np.mean(found["ignored"]) == pytest.approx(1.0, abs=0.3)  # χ² with one degree of freedom: ±0.1
    assert np.mean(found["discrete"]) > 5 and np.mean(found["continuous"]) > 5


def test_deviations_are_spelled_out_as_such():
    vector = np.ones(4 * len(SERIES) + len(PAIRS) + len(OTHERS), np.float32)
    vector[len(SERIES) + SERIES.index("weight")] = 9.0
    assert unpack_health({RAW: vector[None, None]})["health/weight_std"] == pytest.approx(3.0)


def test_every_number_of_the_vector_has_a_name_and_other_metrics_pass():
    vector = np.arange(4 * len(SERIES) + len(PAIRS) + len(OTHERS), dtype=np.float32) + 1
    found = unpack_health({RAW: np.tile(vector, (2, 3, 1)), "policy/kl": np.zeros((2, 3))})
    assert RAW not in found and all(x.shape == (2, 3) for x in found.values())
    assert found["health/weight_agreement"][0, 0] == 4 * len(SERIES) + PAIRS.index("weight_agreement") + 1
    assert unpack_health({"policy/kl": vector}) == {"policy/kl": vector}


def test_a_row_leaves_out_what_was_not_measured(tmp_path):
    settings = {"num_envs": 2, "rollout_steps": 8, "minibatches": 1, "epochs": 1, "hidden_sizes": (4,), "quiet": True}
    run = upslope.train("jax:CartPole-v1", steps=16 * 600, folder=tmp_path, preset=False, **settings)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    looked = ["health/reward_mean" in row for row in rows]
    assert looked[0] and 95 <= sum(looked) <= 105 and len(rows) == 600
    health = [row for row in rows if "health/reward_mean" in row]
    assert all(row["health/broken_links"] == 0 and row["health/reward_mean"] == pytest.approx(1) for row in health)
    assert all(abs(row["health/log_prob_mismatch"]) < 1e-5 and row["health/weight_agreement"] > 0.999 for row in health)
    # Where an episode terminated, the target is just the last reward.
    ends = [row["health/terminal_error"] for row in health if "health/terminal_error" in row]
    assert ends and max(ends) < 1e-5
