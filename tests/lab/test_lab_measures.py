"""The lab's tools (environments, scales, shares and pools) agree with numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import norm

from upslope.core.estimators import GAE, Baseline, NStep, RewardToGo, TotalReturn
from upslope.core.objectives import Clip, KLPenalty, PolicyGradient
from upslope.environments.tabular import delayed_key
from upslope.lab import advantages, finding, play, reuse, sampling, seeds
from upslope.lab.credit import ESTIMATORS, episodes_until_found, key_and_coins
from upslope.lab.reuse import OBJECTIVES
from upslope.lab.table1 import NONE, SURROGATES, normalise, slopes


def test_worlds_have_the_values_of_the_lecture():
    assert sampling.exam().expected_return(np.ones((3, 1)), 1.0) == pytest.approx(0.2 * 80 + 0.8 * 90)
    for probabilities, kilograms in ((sampling.LAKE_A, 2.3), (sampling.LAKE_B, 1.6)):
        policy = np.stack([probabilities, probabilities])
        assert sampling.lake().expected_return(policy, 1.0) == pytest.approx(kilograms)


def test_coins_change_no_value():
    policy = np.random.default_rng(0).dirichlet(np.ones(2), size=18)
    plain = delayed_key(8)
    noisy = key_and_coins(8)
    assert noisy.expected_return(policy, 0.9) == pytest.approx(plain.expected_return(policy, 0.9))
    assert noisy.reward[0, 0][noisy.transition[0, 0] > 0].tolist() == [-0.3, 0.3]


def test_episodes_until_found():
    key = np.array([[0.5, 0.95, 0.8], [0.9, 0.9, 0.9], [0.1, 0.2, 0.3]])
    assert episodes_until_found(key).tolist() == [16, 8, 24]


def test_one_of_several_objectives_trains_as_it_does_alone():
    world = delayed_key(4)
    objectives = (Clip(0.2), KLPenalty(1.0, 0.01))

    def learned(objective):
        task = play.small_task(world, GAE(0.9), objective, epochs=4, num_envs=4, rollout_steps=8)
        return play.train_policies(task, [3, 5], 3)[0]

    together = learned(play.SelectedObjective(objectives))
    np.testing.assert_allclose(together, np.concatenate([learned(objective) for objective in objectives]), atol=1e-5)
    assert np.abs(together[:2] - together[2:]).max() > 1e-3


def test_how_scores_go_with_the_papers():
    """One seed's scores are twice the paper's plus an offset, and another's are the paper's negated. The row without a
    remedy is ignored."""
    paper = {"clip, ε = 0.1": 0.76, "clip, ε = 0.2": 0.82, "clip, ε = 0.3": 0.70, "fixed KL, β = 1": 0.71}
    found = {name: np.array([2 * score + 5, -score]) for name, score in paper.items()}
    np.testing.assert_allclose(slopes({NONE: np.array([-100.0, 100.0])} | found), [2.0, -1.0])


def test_the_papers_table_is_the_papers():
    """Schulman et al. 2017, Table 1."""
    clip = [("clip", e, score) for e, score in ((0.1, 0.76), (0.2, 0.82), (0.3, 0.70))]
    adaptive = [(1.0, d, score) for d, score in ((0.003, 0.68), (0.01, 0.74), (0.03, 0.71))]
    fixed = [(beta, None, score) for beta, score in ((0.3, 0.62), (1.0, 0.71), (3.0, 0.72), (10.0, 0.69))]
    rows = [(row.settings, row.paper) for row in SURROGATES.values()]
    assert rows[0] == ({"objective": "importance_sampled"}, -0.39)
    assert rows[1:4] == [({"objective": name, "epsilon": e}, score) for name, e, score in clip]
    assert rows[4:] == [
        ({"objective": "kl_penalty", "beta": beta, "beta_target": d}, score) for beta, d, score in (*adaptive, *fixed)
    ]


def test_the_papers_scale():
    found = normalise(np.array([[-3.0, 1.0], [5.0, 2.0]]), untrained=1.0)
    np.testing.assert_array_equal(found, [[-1.0, 0.0], [1.0, 0.25]])


def test_a_share_has_clopper_and_pearsons_interval():
    """Observing 0 of 4 excludes every share p with (1 − p)⁴ < 0.025. Observing 4 of 4 does not prove certainty."""
    assert finding.share_of(np.zeros(4, bool)) == (0.0, pytest.approx((0.0, 1 - 0.025**0.25)))
    assert finding.share_of(np.ones(4, bool)).interval[0] == pytest.approx(0.025**0.25)


@pytest.mark.parametrize("count", [1, 10])
def test_how_often_the_wrong_one_wins_is_what_normal_pools_give(count):
    """P(mean of n from N(0, 1) > mean of n from N(d, 1)) = Φ(−d √(n/2)); here d = 0.5."""
    generator = np.random.default_rng(0)
    pools = norm.ppf((np.arange(2000) + 0.5) / 2000)
    rate = seeds.share_wrong(pools + 0.5, pools, count, generator, 40_000)
    assert rate == pytest.approx(norm.cdf(-0.5 * math.sqrt(count / 2)), abs=0.01)


def test_small_pools_are_known_to_be_samples():
    """If the pools were not resampled, the interval would shrink with the number of draws even for small pools."""
    pool = np.random.default_rng(1).normal(size=128)
    small, large = (np.std(seeds.resampled_shares(pool[:n] + 0.3, pool[-n:], [5], 0, 500), axis=0)[0] for n in (8, 128))
    assert small > 2 * large


def test_each_name_is_its_estimator_and_objective():
    assert {name: type(e) for name, e in ESTIMATORS.items()} == {
        "total": TotalReturn, "to_go": RewardToGo, "baseline": Baseline, "one_step": NStep, "gae": GAE,
    }  # fmt: skip
    assert (ESTIMATORS["one_step"], ESTIMATORS["gae"]) == (NStep(1), GAE(0.95))
    assert {name: type(o) for name, o in OBJECTIVES.items()} == {"plain": PolicyGradient, "kl": KLPenalty, "clip": Clip}


def test_returns_after_reuse_are_those_of_the_finished_policies(monkeypatch):
    """The policies here get worse over time and differ between seeds."""
    logits = [[np.full((16, 4), 1.0) * np.eye(4)[a] * strength for strength in (9.0, 0.0)] for a in range(4)]
    policies = softmax(np.array([logits[k % 4] for k in range(6)]), axis=-1)
    monkeypatch.setattr(reuse, "train_policies", lambda *_: (policies, {"policy/kl": np.ones((6, 2))}))
    returns = reuse.trained(1, range(2), 2)[0]
    uniform = reuse.MAZE.expected_return(np.full((16, 4), 0.25), 1.0, reuse.MAZE.max_episode_steps)
    np.testing.assert_allclose(returns, np.full((3, 2), uniform))


def test_bias_and_variance_of_one_step_are_those_of_the_arrays():
    # Given (s, a), A¹ + V(s) = r + γ V(s'). Both moments therefore follow from P and from how often each (s, a) is
    # visited.
    world, critic = advantages.maze(), advantages.imperfect_critic()
    policy = softmax(advantages.some_policy(), axis=-1)
    agent = play.table_agent(advantages.some_policy(), critic)
    rollout = play.play(world, agent, 0, 4_000)
    (one_step,) = play.credits_of([NStep(1)], agent, rollout, advantages.GAMMA)
    outcome = world.reward + advantages.GAMMA * critic * ~world.terminal
    mean = np.sum(world.transition * outcome, axis=-1)
    variance = np.sum(world.transition * (outcome - mean[..., None]) ** 2, axis=-1)
    bias = mean - world.action_values(policy, advantages.GAMMA)
    valid = np.asarray(rollout.valid)
    pairs = np.asarray(rollout.observation)[valid], np.asarray(rollout.action)[valid]
    found = advantages.error_parts(one_step.target, rollout)
    low, high = finding.mean_of(found[:, 0]).interval
    assert low - 2e-4 < (bias[pairs] ** 2).mean() < high + 2e-4
    assert found[:, 1].mean() == pytest.approx(variance[pairs].mean(), rel=0.05)
