"""Comparisons of synthetic runs: groups, scores and warnings. Dissimilar runs are never averaged without a warning."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from helpers import ending, two_environments, warned
from scipy import stats

import upslope
from upslope.analysis.statistics import interval_of_mean
from upslope.cli.main import main
from upslope.report.page import write_report


def evaluation(seed, score, mode="stochastic", checkpoint="last"):
    return (seed, mode, checkpoint, 0, score, 1, 1)


def test_a_group_has_its_statistics_over_seeds(run_of):
    scores = np.asarray([10.0, 20.0, 60.0, 70.0, 90.0])
    found = upslope.compare([run_of(episodes=ending(*scores), steps=100)])
    (group,) = found.groups
    assert (group.label, group.environment, group.seeds, group.budget) == ("ppo", "CartPole-v1", (0, 1, 2, 3, 4), 100)
    assert group.scores.tolist() == scores.tolist() and group.differs == {}
    assert (group.mean.value, group.mean.interval) == (50.0, interval_of_mean(scores))
    assert (group.iqm.value, group.median.value) == (50.0, 60.0)
    assert found.score.startswith("mean return of the last 100 training episodes")
    assert found.improvements == () and found.warnings == ()


def test_runs_that_share_everything_but_seeds_are_one_group(run_of):
    a = run_of("a", episodes=ending(1, 2), steps=100)
    b = run_of("b", episodes=ending(3, 4, 5, first=2), steps=100)
    c = run_of("c", episodes=ending(1, 2, 3, 4, 6), steps=100, gamma=0.9)
    d = run_of("d", episodes=ending(1, 2, 3, 4, 7), steps=100, algorithm="a2c")
    found = upslope.compare([a, b, c, d])
    assert [g.label for g in found.groups] == ["ppo gamma=0.99", "ppo gamma=0.9", "a2c"]
    pooled = found.groups[0]
    assert pooled.runs == (a, b) and pooled.seeds == (0, 1, 2, 3, 4) and pooled.scores.tolist() == [1, 2, 3, 4, 5]
    assert pooled.differs["gamma"] == 0.99 and pooled.differs["objective"] == "clip"
    assert "lambda" not in pooled.differs  # λ is the same in both runs
    assert all(i.is_paired for i in found.improvements)


def test_a_seed_that_is_there_twice_counts_once(run_of, tmp_path):
    a = run_of("a", episodes=ending(1, 2, 3), steps=100)
    b = run_of("b", episodes=ending(30, 4, first=2), steps=100)
    found = upslope.compare([a, b])
    (group,) = found.groups
    assert (group.seeds, group.scores.tolist()) == ((0, 1, 2, 3), [1.0, 2.0, 3.0, 4.0])
    assert warned(found, "left out: seed 2 of", str(b), "same settings", "--seed 4")

    again = upslope.compare([a, a, run_of("c", episodes=ending(5, 6, 7), steps=100)])
    assert again.groups[0].seeds == (0, 1, 2) and again.groups[0].scores.tolist() == [1.0, 2.0, 3.0]
    assert warned(again, f"left out: {a} is given more than once") and warned(again, f"left out: {tmp_path / 'c'}:")

    # Among runs with the same seeds, the comparison prefers one trained to the end, and among those an evaluated one.
    half = run_of("half", episodes=ending(10, 11), steps=100, gamma=0.5, reached=50)
    whole = run_of("whole", episodes=ending(20, 21), steps=100, gamma=0.5)
    judged = run_of("judged", episodes=ending(22, 23), steps=100, gamma=0.5, evaluations=[evaluation(0, 24.0)])
    assert upslope.compare([half, whole]).groups[0].scores.tolist() == [20.0, 21.0]
    assert upslope.compare([half, whole, judged]).groups[0].scores.tolist() == [22.0, 23.0]


def test_what_is_no_run_is_left_out_and_a_wrong_name_is_refused(run_of, tmp_path):
    run = run_of("run", episodes=ending(1, 2), steps=100)
    (tmp_path / "notes").mkdir()
    (tmp_path / "report.html").write_text("a page")
    found = upslope.compare(sorted(tmp_path.iterdir()))
    assert found.groups[0].runs == (run,)
    assert warned(found, "left out", "notes", "no config.json") and warned(found, "left out", "report.html", "a file")
    with pytest.raises(upslope.UpslopeError, match=r"runn is not a run.*no such folder.*Did you mean .*/run\?"):
        upslope.compare([run, tmp_path / "runn"])
    with pytest.raises(upslope.UpslopeError, match=r"None of these 2 paths is a readable run.*notes.*report\.html"):
        upslope.compare([tmp_path / "notes", tmp_path / "report.html"])
    with pytest.raises(upslope.UpslopeError, match=r"It contains runs: .*/run$"):
        upslope.compare([tmp_path])


LINEAGE = {
    "run": "runs/elder", "checkpoint": "last", "seeds": [0, 1], "steps": [100, 100], "taken_over": ["networks"],
    "begun_anew": [],
}  # fmt: skip


def described(run, **changes):
    """Change the description of a run. A dictionary is merged into the existing entry."""
    path = run / "config.json"
    there = json.loads(path.read_text())
    merged = {k: there.get(k, {}) | x if isinstance(x, dict) and x else x for k, x in changes.items()}
    path.write_text(json.dumps(there | merged))


@pytest.mark.parametrize(
    "changes",
    [
        {"lineage": LINEAGE | {"begun_anew": 5}},
        {"lineage": LINEAGE | {"begun_anew": [5]}},
        {"lineage": LINEAGE | {"seeds": []}},
        {"lineage": LINEAGE | {"steps": [10**400]}},
        {"lineage": {"run": "runs/elder"}},
        {"lineage": 5},
        {"config": {"estimator": "mine:Own"}, "axes": {}},
        {"config": {"objective": "mine:Own"}, "axes": {"objective": 5}},
    ],
)
def test_a_run_with_a_description_that_training_does_not_write_is_left_out(changes, run_of, tmp_path):
    good, bad = (run_of(name, episodes=ending(1, 2), steps=100) for name in ("good", "bad"))
    described(bad, **changes)
    found = upslope.compare([good, bad])
    assert found.groups[0].runs == (good,) and warned(found, "left out", "bad", "config.json is damaged")
    assert write_report([good, bad], tmp_path / "report.html").exists()


def test_a_lineage_that_training_writes_is_told(run_of):
    later = run_of("later", episodes=ending(1, 2), steps=100)
    described(later, lineage=LINEAGE)
    assert warned(upslope.compare(later), "started from runs/elder@last", "100 steps")


def test_a_run_that_stopped_at_a_return_without_one_to_stop_at_is_left_out(run_of):
    good, bad = (run_of(name, episodes=ending(1, 2), steps=100) for name in ("good", "bad"))
    with (bad / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "seed": 0, "step": 110, "stop/return": 5.0}\n')
    found = upslope.compare([good, bad])
    assert found.groups[0].runs == (good,) and warned(found, "left out", "bad", "no return to stop at")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), RecursionError("too deep"), KeyError("x")])
def test_a_run_that_cannot_be_read_for_any_reason_is_left_out(error, run_of, monkeypatch):
    good, bad = (run_of(name, episodes=ending(1, 2), steps=100) for name in ("good", "bad"))

    def is_file(self, original=Path.is_file):
        if bad in self.parents:
            raise error
        return original(self)

    monkeypatch.setattr(Path, "is_file", is_file)
    found = upslope.compare([good, bad])
    assert found.groups[0].runs == (good,) and warned(found, "left out", "bad")
    with pytest.raises(upslope.UpslopeError, match="bad"):
        upslope.compare(bad)


def test_a_link_that_leads_nowhere_is_left_out(run_of, tmp_path):
    good = run_of("good", episodes=ending(1, 2), steps=100)
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert warned(upslope.compare([good, tmp_path / "dangling"]), "left out", "dangling")


def test_pairs_are_compared_the_higher_mean_first(run_of):
    low = run_of("low", episodes=ending(1, 2, 3, 4, 9), steps=100, algorithm="a2c")
    high = run_of("high", episodes=ending(5, 6, 7, 8, 9), steps=100)
    (found,) = upslope.compare([low, high]).improvements
    assert (found.label, found.other, found.environments) == ("ppo", "a2c", ("CartPole-v1",))
    u = stats.mannwhitneyu([5, 6, 7, 8, 9], [1, 2, 3, 4, 9]).statistic
    assert found.probability.value == pytest.approx(u / 25)


def test_one_seed_has_no_interval_and_few_are_thin(run_of):
    one = run_of("one", episodes=ending(1), steps=100)
    three = run_of("three", episodes=ending(1, 2, 3), steps=100, algorithm="a2c")
    found = upslope.compare([one, three])
    group = found.groups[0]
    assert (group.mean.interval, group.median.interval, group.iqm.interval) == (None, None, None)
    assert group.efficiency.area.interval is None and found.improvements[0].probability.interval is None
    assert warned(found, "one seed gives no interval", "ppo") and warned(found, "3 seeds are thin evidence", "a2c")


def test_seeds_that_agree_have_no_interval_and_it_is_said_why(run_of):
    found = upslope.compare([run_of(episodes=ending(500, 500, 500, 500, 500), steps=100)])
    assert found.groups[0].mean.interval is None
    # (1 − p)^5 = 0.05 if p = 45 %.
    assert warned(found, "all 5 seeds have the same score", "45%")


def test_a_seed_without_an_episode_has_no_score(run_of):
    episodes = ending(1, 2, 3, 4) | {4: []}
    found = upslope.compare([run_of(episodes=episodes, steps=100)])
    assert math.isnan(found.groups[0].mean.value) and found.groups[0].mean.interval is None
    assert math.isnan(found.groups[0].iqm.value) and warned(found, "seed 4", "no score")


def test_unequal_budgets_are_told_and_compared_at_the_smaller(run_of):
    short = run_of("short", episodes={s: [(20, 1.0), (100, 3.0 + s)] for s in range(5)}, steps=100)
    long = run_of("long", episodes={s: [(50, 2.0), (150, 9.0)] for s in range(5)}, steps=200, algorithm="a2c")
    found = upslope.compare([short, long])
    assert warned(found, "unequal budgets", "ppo 100", "a2c 200")
    first, second = (g.efficiency for g in found.groups)
    assert first.steps == second.steps == (25, 50, 75, 100)
    assert [e.value for e in first.at] == [1, 1, 1, 3.0]  # the mean of 1 and 3 + s, averaged over s = 0 … 4
    assert [e.value for e in second.at][1:] == [2, 2, 2] and math.isnan(second.at[0].value)
    # The curve is read at the 200 points ½, 1, …, 100. It is 1 from step 20 on (160 points) and 3 at the last point.
    assert first.area.value == pytest.approx((160 * 1 + 3) / 161)


def test_steps_beyond_the_budget_are_told(run_of):
    assert warned(
        upslope.compare([run_of(episodes=ending(1, 2), steps=100, reached=110)]), "beyond the budget", "ppo", "10%"
    )
    assert not warned(upslope.compare([run_of("b", episodes=ending(1, 2), steps=100, reached=104)]), "beyond")


def test_one_run_is_named_without_a_list(run_of):
    run = run_of(episodes=ending(1, 2, 3), steps=100)
    assert upslope.compare(run).groups[0].runs == upslope.compare(str(run)).groups[0].runs == (run,)


def test_a_run_that_is_not_finished_is_told(run_of):
    found = upslope.compare([run_of(episodes=ending(1, 2, 3, 4, 5, step=40), steps=100, reached=40)])
    assert warned(found, "not finished: 40 of 100") and found.groups[0].efficiency.steps[-1] == 40


def test_an_unfinished_run_is_judged_at_the_budget_that_all_have_spent(run_of):
    """After 40 steps, the unfinished run leads 5 to 1. If each run were scored at its end, it would trail 5 to 9."""
    half = run_of("half", episodes=ending(5, 5, 6, step=40), steps=100, reached=40)
    whole = run_of("whole", episodes={s: [(30, 1.0 + s), (100, 9.0)] for s in range(3)}, steps=100, algorithm="a2c")
    found = upslope.compare([half, whole])
    assert [g.scores.tolist() for g in found.groups] == [[5, 5, 6], [1, 2, 3]]
    assert [g.budget for g in found.groups] == [40, 40]
    (pair,) = found.improvements
    assert (pair.label, pair.other, pair.probability.value) == ("ppo", "a2c", 1.0)
    assert warned(found, "not every run in CartPole-v1 is finished", "within 40 steps")
    # Compared alone, the unfinished run is scored at its last step.
    alone = upslope.compare([half])
    assert alone.groups[0].budget == 40 and not warned(alone, "not every run")


def test_an_evaluation_before_the_end_gives_no_probability(run_of):
    rows = [[evaluation(s, score + s) for s in range(3)] for score in (5.0, 9.0, 2.0)]
    half = run_of("half", episodes=ending(1, 2, 3, step=40), steps=100, reached=40, evaluations=rows[0])
    whole = run_of("whole", episodes=ending(1, 2, 3), steps=100, algorithm="a2c", evaluations=rows[1])
    third = run_of("third", episodes=ending(1, 2, 3), steps=100, algorithm="gae", evaluations=rows[2])
    found = upslope.compare([half, whole, third])
    pairs = {(i.label, i.other): i.probability.value for i in found.improvements}
    assert math.isnan(pairs["a2c", "ppo"]) and math.isnan(pairs["ppo", "gae"]) and pairs["a2c", "gae"] == 1.0
    assert [g.budget for g in found.groups] == [40, 100, 100]
    assert warned(found, "ppo on CartPole-v1: evaluated before the budget was spent", "--score training")
    assert not warned(upslope.compare([whole, third]), "evaluated before")


@pytest.mark.parametrize("package", ["jax", "upslope", "gymnasium", "machine"])
def test_mixed_versions_are_told(run_of, package):
    a = run_of("a", episodes=ending(1, 2, 3, 4, 5), steps=100)
    b = run_of("b", episodes=ending(1, 2, 3, 4, 5, first=5), steps=100, versions={package: "0.0"})
    found = upslope.compare([a, b])
    assert len(found.groups) == 1 and warned(found, package, "0.0: ", "/b")


def test_mixed_engines_are_told_but_not_one_that_only_some_needed(run_of):
    seeds = iter(range(0, 15, 5))

    def made_with(name, **versions):
        return run_of(name, episodes=ending(1, 2, 3, 4, 5, first=next(seeds)), steps=100, versions=versions)

    a, b, c = made_with("a", mujoco="3.2.0"), made_with("b", mujoco="4.0.0"), made_with("c")
    assert warned(upslope.compare([a, b, c]), "versions of mujoco", "3.2.0: ", "4.0.0: ", "/b")
    assert not warned(upslope.compare([a, c]), "mujoco")


def test_the_score_of_training_is_that_of_the_last_hundred_episodes(run_of):
    episodes = {0: [(i, 7.0 if i <= 50 else 1.0 if i <= 100 else 3.0) for i in range(1, 151)], 1: [(9, 5.0)]}
    group = upslope.compare(run_of(episodes=episodes, steps=150)).groups[0]
    assert group.scores.tolist() == [2.0, 5.0]  # seed 0: fifty returns of 1 and fifty of 3


def test_a_seed_that_has_no_row_yet_is_compared_as_far_as_it_got(run_of):
    """The run was interrupted while it first wrote metrics."""
    run = run_of(episodes=ending(1, 2, 3), steps=100)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"seed": 2' not in line))
    assert warned(upslope.compare(run), "not finished: 0 of 100")


def test_evaluation_is_the_score_where_all_have_it(run_of):
    rows = [evaluation(0, 5.0), evaluation(0, 7.0), evaluation(1, 9.0), evaluation(1, 9.0)]
    others = [evaluation(s, 99.0, *kind) for s in (0, 1) for kind in (("deterministic",), ("stochastic", "best"))]
    a = run_of("a", episodes=ending(1, 2), steps=100, evaluations=[*rows, *others])
    b = run_of("b", episodes=ending(3, 4), steps=100, algorithm="a2c")
    found = upslope.compare([a])
    assert found.groups[0].scores.tolist() == [6.0, 9.0] and "2 evaluation episodes, stochastic" in found.score
    assert upslope.compare([a], score="deterministic").groups[0].scores.tolist() == [99.0, 99.0]
    assert upslope.compare([a], score="training").groups[0].scores.tolist() == [1.0, 2.0]
    mixed = upslope.compare([a, b])
    assert mixed.groups[0].scores.tolist() == [1.0, 2.0] and "training" in mixed.score
    assert warned(mixed, "evaluation episodes are ignored", "/b has none")
    with pytest.raises(upslope.UpslopeError, match=r"--score stochastic needs evaluation.*/b"):
        upslope.compare([a, b], score="stochastic")


def test_different_numbers_of_evaluation_episodes_are_told(run_of):
    a = run_of("a", episodes=ending(1), steps=100, evaluations=[evaluation(0, 5.0)])
    b = run_of("b", episodes=ending(1), steps=100, algorithm="a2c", evaluations=[evaluation(0, 5.0)] * 3)
    assert warned(upslope.compare([a, b]), "different numbers of evaluation episodes", "1: ", "3: ")

    some = run_of("some", episodes=ending(1, 1), steps=100, evaluations=[evaluation(0, 5.0)] * 3 + [evaluation(1, 5.0)])
    found = upslope.compare([some])
    assert warned(found, "different numbers of evaluation episodes", "1 to 3: ") and "1 to 3 evaluation" in found.score


def test_seeds_without_an_evaluation_are_named(run_of):
    run = run_of("run", episodes=ending(*range(9)), steps=100, evaluations=[evaluation(1, 5.0)])
    found = upslope.compare([run])
    assert "training" in found.score and warned(found, "evaluation episodes are ignored", "has none for seeds 0, 2")
    whole = run_of("whole", episodes=ending(1), steps=100, algorithm="a2c", evaluations=[evaluation(0, 5.0)])
    words = "has none for seeds 0, 2, 3, 4, 5 and 3 more"
    assert warned(upslope.compare([run, whole]), "evaluation episodes are ignored", words)
    with pytest.raises(upslope.UpslopeError, match=words):
        upslope.compare([run], score="stochastic")


def test_an_evaluation_that_is_not_finite_is_no_score(run_of):
    rows = [evaluation(0, 5.0), evaluation(0, math.nan), evaluation(1, 7.0)]
    run = run_of("run", episodes=ending(1, 1), steps=100, evaluations=rows)
    found = upslope.compare([run])
    assert warned(found, "run, seed 0: not every evaluation return is finite, so it has no score")
    np.testing.assert_array_equal(found.groups[0].scores, [np.nan, 7.0])


def test_recorded_data_need_an_evaluation(run_of):
    path = run_of(episodes={0: [], 1: []}, steps=100, algorithm="clone", data="x.npz")
    with pytest.raises(upslope.UpslopeError, match=r"learned from recorded data.*upslope evaluate"):
        upslope.compare([path])
    played = run_of("played", episodes=ending(1, 2), steps=100)
    found = upslope.compare([path, played])
    assert [g.algorithm for g in found.groups] == ["ppo"] and warned(found, f"left out: {path} learned from recorded")
    rows = [evaluation(seed, 5.0 + seed) for seed in (0, 1)]
    judged = run_of("judged", episodes={0: [], 1: []}, steps=100, algorithm="clone", data="x.npz", evaluations=rows)
    assert [g.algorithm for g in upslope.compare([judged]).groups] == ["clone"]
    assert [g.algorithm for g in upslope.compare([judged, played]).groups] == ["ppo"]


def test_nothing_to_compare():
    with pytest.raises(upslope.UpslopeError, match="No run was given"):
        upslope.compare([])


def test_the_table_and_the_json_say_the_same(run_of, capsys):
    runs = [str(path) for path in two_environments(run_of)]
    main(["compare", *runs, "--normalize", "range"])
    shown = capsys.readouterr().out
    for words in (
        "300 ± 497",
        "CartPole-v1 · scores",
        "0.75 ±",
        "! ",
        "P(ppo > a2c)",
        "lowest and highest score of",
    ):
        assert words in shown, words
    main(["compare", *runs, "--normalize", "range", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(upslope.compare(runs, normalize="range").to_json()))
    assert found["groups"][0]["mean"]["value"] == 300.0 and found["groups"][0]["runs"] == [runs[0]]


def test_json_is_strict(run_of, capsys):
    main(["compare", str(run_of(episodes={0: []}, steps=100)), "--json"])
    text = capsys.readouterr().out
    assert "NaN" not in text and json.loads(text)["groups"][0]["scores"] == [None]


def test_bad_input_is_one_line(run_of, tmp_path, capsys):
    for words in (["compare", str(tmp_path / "none")], ["compare"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith("upslope: ") and error.count("\n") == 1


def test_groups_behind_different_wrappers_are_compared_with_a_warning(run_of):
    clipped = {"wrappers": ('ClipReward:{"min_reward": 0, "max_reward": 0.1}',)}
    plain = run_of("a", episodes=ending(10, 20, 30), steps=100)
    wrapped = run_of("b", episodes=ending(1, 2, 3), steps=100, **clipped)
    other = run_of("c", episodes=ending(1, 2, 3), steps=100, environment="Acrobot-v1", **clipped)
    found = upslope.compare([plain, wrapped, other])
    assert warned(found, "different wrappers in CartPole-v1", "none: ppo wrappers=", "ClipReward", "comparable only if")
    assert not warned(found, "different wrappers in Acrobot-v1")
    assert not warned(
        upslope.compare([wrapped, run_of("d", episodes=ending(4), steps=100, gamma=0.5, **clipped)]), "wrapp"
    )
