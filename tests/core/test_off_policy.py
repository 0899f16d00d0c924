"""Off-policy estimators checked by hand, and against exact values by enumerating episodes of finite environments."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from upslope.core.off_policy import (
    Estimated,
    by_trajectory,
    doubly_robust,
    kish,
    log_weights,
    per_decision,
    ratio_test,
)
from upslope.environments.tabular import Tabular, gridworld, short_corridor

GAMMA = 0.9


class Episodes(NamedTuple):
    """Episodes [T, N], and the probability [N] with which μ produces each of them."""

    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    log_ratio: np.ndarray
    valid: np.ndarray
    probability: np.ndarray


def enumerated(world: Tabular, target: np.ndarray, behaviour: np.ndarray, horizon: int) -> Episodes:
    """Enumerate every episode of up to `horizon` steps."""

    def walk(state: int, steps: list, probability: float) -> Iterator[tuple[list, float]]:
        if len(steps) == horizon or world.terminal[state]:
            yield steps, probability
            return
        seen = world.observation_of[state]
        for action, successor in itertools.product(range(target.shape[1]), range(len(world.start))):
            p = behaviour[seen, action] * world.transition[state, action, successor]
            if p > 0:
                ratio = np.log(target[seen, action] / behaviour[seen, action])
                step = (state, action, world.reward[state, action, successor], ratio)
                yield from walk(successor, [*steps, step], probability * p)

    found = [pair for s in np.flatnonzero(world.start) for pair in walk(int(s), [], float(world.start[s]))]
    arrays = np.zeros((4, horizon, len(found)))
    valid = np.zeros((horizon, len(found)), bool)
    for n, (steps, _) in enumerate(found):
        arrays[:, : len(steps), n] = np.transpose(steps)
        valid[: len(steps), n] = True
    state, action, reward, log_ratio = arrays
    probability = np.array([p for _, p in found])
    return Episodes(state.astype(int), action.astype(int), reward, log_ratio, valid, probability)


def some_policies(world: Tabular, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two random policies in which every action has a positive probability."""
    shape = (int(world.observation_of.max()) + 1, world.transition.shape[1])
    generator = np.random.default_rng(seed)
    first, second = generator.dirichlet(np.full(shape[1], 3.0), (2, shape[0]))
    return first, second


WORLDS = {
    "corridor": (short_corridor(), 6),
    "slippery grid": (gridworld(2, 2, step_cost=0.1, slip=0.3), 4),
}


@pytest.fixture(scope="module", params=WORLDS)
def case(request: pytest.FixtureRequest) -> tuple[Episodes, float, Tabular, np.ndarray, int]:
    world, horizon = WORLDS[request.param]
    target, behaviour = some_policies(world, 0)
    episodes = enumerated(world, target, behaviour, horizon)
    assert episodes.probability.sum() == pytest.approx(1)
    return episodes, world.expected_return(target, GAMMA, horizon), world, target, horizon


def expectation(episodes: Episodes, estimate: Estimated) -> float:
    """Return the expectation of an estimate from one episode of μ by summing term · probability over all episodes."""
    return float(episodes.probability @ (estimate.influence + estimate.value))


def test_plain_importance_sampling_is_unbiased(case):
    episodes, truth, *_ = case
    weights = log_weights(episodes.log_ratio, episodes.valid)
    for function in (by_trajectory, per_decision):
        found = expectation(episodes, function(episodes.reward, weights, GAMMA, weighted=False))
        assert found == pytest.approx(truth, abs=1e-9), function.__name__
    # Other weights give a different result, so the agreement is not a coincidence.
    assert abs(expectation(episodes, per_decision(episodes.reward, 0 * weights, GAMMA, weighted=False)) - truth) > 0.005


def values_to_go(world: Tabular, target: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Q [T, S, A] and V [T + 1, S] for the number of steps that remain at each time."""
    q = [world.action_values(target, GAMMA, horizon - t) for t in range(horizon)]
    v = [world.state_values(target, GAMMA, horizon - t) for t in range(horizon + 1)]
    return np.stack(q), np.stack(v)


def surprises(episodes: Episodes, q: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return δ_t [T, N] and V̂(s_0) [N], computed from the values at each time."""
    time = np.arange(len(q))[:, None]
    now = np.where(episodes.valid, v[time, episodes.state], 0.0)
    after = np.concatenate([now[1:], np.zeros_like(now[:1])])
    delta = episodes.reward + GAMMA * after - q[time, episodes.state, episodes.action]
    return np.where(episodes.valid, delta, 0.0), now[0]


def test_doubly_robust_is_right_with_wrong_values_and_right_weights(case):
    episodes, truth, world, target, horizon = case
    generator = np.random.default_rng(1)
    q = generator.normal(size=(horizon, *world.reward.shape[:2]))
    policy = target[world.observation_of]
    v = np.concatenate([np.einsum("sa,tsa->ts", policy, q), np.zeros((1, len(policy)))])
    weights = log_weights(episodes.log_ratio, episodes.valid)
    delta, start = surprises(episodes, q, v)
    found = doubly_robust(delta, start, weights, GAMMA, weighted=False)
    assert expectation(episodes, found) == pytest.approx(truth, abs=1e-9)
    assert abs(expectation(episodes, doubly_robust(delta, start, 0 * weights, GAMMA, weighted=False)) - truth) > 0.005


def test_doubly_robust_is_right_with_right_values_and_wrong_weights():
    # The world is deterministic, because otherwise δ would not be 0 in every step.
    world, horizon = short_corridor(), 6
    target, behaviour = some_policies(world, 0)
    target, behaviour = (np.repeat(x, 4, axis=0) for x in (target, behaviour))
    seen = Tabular(world.transition, world.reward, world.start, world.terminal, np.arange(4))
    episodes = enumerated(seen, target, behaviour, horizon)
    delta, start = surprises(episodes, *values_to_go(seen, target, horizon))
    np.testing.assert_allclose(delta, 0, atol=1e-12)
    wrong = np.random.default_rng(2).normal(size=delta.shape)
    for weighted in (False, True):
        found = doubly_robust(delta, start, log_weights(wrong, episodes.valid), GAMMA, weighted=weighted)
        assert found.value == pytest.approx(seen.expected_return(target, GAMMA, horizon), abs=1e-9)


def test_every_estimator_tends_to_the_exact_value():
    """With 20,000 simulated episodes, each error is below four estimated standard errors, and these are below 0.1."""
    world, horizon = WORLDS["slippery grid"]
    target, behaviour = some_policies(world, 3)
    episodes, truth = enumerated(world, target, behaviour, horizon), world.expected_return(target, GAMMA, horizon)
    drawn = np.random.default_rng(4).choice(len(episodes.probability), 20_000, p=episodes.probability)
    sample = Episodes(*(x[..., drawn] for x in episodes))
    weights = log_weights(sample.log_ratio, sample.valid)
    delta, start = surprises(sample, *values_to_go(world, target, horizon))
    estimates = {
        **{f"is {w}": by_trajectory(sample.reward, weights, GAMMA, weighted=w) for w in (False, True)},
        **{f"pdis {w}": per_decision(sample.reward, weights, GAMMA, weighted=w) for w in (False, True)},
        **{f"dr {w}": doubly_robust(delta, start, weights, GAMMA, weighted=w) for w in (False, True)},
    }
    for name, found in estimates.items():
        assert abs(found.value - truth) < 2 * found.half_width() < 0.1, name


def test_two_steps_by_hand():
    """One episode has rewards 1, 2 and ratios 2, ½; the other has a single step with reward 4 and ratio ½."""
    reward = np.array([[1.0, 4.0], [2.0, 0.0]])
    valid = np.array([[True, True], [True, False]])
    weights = log_weights(np.log(np.array([[2.0, 0.5], [0.5, 7.0]])), valid)
    np.testing.assert_allclose(np.exp(weights), [[2, 0.5], [1, 0.5]])
    half = 0.5  # γ
    # The returns are 1 + ½·2 = 2 and 4, and the weights of the whole episodes are 1 and ½.
    assert by_trajectory(reward, weights, half, weighted=False).value == pytest.approx((1 * 2 + 0.5 * 4) / 2)
    assert by_trajectory(reward, weights, half, weighted=True).value == pytest.approx((1 * 2 + 0.5 * 4) / 1.5)
    # Per decision: 2·1 + ½·1·2 = 3, and ½·4 = 2.
    assert per_decision(reward, weights, half, weighted=False).value == pytest.approx((3 + 2) / 2)
    # Weighted: (2·1 + ½·4) / 2.5 + ½ (1·2 + ½·0) / 1.5.
    assert per_decision(reward, weights, half, weighted=True).value == pytest.approx(4 / 2.5 + 0.5 * 2 / 1.5)
    assert by_trajectory(reward, weights, half, weighted=True).effective == pytest.approx(1.5**2 / 1.25)
    # Let Q̂ = V̂. With V̂(s_0) = 1 and V̂(s_1) = 2, δ = 1 + ½·2 − 1 = 1 and 2 − 2 = 0 in the first episode. With
    # V̂(s_0) = 3, δ = 4 − 3 = 1 in the second.
    delta, start = np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([1.0, 3.0])
    assert doubly_robust(delta, start, weights, half, weighted=False).value == pytest.approx((1 + 2 + 3 + 0.5) / 2)
    assert doubly_robust(delta, start, weights, half, weighted=True).value == pytest.approx(2 + 2.5 / 2.5)


def test_influences_are_what_is_lost_without_an_episode():
    generator = np.random.default_rng(5)
    gain, ratio = generator.normal(size=(2, 3, 8))
    start, valid = generator.normal(size=8), np.ones((3, 8), bool)
    for weighted, function in itertools.product((False, True), (by_trajectory, per_decision, doubly_robust)):

        def estimate(rows: np.ndarray, function=function, weighted=weighted) -> Estimated:
            extra = (start[rows],) if function is doubly_robust else ()
            return function(gain[:, rows], *extra, log_weights(ratio, valid)[:, rows], 0.9, weighted=weighted)

        every, whole = np.arange(8), estimate(np.arange(8))
        lost = [7 * (whole.value - estimate(np.delete(every, i)).value) for i in every]
        np.testing.assert_allclose(whole.influence, lost, atol=1e-9)


def test_effective_numbers_and_the_test_of_ratios():
    assert kish(np.zeros(7)) == pytest.approx(7)
    assert kish(np.log(np.array([3.0, 1.0]))) == pytest.approx(16 / 10)
    assert kish(np.array([1000.0, -1000.0])) == pytest.approx(1)
    generator = np.random.default_rng(6)
    behaviour, target = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    taken = generator.choice(3, (100, 50), p=behaviour)
    valid = np.ones(taken.shape, bool)
    assert abs(ratio_test(np.log(target / behaviour)[taken], valid).z) < 4
    # The behaviour policy here never takes action 2, which π takes half the time.
    seen = generator.choice(2, (100, 50), p=[0.6, 0.4])
    found = ratio_test(np.log(target[:2] / np.array([0.6, 0.4]))[seen], valid)
    assert found.mean == pytest.approx(0.5, abs=0.02) and found.z < -20
