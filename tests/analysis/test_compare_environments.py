"""Comparisons over several environments use one unit and equal weights, and warn if an average hides differences."""

import numpy as np
import pytest
from helpers import ending, two_environments, warned

import upslope


def test_different_environments_are_not_averaged(run_of):
    a = run_of("a", episodes=ending(1, 2, 3, 4, 5), steps=100)
    b = run_of("b", episodes=ending(1, 2, 3, 4, 6), steps=100, environment="Acrobot-v1")
    c = run_of("c", episodes=ending(1, 2, 3, 4, 7), steps=100, max_episode_steps=50)
    found = upslope.compare([a, b, c])
    assert [g.environment for g in found.groups] == ["CartPole-v1", "Acrobot-v1", "CartPole-v1 max_episode_steps=50"]
    assert [g.label for g in found.groups] == ["ppo"] * 3
    assert found.improvements == found.aggregates == found.references == () and warned(
        found, "3 environments", "--norm"
    )


def test_environments_of_other_arguments_are_others_whatever_their_order(run_of):
    def scored(name, first, **env_kwargs):
        return run_of(name, episodes=ending(1, 2, 3, 4, 5, first=first), steps=100, env_kwargs=env_kwargs)

    runs = [scored("a", 0, x=1, y=2), scored("b", 5, y=2, x=1), scored("c", 10, x=2, y=2)]
    found = upslope.compare(runs)
    assert [(g.environment, len(g.seeds)) for g in found.groups] == [
        ("CartPole-v1 x=1 y=2", 10),
        ("CartPole-v1 x=2 y=2", 5),
    ]


def test_pairs_say_whether_their_seeds_are_the_same(run_of):
    worlds = ("CartPole-v1", "Acrobot-v1")
    same = [run_of(f"p{w}", episodes=ending(1, 2, 3), steps=100, environment=w) for w in worlds]
    same += [run_of(f"a{w}", episodes=ending(0, 1, 2), steps=100, algorithm="a2c", environment=w) for w in worlds[:1]]
    other = run_of("a other", episodes=ending(0, 1, 2, first=9), steps=100, algorithm="a2c", environment=worlds[1])
    found = upslope.compare([*same, other], normalize="range")
    assert {i.environments: i.is_paired for i in found.improvements} == {
        worlds[:1]: True, worlds[1:]: False, worlds: False,
    }  # fmt: skip


def test_what_an_average_over_environments_hides_is_told(run_of):
    """Here, the same label stands for different settings in the two environments."""
    a = run_of("a", episodes=ending(1, 2, 3), steps=100, gamma=0.5)
    b = run_of("b", episodes=ending(4, 4, 4), steps=200, environment="Acrobot-v1")
    c = run_of("c", episodes=ending(5, 6, 7), steps=200, environment="Acrobot-v1", algorithm="a2c")
    d = run_of("d", episodes=ending(0, 1, 2), steps=100, algorithm="a2c", gamma=0.5)
    found = upslope.compare([a, b, c, d], normalize="range")
    assert warned(found, "ppo has different settings in different environments but is averaged as one: gamma, steps")


def test_a_threshold_is_of_the_environment_as_it_is_registered(run_of):
    run = run_of(episodes=ending(50, 50, 49), steps=100, max_episode_steps=50)
    with pytest.raises(upslope.UpslopeError, match=r"The reward threshold of .* was set for arguments other than"):
        upslope.compare(run, normalize="threshold")


def test_scores_in_one_unit_are_averaged(run_of):
    found = upslope.compare(two_environments(run_of), normalize="range")
    assert [(r.environment, r.zero, r.one) for r in found.references] == [
        ("CartPole-v1", 0.0, 500.0),
        ("Acrobot-v1", -180.0, -80.0),
    ]
    ppo, a2c = found.aggregates
    # Means by hand: (0.6 + 0.9) / 2 and (0.2 + 0.4) / 2.
    assert (ppo.mean.value, a2c.mean.value) == pytest.approx((0.75, 0.3))
    # Pooled and sorted: 0.2 0.6 0.8 0.9 1 1. A quarter of six is 1.5, so 0.6 and one of the 1s have half the weight.
    assert ppo.iqm.value == pytest.approx((0.6 / 2 + 0.8 + 0.9 + 1 / 2) / 3)
    over = [i for i in found.improvements if len(i.environments) == 2]
    # CartPole: ppo wins 7.5 of 9 pairs (100 beats 0 and ties with 100; 300 and 500 beat all three). Acrobot: 8.5.
    assert [(i.label, i.other) for i in over] == [("ppo", "a2c")]
    assert over[0].probability.value == pytest.approx((7.5 / 9 + 8.5 / 9) / 2)
    profile = found.profiles[0]
    assert profile.share_above(0.5) == pytest.approx((2 / 3 + 1) / 2) and profile.share_above(-1.0) == 1.0


def test_a_label_that_is_not_everywhere_is_left_out_and_told(run_of):
    found = upslope.compare(two_environments(run_of)[:3], normalize="range")
    assert [a.label for a in found.aggregates] == ["ppo"] and warned(found, "a2c is missing from some environments")


def test_the_reward_threshold_is_one_and_a_random_policy_zero(run_of):
    runs = [run_of(episodes=ending(10, 200, 475), steps=100)]
    (reference,) = upslope.compare(runs, normalize="threshold").references
    assert reference.one == 475.0 and 15 < reference.zero < 30  # a random policy holds the pole for about 22 steps
    assert upslope.compare(runs, normalize="threshold").references == (reference,)
    pendulum = run_of("p", episodes=ending(1, 2), steps=100, environment="Pendulum-v1")
    with pytest.raises(upslope.UpslopeError, match="no reward threshold"):
        upslope.compare([pendulum], normalize="threshold")


def test_a_seed_without_a_score_is_not_the_worst(run_of):
    """The profile of the seed's group is unknown, like its mean. The profiles of the other groups do not change."""
    runs = [
        run_of("a", episodes=ending(1, 2, 3), steps=100),
        run_of("b", episodes=ending(4, 5, 6), steps=100, gamma=0.5),
    ]
    none = run_of("none", episodes={0: [], 1: [(100, 2)]}, steps=100, algorithm="a2c")
    without, found = (upslope.compare(each, normalize="range") for each in (runs, [*runs, none]))
    assert np.isnan(found.aggregates[2].mean.value)
    for column in ("share", "low", "high"):
        assert np.isnan(getattr(found.profiles[2], column)).all()
        for k in range(2):
            np.testing.assert_array_equal(getattr(found.profiles[k], column), getattr(without.profiles[k], column))


@pytest.mark.filterwarnings("error")
def test_runs_without_a_score_have_no_range(run_of, capsys):
    runs = [run_of(name, episodes={0: [], 1: []}, steps=100, algorithm=name) for name in ("ppo", "a2c")]
    with pytest.raises(upslope.UpslopeError, match="No seed has a score in CartPole-v1"):
        upslope.compare(runs, normalize="range")
    found = upslope.compare(runs, normalize="threshold")
    assert all(np.isnan(profile.share).all() for profile in found.profiles) and len(found.profiles) == 2
    with pytest.raises(upslope.UpslopeError, match="All scored seeds have the same score"):
        upslope.compare(run_of("same", episodes={0: [], 1: [(100, 2)], 2: [(100, 2)]}, steps=100), normalize="range")
