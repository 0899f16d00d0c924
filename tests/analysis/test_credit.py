"""Credit assignment within an episode: estimators weight the key action as theory predicts, and the weights for an
episode of a trained run use that run's policy, values and units."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import softmax_agent, values_of

import upslope
from upslope.analysis.credit import load_credit, save_credit
from upslope.analysis.episode_credit import credit_of, label, weigh_all
from upslope.analysis.episode_credit import values_of as critic_values
from upslope.core.estimators import GAE, Baseline, NStep, RewardToGo, TotalReturn
from upslope.core.types import Values, host_rollout
from upslope.environments.tabular import Tabular

LENGTH, PAYS, NOISE = 5, 3.0, 1.0
"""The number of steps in the walk, the reward for opening the door, and the size of the random rewards on the way."""
TAKE = 0.3
"""π(take the key)."""
ESTIMATORS = [TotalReturn(), RewardToGo(), Baseline(), NStep(1), NStep(5), GAE(0.0), GAE(0.95)]


def key_and_door() -> Tabular:
    """Return a walk of `LENGTH` steps.

    Action 1 in the first step takes the key, and the last step gives the reward `PAYS` if the key was taken. In every
    earlier step, a coin toss decides whether the reward is +`NOISE` or −`NOISE`. The agent observes the full state,
    4 · position + 2 · key + coin.
    """
    states = np.arange(4 * (LENGTH + 1))
    position, key = states // 4, states // 2 % 2
    transition = np.zeros((len(states), 2, len(states)))
    reward = np.zeros_like(transition)
    for s, a, coin in itertools.product(states, range(2), range(2)):
        following = min(position[s] + 1, LENGTH)
        after = 4 * following + 2 * (key[s] or (position[s] == 0 and a == 1)) + coin
        transition[s, a, after] = 0.5
        is_last = following == LENGTH
        reward[s, a, after] = PAYS * key[s] if is_last else NOISE * (2 * coin - 1)
    return Tabular(
        transition=transition,
        reward=reward,
        start=np.eye(len(states))[0],
        terminal=position == LENGTH,
        observation_of=states,
        max_episode_steps=LENGTH,
    )


def every_episode(world: Tabular, has_key: int):
    """Return an episode for each of the equally likely coin sequences, one per column, after the given first action.

    Later actions do not matter.
    """
    coins = np.array(list(itertools.product(range(2), repeat=LENGTH))).T
    columns = coins.shape[1]
    action = np.zeros((LENGTH, columns), np.int32)
    action[0] = has_key
    state = np.concatenate([np.zeros((1, columns), int), 4 * np.arange(1, LENGTH + 1)[:, None] + 2 * has_key + coins])
    reward = world.reward[state[:-1], action, state[1:]]
    no = np.zeros((LENGTH, columns), bool)
    terminated = no.copy()
    terminated[-1] = True
    return host_rollout(
        {
            "observation": state[:-1],
            "action": action,
            "reward": reward.astype(np.float32),
            "terminated": terminated,
            "truncated": no,
            "next_observation": state[1:],
            "behaviour_log_prob": np.zeros((LENGTH, columns), np.float32),
            "valid": ~no,
        }
    )


def expected_weights(has_key: int, gamma: float = 1.0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return mean [T] and standard deviation [T] of Ψ_t over all coin sequences, with the policy's exact values."""
    world = key_and_door()
    policy = np.tile([1 - TAKE, TAKE], (len(world.start), 1))
    exact = world.state_values(policy, gamma)
    rollout = every_episode(world, has_key)
    values = values_of(exact[rollout.observation], exact[rollout.next_observation])
    weights = weigh_all({label(e): e for e in ESTIMATORS}, rollout, values, gamma)
    return {n: w.mean(axis=1) for n, w in weights.items()}, {n: w.std(axis=1) for n, w in weights.items()}


@pytest.mark.parametrize(("has_key", "advantage"), [(1, PAYS * (1 - TAKE)), (0, -PAYS * TAKE)])
@pytest.mark.parametrize("name", ["NStep(1)", "NStep(5)", "GAE(0)", "GAE(0.95)", "Baseline"])
def test_with_exact_values_the_key_action_alone_is_credited(name, has_key, advantage):
    # By hand, γ = 1: v(s_0) = 3 · 0.3; the reward is 3 with the key and 0 without it. So A(s_0, take) = 3 − 0.9 and
    # A(s_0, leave) = −0.9. Later actions change nothing, so A = 0. With an exact V, every estimator that uses V is
    # unbiased.
    mean, _ = expected_weights(has_key)
    np.testing.assert_allclose(mean[name], [advantage, 0, 0, 0, 0], atol=1e-6)


def test_total_return_credits_every_action_alike_and_reward_to_go_all_before_the_reward():
    mean, deviation = expected_weights(has_key=1)
    np.testing.assert_allclose(mean["TotalReturn"], [PAYS] * LENGTH, atol=1e-6)
    np.testing.assert_allclose(mean["RewardToGo"], [PAYS] * LENGTH, atol=1e-6)
    # Coins are tossed in the first four steps. With TotalReturn, every weight contains the noise of all four: √4 = 2.
    np.testing.assert_allclose(deviation["TotalReturn"], [2.0] * LENGTH, atol=1e-6)
    # RewardToGo includes only the coins that are still to be tossed: √4, √3, √2, √1, 0.
    np.testing.assert_allclose(deviation["RewardToGo"], np.sqrt([4, 3, 2, 1, 0]), atol=1e-6)


def test_the_noise_of_gae_lies_between_the_td_error_and_monte_carlo():
    _, deviation = expected_weights(has_key=1)
    # δ_t contains only the coin of its own step: 1, 1, 1, 1, 0. GAE adds the coin b steps later, scaled by 0.95^b.
    np.testing.assert_allclose(deviation["NStep(1)"], [1, 1, 1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(deviation["GAE(0)"], deviation["NStep(1)"])
    by_hand = [np.sqrt(sum(0.95 ** (2 * b) for b in range(left))) for left in (4, 3, 2, 1, 0)]
    np.testing.assert_allclose(deviation["GAE(0.95)"], by_hand, atol=1e-6)
    assert (deviation["NStep(1)"][:3] < deviation["GAE(0.95)"][:3]).all()
    assert (deviation["GAE(0.95)"][:3] < deviation["Baseline"][:3]).all()


def test_without_values_only_estimators_without_a_critic_speak():
    rollout = every_episode(key_and_door(), has_key=1)
    assert list(weigh_all({label(e): e for e in ESTIMATORS}, rollout, None, 1.0)) == ["TotalReturn", "RewardToGo"]


def test_values_are_in_the_worlds_units():
    agent = softmax_agent(np.zeros((2, 2)), value=[3.0, 6.0])
    statistics = agent.return_statistics._replace(variance=jnp.float32(4.0))
    agent = dataclasses.replace(agent, normalize_rewards=True, return_statistics=statistics)
    state = np.array([[0], [1]])
    rollout = every_episode(key_and_door(), 1)._replace(observation=state, next_observation=state[::-1])
    values = critic_values(agent, rollout)
    # The learner divides rewards by σ = 2, so values in the world's units are twice the critic's.
    np.testing.assert_allclose(values.value[:, 0], [6.0, 12.0], rtol=1e-5)
    assert isinstance(values, Values)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train = lambda world, algorithm, name: upslope.train(  # noqa: E731
        world, algorithm, name=name, seeds=2, steps=2000, folder=folder, quiet=True, preset=False
    )
    return {
        "key": train("jax:Key-v0", "gae", "key").path,
        "cartpole": train("jax:CartPole-v1", "reinforce", "cartpole").path,
        "pendulum": train("Pendulum-v1", "ppo", "pendulum").path,
    }


def test_an_episode_of_a_run_is_weighed_with_its_own_policy_and_values(runs):
    credit = credit_of(runs["key"], seed=1, episode_seed=3)
    policy = upslope.load(runs["key"], seed=1, checkpoint="last")
    assert (credit.num_steps, credit.terminated, credit.own, credit.seed) == (8, True, "GAE(0.95)", 1)
    np.testing.assert_allclose(credit.policy["probability"].sum(axis=1), 1, rtol=1e-5)
    observation = 2 * np.arange(8) + np.concatenate([[0], np.repeat(credit.action[0], 7)])
    np.testing.assert_allclose(credit.value, policy.value(observation), rtol=1e-4)
    following = np.append(credit.value[1:], 0.0)
    np.testing.assert_allclose(credit.td_error, credit.reward + credit.gamma * following - credit.value, atol=1e-5)
    np.testing.assert_allclose(credit.weights["NStep(1)"], credit.td_error)
    assert credit.weights["TotalReturn"][0] == pytest.approx(credit.gamma**7 * credit.action[0])
    assert list(credit.weights) == ["TotalReturn", "RewardToGo", "Baseline", "NStep(1)", "NStep(5)", "GAE(0.95)"]
    assert len(credit.pictures) == 8 and credit.picture_note == ""


def test_the_same_episode_again_and_another_by_its_seed(runs):
    first, again, other = (credit_of(runs["pendulum"], episode_seed=k) for k in (0, 0, 1))
    np.testing.assert_array_equal(first.action, again.action)
    assert not np.array_equal(first.reward, other.reward)
    assert set(first.policy) == {"mean", "std"} and first.action.shape == (200, 1)
    assert first.pictures[0][8:12] == b"WEBP" and first.picture_steps[0] == 0


def test_a_run_without_a_critic_says_nothing_of_values(runs):
    credit = credit_of(runs["cartpole"])
    assert (credit.value, credit.td_error) == (None, None)
    assert list(credit.weights) == ["TotalReturn", "RewardToGo"]
    # Every reward is 1 and γ = 1, so the total return is the length at every step, and the reward-to-go counts down.
    n = credit.num_steps
    np.testing.assert_allclose(credit.weights["TotalReturn"], np.full(n, n))
    np.testing.assert_allclose(credit.weights["RewardToGo"], np.arange(n, 0, -1))
    assert credit.spread("TotalReturn") == pytest.approx(n)
    assert credit.most_blamed("RewardToGo") == 0


def test_whom_an_estimator_blames(runs):
    """By hand: (1 + 5)²/(1 + 25) actions share the credit. The second is blamed most despite its negative weight."""
    credit = credit_of(runs["key"])
    one = dataclasses.replace(credit, weights={"mine": np.asarray([1.0, -5.0]), "flat": np.asarray([2.0, -2.0])})
    assert one.spread("mine") == pytest.approx(36 / 26)
    assert one.most_blamed("mine") == 1 and one.singles_out("mine") and not one.singles_out("flat")


@pytest.mark.parametrize("size", [1e30, 1e-30, 6e37])
def test_the_spread_of_any_weights_of_32_bits_is_a_number(size, runs):
    weights = {"mine": np.asarray([size, -5 * size], np.float32)}
    assert dataclasses.replace(credit_of(runs["key"]), weights=weights).spread("mine") == pytest.approx(36 / 26)


@pytest.mark.parametrize("changes", [{"policy": ("mean", "std")}, {"weights": ("NStep(1)",)}])
def test_truth_values_in_place_of_numbers_are_refused(changes, runs, tmp_path):
    credit = credit_of(runs["pendulum"])
    for name, keys in changes.items():
        there = getattr(credit, name)
        credit = dataclasses.replace(credit, **{name: there | {key: there[key] > 0 for key in keys}})
    save_credit(tmp_path / "credit.npz", credit)
    with pytest.raises(upslope.UpslopeError, match="booleans where numbers are needed"):
        load_credit(tmp_path / "credit.npz")


def test_it_is_kept_in_a_file(runs, tmp_path):
    credit = credit_of(runs["key"])
    save_credit(tmp_path / "credit.npz", credit)
    again = load_credit(tmp_path / "credit.npz")
    for name, x in vars(credit).items():
        jax.tree.map(np.testing.assert_array_equal, x, getattr(again, name))


def test_bad_input_is_refused(runs, tmp_path):
    with pytest.raises(upslope.UpslopeError, match="no seed 7"):
        credit_of(runs["key"], seed=7)
    with pytest.raises(upslope.UpslopeError, match="not a run directory"):
        credit_of(tmp_path)
    (tmp_path / "credit.npz").write_bytes(b"nothing")
    with pytest.raises(upslope.UpslopeError, match="not a credit file"):
        load_credit(tmp_path / "credit.npz")


def test_an_environment_that_cannot_draw_has_its_credit_without_pictures():
    from upslope.analysis.episode_pictures import Pictures

    def draw():
        raise ImportError("pygame is not installed")

    pictures = Pictures()
    pictures.add(0, draw)
    pictures.add(1, draw)
    assert pictures.steps == [] and "pygame is not installed" in pictures.note
