"""The ladder trains every suitable rung with the same seeds and budget, and loses nothing when it is stopped."""

import io
import json
import shutil

import numpy as np
import pytest
from rich.console import Console

import upslope
from upslope.cli.main import main
from upslope.config.ladder import ALGORITHMS
from upslope.engines.compiled import ProgramEngine
from upslope.lab import ladder as ladders
from upslope.lab import ladder_display
from upslope.lab.ladder import fitting_configs
from upslope.runs.directory import RunDirectory
from upslope.runs.display import LiveDisplay, Snapshot

SMALL = {"steps": 300, "seeds": 2, "num_envs": 2, "rollout_steps": 16, "minibatches": 1, "hidden_sizes": (8,)}
OWN = [name for name, rung in ALGORITHMS.items() if rung.source == "own"]


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    return upslope.ladder(
        "jax:CartPole-v1", algorithms=["reinforce", "a2c", "clone"], folder=folder, name="three", quiet=True, **SMALL
    )


def test_each_rung_is_an_ordinary_run_with_the_same_seeds_and_budget(race):
    assert [g.label for g in race.comparison.groups] == ["reinforce", "a2c"]
    assert [g.runs for g in race.comparison.groups] == [(race.path / "reinforce",), (race.path / "a2c",)]
    assert {(g.seeds, g.budget) for g in race.comparison.groups} == {((0, 1), 300)}
    assert list(race.left_out) == ["clone"] and "recorded data" in race.left_out["clone"]
    upslope.load(race.path / "a2c")


def test_a_rung_is_set_as_train_sets_it(race, tmp_path):
    alone = upslope.train("jax:CartPole-v1", "a2c", folder=tmp_path, quiet=True, **SMALL)
    assert alone.config == RunDirectory(race.path / "a2c").config()
    trained = upslope.compare([race.path / "a2c"], score="training").groups[0]
    np.testing.assert_array_equal(alone.returns, trained.scores)


def test_rungs_are_judged_by_fresh_episodes_and_once(race, tmp_path):
    assert "20 evaluation episodes" in race.comparison.score
    path = race.path / "a2c" / "evaluation.csv"
    before = path.read_text()
    options = {"algorithms": ["reinforce", "a2c"], "folder": race.path.parent, "name": "three", "quiet": True}
    upslope.ladder("jax:CartPole-v1", resume=True, **options, **SMALL)
    assert path.read_text() == before
    quick = upslope.ladder(
        "jax:CartPole-v1", algorithms=["a2c"], folder=tmp_path, quiet=True, evaluation_episodes=0, **SMALL
    )
    assert "last 100 training episodes" in quick.comparison.score
    assert not (quick.path / "a2c" / "evaluation.csv").exists()


def test_rungs_are_judged_by_as_many_episodes_as_are_asked_for(tmp_path):
    """If a ladder is resumed with more evaluation episodes, rungs that were evaluated with fewer are evaluated
    again."""
    options = {"algorithms": ["a2c"], "folder": tmp_path, "name": "x", "quiet": True} | SMALL
    upslope.ladder("jax:CartPole-v1", evaluation_episodes=2, **options)
    upslope.evaluate(tmp_path / "x" / "a2c", episodes=3, environment_seed=1)  # the user's own evaluation is kept
    for episodes, known in ((5, 5), (2, 5)):
        upslope.ladder("jax:CartPole-v1", evaluation_episodes=episodes, resume=True, **options)
        rows = RunDirectory(tmp_path / "x" / "a2c").evaluations()
        for mode, count in [(mode, known) for mode in ("stochastic", "deterministic")]:
            mine = rows[rows["mode"] == mode]
            assert [(mine["environment_seed"] == seed).sum() for seed in (0, 1)] == [2 * count, 2 * 3]
    found = upslope.ladder("jax:CartPole-v1", evaluation_episodes=0, resume=True, **options)
    assert "training episodes" in found.comparison.score and "training episodes" in found.report.read_text()


def test_the_page_shows_who_is_blamed_by_a_critic_where_there_is_one(race):
    """Only a2c has a critic, so its credit view is shown even though reinforce is listed first and may score better."""
    kept = [p.parent.name for p in race.path.glob("*/credit.npz")]
    assert kept == ["a2c"]


def test_all_rungs_that_act_for_themselves_take_part(tmp_path):
    world = upslope.make("jax:CartPole-v1")
    configs, left_out = fitting_configs("jax:CartPole-v1", world, None, True, {"steps": 300})
    assert list(configs) == OWN and set(left_out) == set(ALGORITHMS) - set(OWN)
    assert configs["ppo"].preset is not None and configs["gae"].preset is None


def test_rungs_that_need_a_step_limit_are_named_where_there_is_none():
    world = upslope.make("user_environments:Walk")
    configs, left_out = fitting_configs("user_environments:Walk", world, None, True, {"steps": 300})
    whole = {"reinforce", "reward_to_go", "reinforce_baseline", "rloo", "grpo", "dr_grpo", "dapo"}
    assert set(configs) == set(OWN) - whole
    assert all("no step limit" in left_out[rung] for rung in whole)
    lines = ladder_display.left_out_lines(left_out)
    assert len(lines) == 6 and any("off_policy, clone" in line for line in lines)


def test_where_nothing_fits_it_says_why(tmp_path):
    with pytest.raises(upslope.UpslopeError, match=r"No rung fits.*recorded data"):
        upslope.ladder("jax:CartPole-v1", algorithms=["clone"], folder=tmp_path, quiet=True)
    with pytest.raises(upslope.UpslopeError, match='no algorithm "pp0"'):
        upslope.ladder("jax:CartPole-v1", algorithms=["pp0"], folder=tmp_path, quiet=True)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(race):
    with pytest.raises(upslope.UpslopeError, match=r"already exists.*--resume"):
        upslope.ladder("jax:CartPole-v1", folder=race.path.parent, name="three", quiet=True, **SMALL)
    with pytest.raises(upslope.UpslopeError, match="needs the --name of the ladder"):
        upslope.ladder("jax:CartPole-v1", folder=race.path.parent, resume=True, quiet=True, **SMALL)


def test_a_race_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(race, tmp_path, monkeypatch):
    """Press Ctrl-C during the second rung: the first is not retrained, the second continues, and the third starts."""
    options = {
        "algorithms": ["reinforce", "a2c", "actor_critic"],
        "folder": tmp_path,
        "name": "x",
        "quiet": True,
    } | SMALL
    advance, count = ProgramEngine.advance, iter(range(1000))

    def interrupted(self, state, *more):
        if self.task.estimator == upslope.NStep(5) and next(count) == 3:
            raise KeyboardInterrupt
        return advance(self, state, *more)

    monkeypatch.setattr(ProgramEngine, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt, match="--name x --resume"):
        upslope.ladder("jax:CartPole-v1", **options)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["a2c", "reinforce"]
    before = (tmp_path / "x" / "reinforce" / "metrics.jsonl").stat().st_mtime_ns
    found = upslope.ladder("jax:CartPole-v1", resume=True, **options)
    assert (tmp_path / "x" / "reinforce" / "metrics.jsonl").stat().st_mtime_ns == before
    assert [g.label for g in found.comparison.groups] == ["reinforce", "a2c", "actor_critic"]
    for ours, whole in zip(found.comparison.groups, race.comparison.groups, strict=False):
        np.testing.assert_array_equal(ours.scores, whole.scores)


def test_going_on_with_other_settings_is_refused_before_anything_is_trained(race, tmp_path):
    copy = shutil.copytree(race.path, tmp_path / "three")
    options = {"algorithms": ["actor_critic", "a2c"], "folder": tmp_path, "name": copy.name, "gamma": 0.5} | SMALL
    with pytest.raises(upslope.UpslopeError, match=r"a2c was trained with another config \(gamma was 0.99, now 0.5"):
        upslope.ladder("jax:CartPole-v1", resume=True, quiet=True, **options)
    assert not (copy / "actor_critic").exists()


def test_a_rung_that_breaks_does_not_stop_the_race(tmp_path, monkeypatch, capsys):
    begin = ladders.begin

    def broken(config, *arguments, **options):
        if config.algorithm == "reinforce":
            raise upslope.UpslopeError("It broke.")
        return begin(config, *arguments, **options)

    monkeypatch.setattr(ladders, "begin", broken)
    found = upslope.ladder("jax:CartPole-v1", algorithms=["reinforce", "a2c"], folder=tmp_path, quiet=True, **SMALL)
    assert found.left_out == {"reinforce": "It broke."} and [g.label for g in found.comparison.groups] == ["a2c"]
    assert "reinforce: It broke." in capsys.readouterr().err


def test_the_command_ends_in_the_comparison(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "ladder jax:CartPole-v1 --algorithms a2c clone --steps 100 --seeds 2"
    main(words.split())
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    for part in (
        "left out: clone: learns from",
        "a2c: starting",
        "a2c: finished 100 %",
        "scores",
        "upslope compare runs/",
    ):
        assert part in shown, part
    assert json.loads((tmp_path / "runs/jax-CartPole-v1-ladder/a2c/config.json").read_text())["config"]["seeds"] == 2
    main([*words.split(), "--quiet", "--name", "again"])
    assert capsys.readouterr().out == ""


def test_the_live_table_shows_every_rung(monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr(ladder_display, "choose", lambda quiet: LiveDisplay(console))
    snapshot = Snapshot(1, [50, 50], 100, [10.0, 20.0], [1.0, 1.0], {}, {}, 61.0, 1000.0)
    with ladder_display.LadderDisplay("a race", ["one", "two"], quiet=False) as shown:
        lane = ladder_display.RungDisplay(shown, "one")
        lane.start("", [])
        lane.update(snapshot)
        console.print(shown.table())
    text = stream.getvalue()
    for part in ("a race", "one", "two", "50 %", "15 ± 64", "thin evidence", "1:01", "training", "waiting"):
        assert part in text, part
