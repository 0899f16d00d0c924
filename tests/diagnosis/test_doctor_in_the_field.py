"""Synthetic versions of runs that the doctor misjudged in unseen environments. Most tests compare a run that has a
fault with a similar one that has none."""

import pytest
from doctor_helpers import alarms_and_notes, write_run

import upslope

ONE_SAMPLE = {"num_envs": 1, "rollout_steps": 1, "minibatches": 1}
NOTHING_TO_SEE = {"health/observation_constant": 1.0, "health/weight_std": 0.0, "policy/gradient_norm": 0.0}


def always(value, length, count=10):
    return lambda share, generator: [(value, length)] * count


def going(start, stop, spread, length=40):
    """Return a generator of episodes whose returns change from `start` to `stop` during the run."""
    return lambda share, generator: [
        (start + (stop - start) * share + spread * generator.normal(), int(generator.integers(length // 2, length)))
        for _ in range(10)
    ]


def first_alarms(path):
    return [finding.cause for finding in upslope.diagnose(path).alarms][:1]


COSTS = {"health/reward_max": -1e-4, "health/reward_mean": -0.5, "health/reward_min": -2.0,
         "health/truncated_share": 1.0, "health/target_mean": -3.0, "health/target_max": -0.1,
         "health/target_min": -20.0, "health/value_mean": -3.0, "health/truncation_bootstrap": 3.0}  # fmt: skip


@pytest.mark.parametrize(
    ("early", "found"), [(9.0, []), (3.2, ["no_reward_signal"])], ids=["a solved regulator", "a goal never found"]
)
def test_costs_that_fall_are_an_alarm_only_where_they_never_depended_on_the_state(early, found, tmp_path):
    # If costs are purely random, the standard deviation of their sums is 1/√(1 − (γλ)²) = 3.2 times that of one cost.
    changes = COSTS | {"critic/explained_variance": 0.01, "health/reward_std": 0.3, "health/reward_scale": 1.0}
    changes["health/target_std"] = lambda share: 0.3 * (early if share < 0.1 else 3.0)
    assert first_alarms(write_run(tmp_path, changes, episodes=going(-100, -2, 5), box=True)) == found


@pytest.mark.parametrize(
    ("episodes", "found"),
    [(always(-200, 200), ["no_reward_signal"]), (always(500, 500), ["no_reward_signal"]), (always(1, 1), []),
     (lambda share, generator: [(1.0, int(generator.integers(5, 30))) for _ in range(10)], [])],
    ids=["the mountain car", "paid whatever it does", "one step", "always paid, but sooner or later"],
)  # fmt: skip
def test_a_return_that_never_differs_is_no_signal(episodes, found, tmp_path):
    causes = [f.cause for f in upslope.diagnose(write_run(tmp_path, episodes=episodes)).alarms]
    assert causes[:1] == found or (not found and "no_reward_signal" not in causes)


@pytest.mark.parametrize(("spread", "found"), [(0.0, ["no_reward_signal"]), (0.5, [])], ids=["it waits", "it works"])
def test_a_policy_that_only_waits_for_the_time_limit_has_not_found_the_goal(spread, found, tmp_path):
    late = {"health/reward_mean": -1.0, "health/reward_std": spread, "health/truncated_share": 1.0}
    path = write_run(tmp_path, late, episodes=lambda share, g: [(-200 - 600 * (1 - share) * g.random(), 200)] * 3)
    assert first_alarms(path) == found


def collapses(share, generator):
    """Return long episodes in the first three quarters of the run, and many short ones after that."""
    count, value = (1, 20 + 480 * share / 0.7) if share < 0.75 else (60, 10)
    return [(value + generator.normal(), int(value)) for _ in range(count + 3)]


def test_a_collapse_into_short_episodes_is_seen_though_most_episodes_are_short(tmp_path):
    alarms, _ = alarms_and_notes(write_run(tmp_path, episodes=collapses))
    assert "late_collapse" in alarms


@pytest.mark.parametrize(("stop", "is_alarm"), [(-9200, True), (-1000, False)])
def test_a_return_that_falls_far_below_the_untrained_one_is_an_alarm(stop, is_alarm, tmp_path):
    alarms, _ = alarms_and_notes(write_run(tmp_path, episodes=going(-979, stop, 150)))
    assert ("return_falls" in alarms) == is_alarm


def coins(chance):
    """Return a generator of episodes whose return is 1 with probability `chance(share)` and otherwise 0."""
    return lambda share, generator: [(float(generator.random() < chance(share)), 3) for _ in range(60)]


@pytest.mark.parametrize(("chance", "rises"), [(lambda x: 0.3 + 0.2 * x, True), (lambda x: 0.3, False)])
def test_a_small_but_certain_rise_of_a_return_that_is_mostly_luck_is_a_rise(chance, rises, tmp_path):
    found = upslope.diagnose(write_run(tmp_path, {"health/action_effect": 1.0, "health/late_effect": 1.0},
                                       episodes=coins(chance)))  # fmt: skip
    causes = {finding.cause for finding in found.findings}
    assert ("actions_without_effect" in causes) != rises and ("not_learning" in causes) != rises


def test_what_is_flat_is_not_called_healthy_though_nothing_wrong_was_found(tmp_path):
    found = upslope.diagnose(write_run(tmp_path, rise=0.0))
    assert not found.alarms and found.to_json()["healthy"] is None and "has not risen" in found.too_little


def test_tiny_observations_are_unscaled_unless_they_are_normalised(tmp_path):
    tiny = {"health/observation_std_max": 1e-4, "health/observation_max": 4e-4, "health/observation_mean": 1e-5}
    assert first_alarms(write_run(tmp_path, tiny, rise=0.0)) == ["observations_unscaled"]
    assert first_alarms(write_run(tmp_path / "normalised", tiny, normalize_observations=True)) == []


@pytest.mark.parametrize(("lengths", "found"), [([9, 10, 11, 12, 12, 12, 12, 12], ["limit_as_termination"]), ([9], [])])
def test_a_limit_told_as_death_is_seen_by_a_few_shorter_episodes_and_a_fixed_length_is_no_sign(
    lengths, found, tmp_path
):
    path = write_run(
        tmp_path, {"health/truncated_share": 0.0}, lengths=lambda g: int(lengths[int(g.integers(len(lengths)))])
    )
    assert first_alarms(path) == found


def test_one_sample_a_batch_is_to_blame_before_the_environment_or_the_estimator(tmp_path):
    assert first_alarms(write_run(tmp_path, NOTHING_TO_SEE, rise=0.0, **ONE_SAMPLE)) == ["batch_too_small"]
    assert first_alarms(write_run(tmp_path / "many", NOTHING_TO_SEE, rise=0.0)) == ["observations_uninformative"]


def test_an_observation_that_stays_that_of_the_reset_tells_nothing(tmp_path):
    assert first_alarms(write_run(tmp_path, {"health/still": 1.0}, rise=0.0)) == ["observations_uninformative"]


@pytest.mark.parametrize(("later", "found"), [(4.0, []), (1.0, ["actions_without_effect"])])
def test_an_action_that_matters_with_what_was_seen_before_is_not_without_effect(later, found, tmp_path):
    changes = {"health/action_effect": 1.0, "health/late_effect": later}
    assert first_alarms(write_run(tmp_path, changes, rise=0.0)) == found


def test_a_gradient_that_is_clipped_away_holds_the_policy_back(tmp_path):
    (found,) = upslope.diagnose(write_run(tmp_path, {"policy/kl": 1e-9}, rise=0.0, max_grad_norm=1e-9)).alarms
    assert found.cause == "update_too_small" and "--max-grad-norm (now 1e-09)" in found.remedy


@pytest.mark.parametrize(
    ("nonzero", "lowest", "found"),
    [(1.0, -9.0, ["reward_noise"]), (0.02, 0.0, []), (1.0, -0.02, [])],
    ids=["noise", "seldom paid", "seldom paid and a small cost"],
)
def test_a_reward_that_is_seldom_paid_varies_much_and_is_no_noise(nonzero, lowest, found, tmp_path):
    changes = {"health/reward_std": 3.0, "health/reward_mean": 0.1, "critic/explained_variance": 0.0}
    changes |= {"health/reward_max": 9.0, "health/reward_min": lowest, "health/reward_nonzero": nonzero}
    assert first_alarms(write_run(tmp_path, changes, rise=0.0)) == found


def test_targets_that_are_the_rewards_were_not_propagated_whatever_their_signs(tmp_path):
    rewards = {"reward_mean": 0.5, "reward_std": 2.0, "reward_min": -4.0, "reward_max": 5.0}
    changes = {f"health/{name}": x for name, x in rewards.items()} | {"health/reward_scale": 0.5}
    targets = {f"health/{name.replace('reward', 'target')}": x / 2 for name, x in rewards.items()}
    assert first_alarms(write_run(tmp_path, changes | targets)) == ["return_not_propagated"]
    assert first_alarms(write_run(tmp_path / "sound", changes)) == []


def test_that_episodes_end_at_once_comes_before_that_nothing_is_paid(tmp_path):
    path = write_run(tmp_path, {"health/reward_nonzero": 0.0}, episodes=always(0.0, 1))
    assert first_alarms(path) == ["episodes_end_at_once"]


def test_ends_that_fall_between_the_looks_of_a_tiny_batch_are_not_called_lost(tmp_path):
    path = write_run(tmp_path, {"health/end_share": 0.0}, **ONE_SAMPLE)
    assert first_alarms(path) == ["batch_too_small"]


@pytest.mark.parametrize(
    ("weight", "found"), [(1e-3, []), (1.0, ["no_policy_signal"])], ids=["tiny rewards", "no loss"]
)
def test_a_small_gradient_of_tiny_weights_is_no_loss_without_a_gradient(weight, found, tmp_path):
    changes = {"policy/gradient_norm": 1e-4, "health/weight_std": weight, "health/weight_mean": float("nan")}
    assert first_alarms(write_run(tmp_path, changes, rise=0.0)) == found


@pytest.mark.parametrize(
    ("rewards", "is_alarm"),
    [((0.0, 0.02, 1.0), False), ((-0.05, -0.03, 0.95), False), ((0.5, 1.0, 1.5), True), ((0.0, 0.5, 1.0), True)],
    ids=["paid at the end", "the same with a cost of each step", "dense", "as often as not"],
)
def test_that_actions_have_no_effect_is_a_note_where_what_is_paid_is_rare(rewards, is_alarm, tmp_path):
    lowest, mean, highest = rewards
    changes = {"health/action_effect": 1.0, "health/late_effect": 1.0, "health/reward_std": 0.2}
    changes |= {"health/reward_min": lowest, "health/reward_mean": mean, "health/reward_max": highest}
    changes |= {"health/target_std": 0.1, "health/target_max": 1.0, "health/target_min": -1.0}
    alarms, notes = alarms_and_notes(write_run(tmp_path, changes, rise=0.0))
    assert "actions_without_effect" in (alarms if is_alarm else notes)


def test_rare_measurements_that_miss_all_ends_and_rewards_are_no_alarm(tmp_path):
    """All episodes have 200 steps and end at the same time, in iterations in which health was not measured."""
    missed = {"health/end_share": lambda share: 0.0 if int(share * 40) % 8 == 0 else float("nan")}
    missed |= {"episode/count": lambda share: 0 if int(share * 40) % 8 == 0 else 16}
    missed |= {f"health/reward_{name}": 0.0 for name in ("nonzero", "mean", "std", "min", "max")}
    missed |= {"health/target_mean": 0.02, "health/truncated_share": float("nan")}
    path = write_run(tmp_path, missed, episodes=lambda share, g: [(g.random() / 2, 200)] * 3)
    causes = {finding.cause for finding in upslope.diagnose(path).alarms}
    assert not causes & {"ends_not_recorded", "no_reward_signal", "targets_impossible"}


def test_a_run_without_a_finished_episode_is_not_said_to_be_flat(tmp_path):
    nothing = {"health/action_effect": 1.0, "health/late_effect": 1.0}
    path = write_run(tmp_path, nothing, episodes=lambda share, g: [])
    assert "actions_without_effect" not in {finding.cause for finding in upslope.diagnose(path).alarms}


def test_a_run_that_began_with_a_perfect_policy_is_not_said_to_have_no_signal(tmp_path):
    alarms, notes = alarms_and_notes(write_run(tmp_path, episodes=always(500, 500), start_from="teacher"))
    assert "no_reward_signal" not in alarms and "no_reward_signal" in notes


def test_a_running_cost_beside_a_constant_one_is_not_waiting(tmp_path):
    late = {"health/reward_mean": -5.03, "health/reward_std": 0.04, "health/truncated_share": 1.0}
    assert "no_reward_signal" not in first_alarms(write_run(tmp_path, late, episodes=going(-1500, -1000, 30, 200)))
