"""V-trace checked against RLax, the sums in the paper, its exact fixed point, and the on-policy n-step advantage."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from helpers import LAWS, NUM_STEPS, SEEDS, quick_jit, segments
from hypothesis import given

import upslope
from upslope.core.estimators import NStep, VTrace
from upslope.core.types import Values
from upslope.errors import UpslopeError

close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@partial(quick_jit, static_argnums=(0, 3))
def weigh(estimator, rollout, values, gamma):
    return estimator(rollout, values, gamma)


@quick_jit
def by_rlax(rollout, values):
    """Apply RLax's V-trace to each column, with γ = 0.9 and ρ̄ = 1.3."""
    vtrace = partial(rlax.vtrace_td_error_and_advantage, clip_rho_threshold=1.3, clip_pg_rho_threshold=1.3)
    ratio = jnp.exp(values.log_prob - rollout.behaviour_log_prob)
    over_columns = jax.vmap(vtrace, in_axes=1, out_axes=1)
    return over_columns(values.value, values.next_value, rollout.reward, 0.9 * ~rollout.terminated, ratio)


def off_policy(seed, **ends):
    """Return segments in which log π − log μ has either sign, so that ratios lie on both sides of ρ̄ and c̄."""
    rollout, values = segments(seed, **ends)
    generator = np.random.default_rng(seed + 1)
    mu, pi = (jnp.asarray(generator.normal(size=rollout.reward.shape) - 1, jnp.float32) for _ in range(2))
    return rollout._replace(behaviour_log_prob=mu), values._replace(log_prob=pi)


@LAWS
@given(SEEDS)
def test_it_equals_rlax_where_episodes_end_by_termination(seed):
    """The segments contain no truncations, because RLax cannot distinguish them from terminations."""
    rollout, values = off_policy(seed % 1000, truncating=0.0, padding=0.0)
    credit = weigh(VTrace(rho_bar=1.3), rollout, values, 0.9)
    theirs = by_rlax(rollout, values)
    close(credit.weight, theirs.pg_advantage)
    close(credit.target - values.value, theirs.errors)


@LAWS
@given(SEEDS)
def test_it_equals_the_papers_sums(seed):
    """NumPy computes v_s = V_s + Σ_t γ^(t−s) (Π c_i) ρ_t δ_t within each episode, with arbitrary ends and λ = 0.7."""
    rollout, values = off_policy(seed % 1000)
    estimator, gamma = VTrace(0.8, 1.2, 0.7), 0.95
    credit = weigh(estimator, rollout, values, gamma)
    end, valid = np.asarray(rollout.terminated | rollout.truncated), np.asarray(rollout.valid)
    ratio = np.exp(np.asarray(values.log_prob, np.float64) - np.asarray(rollout.behaviour_log_prob))
    rho, trace = np.minimum(0.8, ratio), 0.7 * np.minimum(1.2, ratio)
    value, following, reward = (np.asarray(x, np.float64) for x in (values.value, values.next_value, rollout.reward))
    following = np.where(rollout.terminated, 0.0, following)
    target, weight = np.zeros(value.shape), np.zeros(value.shape)
    for n, s in itertools.product(range(value.shape[1]), range(NUM_STEPS)):
        if not valid[s, n]:
            continue
        total, product = value[s, n], 1.0
        for t in range(s, NUM_STEPS):
            if not valid[t, n]:
                break
            delta = reward[t, n] + gamma * following[t, n] - value[t, n]
            total += gamma ** (t - s) * product * rho[t, n] * delta
            product *= trace[t, n]
            if end[t, n]:
                break
        target[s, n] = total
    for n, s in itertools.product(range(value.shape[1]), range(NUM_STEPS)):
        if valid[s, n]:
            goes_on = s + 1 < NUM_STEPS and valid[s + 1, n] and not end[s, n]
            # At an end, and at the last step of a segment, the successor's value comes from the critic.
            gain = following[s, n] + (target[s + 1, n] - value[s + 1, n] if goes_on else 0.0)
            weight[s, n] = rho[s, n] * (reward[s, n] + gamma * gain - value[s, n])
    close(credit.target, target, rtol=1e-3, atol=1e-4)
    close(credit.weight, weight, rtol=1e-3, atol=1e-4)


@LAWS
@given(SEEDS)
def test_on_policy_it_is_the_n_step_advantage_of_the_segment(seed):
    rollout, values = segments(seed)
    own = values._replace(log_prob=rollout.behaviour_log_prob)
    traced, plain = weigh(VTrace(), rollout, own, 0.9), weigh(NStep(NUM_STEPS), rollout, values, 0.9)
    close(traced.weight, plain.weight)
    close(traced.target, plain.target)


def test_its_fixed_point_is_the_value_of_the_policy_between():
    """The test enumerates all sequences of 3 actions from every state, with their probabilities under μ.

    Transitions are deterministic. The expected target is V if V = V^{π_ρ̄} with π_ρ̄ ∝ min(ρ̄μ, π), but not if V = V^π.
    """
    generator = np.random.default_rng(3)
    states, actions, steps, gamma, rho_bar = 4, 3, 3, 0.9, 0.7
    successor, reward = generator.integers(states, size=(states, actions)), generator.normal(size=(states, actions))
    pi, mu = (generator.dirichlet(np.ones(actions), states) for _ in range(2))
    between = np.minimum(rho_bar * mu, pi)
    between /= between.sum(axis=1, keepdims=True)

    def values_under(policy):
        chain = np.zeros((states, states))
        for s, a in itertools.product(range(states), range(actions)):
            chain[s, successor[s, a]] += policy[s, a]
        return np.linalg.solve(np.eye(states) - gamma * chain, (policy * reward).sum(axis=1))

    def gap(value):
        """Return the expected target minus V in each state."""
        begins = np.asarray([(s, *a) for s in range(states) for a in itertools.product(range(actions), repeat=steps)])
        state, probability, rows = begins[:, 0], np.ones(len(begins)), []
        for t in range(steps):
            action = begins[:, 1 + t]
            following = successor[state, action]
            rows.append((state, action, following))
            probability, state = probability * mu[state, action], following
        s, a, after = (np.stack(x) for x in zip(*rows, strict=True))
        rollout = upslope.Rollout(
            observation=s, action=a, reward=jnp.asarray(reward[s, a]), terminated=jnp.zeros(s.shape, bool),
            truncated=jnp.zeros(s.shape, bool), next_observation=after, valid=jnp.ones(s.shape, bool),
            behaviour_log_prob=jnp.log(mu[s, a]),
        )  # fmt: skip
        found = VTrace(rho_bar, 0.5)(rollout, Values(value[s], value[after], jnp.log(pi[s, a])), gamma)
        mean = [np.sum((probability * np.asarray(found.target[0]))[begins[:, 0] == k]) for k in range(states)]
        return np.asarray(mean) - value

    np.testing.assert_allclose(gap(values_under(between)), 0, atol=1e-5)
    assert np.abs(gap(values_under(pi))).max() > 0.02


@pytest.mark.parametrize("make", [lambda: VTrace(0.0), lambda: VTrace(1.0, -1.0), lambda: VTrace(lambda_=1.1)])
def test_hyperparameters_without_a_meaning_are_refused(make):
    with pytest.raises(UpslopeError, match="needs"):
        make()


def test_a_run_that_acts_for_itself_learns_as_n_step_does(tmp_path):
    """Every ratio is 1, although the run has a memory and the learner's log π comes from an unrolled network."""
    settings = {"num_envs": 4, "rollout_steps": 8, "hidden_sizes": (8,), "memory": "gru", "memory_size": 4, "steps": 96}
    settings |= {"objective": "policy_gradient", "preset": False, "quiet": True, "folder": tmp_path}
    traced = upslope.train("jax:CartPole-v1", "vtrace", name="vtrace", **settings).metrics()
    plain = upslope.train("jax:CartPole-v1", "vtrace", estimator="n_step", n=8, name="n_step", **settings).metrics()
    for one, other in zip(traced, plain, strict=True):
        for name in ("policy/loss", "critic/loss", "policy/kl", "policy/entropy"):
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(
    ("rung", "settings", "said"),
    [
        ("off_policy", {"estimator": "vtrace", "data": "x"}, "VTrace already weights recorded actions"),
        ("ppo", {"rho_bar": 2.0}, "--rho-bar applies only to --estimator vtrace"),
        ("vtrace", {"rho_bar": -1.0}, "--rho-bar must be greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused(rung, settings, said):
    with pytest.raises(UpslopeError, match=said):
        upslope.train("jax:CartPole-v1", rung, **settings)
