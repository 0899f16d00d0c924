"""Regression checks for inputs that once broke upslope: environments, calls, and trusted and untrusted files.

    python benchmarks/field.py             # every input, each in its own process (a few minutes)
    python benchmarks/field.py NAME …      # some of them; other stored results are kept
    python benchmarks/field.py list        # their names

Stores benchmarks/results/field.json, and writes the table into docs/reliability.md. An input passes if its condition
holds; what was observed is reported either way.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pages import fill

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "field.json", HERE.parent / "docs" / "reliability.md"
LIMIT = 600
"""The number of seconds after which an input is considered to hang."""
SMALL: dict[str, Any] = {"preset": False, "quiet": True, "num_envs": 2, "rollout_steps": 16, "minibatches": 2}
E20: dict[str, Any] = {"max_episode_steps": 20}

Found = tuple[bool, str]
"""Whether the condition holds, and what was observed."""


@dataclass(frozen=True)
class Input:
    """An input to try, and the condition that must hold."""

    group: str
    must: str
    attempt: Callable[[], Found]


INPUTS: dict[str, Input] = {}


def tried(group: str, must: str) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    """Return a decorator that registers a function as an input under the function's name."""

    def enter(attempt: Callable[[], Found]) -> Callable[[], Found]:
        INPUTS[attempt.__name__.replace("_", " ")] = Input(group, must, attempt)
        return attempt

    return enter


def train(kind: str, **settings: Any) -> Any:
    """Train on one of the environments in `field_environments`, in the current folder."""
    import upslope

    return upslope.train(f"field_environments:{kind}", **(SMALL | {"steps": 640} | settings))


def refusal(attempt: Callable[[], Any], *words: str) -> Found:
    """Check that a call is refused with a single message that contains these words."""
    import upslope

    try:
        attempt()
    except upslope.UpslopeError as error:
        return all(word in str(error) for word in words), f"refused: {error}"
    return False, "taken"


def said(attempt: Callable[[], Any]) -> tuple[Any, str]:
    """Make a call, and return its result and what it wrote to standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as text:
        result = attempt()
    return result, text.getvalue()


def checks_of(name: str) -> Any:
    """Return the findings of `upslope check` for one of the environments."""
    import upslope

    return upslope.check(f"field_environments:{name}", **E20)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `upslope` with these arguments and no standard input."""
    program = [sys.executable, "-P", "-c", "from upslope.cli.main import main; main()", *words]
    return subprocess.run(program, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def check_names(name: str, *words: str) -> Found:
    """Check that `upslope check` reports the problem in these words."""
    lines = [f"{one.name}: {one.found}" for one in checks_of(name).checks if one.status == "error"]
    return any(all(word in line for word in words) for line in lines), "; ".join(lines) or "no error"


# --- the interface -------------------------------------------------------------------------------------------------


@tried("the interface", "float observations in a uint8 space are refused, and the error gives the space and the value")
def floats_in_an_integer_box() -> Found:
    return refusal(lambda: train("FloatsInAnIntegerBox", **E20), "FloatsInAnIntegerBox", "uint8")


@tried("the interface", "the observation 7 in Discrete(3) is refused, and the error gives the space and the value")
def beyond_discrete() -> Found:
    return refusal(lambda: train("BeyondDiscrete", **E20), "BeyondDiscrete", "7", "Discrete(3)")


@tried("the interface", "training and check report that 32-bit floats cannot represent the differences")
def far_from_zero() -> Found:
    _, text = said(lambda: train("FarFromZero", **E20))
    finding = "; ".join(one.found for one in checks_of("FarFromZero").checks)
    return "cannot see the variation" in text and "float32" in finding, text.strip() or "nothing said"


@tried("the interface", "every action lies in a float64 space and has its dtype, even at the bound")
def strict_about_actions() -> Found:
    return bool(train("StrictAboutActions", steps=3200, **E20).path), "trained"


@tried("the interface", "training and resuming work with the action spaces Box(2, 3) and Box()")
def actions_of_other_shapes() -> Found:
    import gymnasium
    import numpy as np
    from field_environments import Plain

    import upslope

    for shape in ((2, 3), ()):
        space = gymnasium.spaces.Box(-1, 1, shape, np.float32)
        kind = type("Shaped", (Plain,), {"action_space": space})
        run = upslope.train(kind, name=f"of-{len(shape)}-axes", steps=320, **SMALL, **E20)
        upslope.resume(run.path, environment=kind, quiet=True)
    return True, "trained and resumed"


@tried("the interface", "a reward of shape (1,) is accepted or reported")
def one_reward() -> Found:
    return bool(train("OneReward", **E20).path), "taken"


@tried("the interface", "reset seeds stay below 2³¹")
def small_seeds_only() -> Found:
    return bool(train("SmallSeedsOnly", **E20).path), "trained"


@tried("the interface", "workers train on the same environment class as the main process")
def another_class_under_a_known_id() -> Found:
    import gymnasium
    from field_environments import Plain

    import upslope

    gymnasium.register("CartPole-v1", Plain, max_episode_steps=20)
    found = [
        upslope.train("CartPole-v1", seeds=2, name=f"w{n}", workers=n, steps=640, **SMALL).returns.tolist()
        for n in (1, 2)
    ]
    return found[0] == found[1], f"returns {found[0]} in one process, {found[1]} in two"


@tried("the interface", "a run's policy is not evaluated in an environment with different spaces")
def other_spaces_at_evaluation() -> Found:
    import gymnasium
    import numpy as np
    from field_environments import Plain

    import upslope

    class Wider(Plain):
        observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)

        def reset(self, **options: Any) -> Any:
            super().reset(**options)
            return np.zeros(3, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(3, np.float32), *super().step(action)[1:]

    run = train("Plain", **E20).path
    return refusal(lambda: upslope.evaluate(run, environment=Wider, episodes=1), "observation")


@tried("the interface", "training with one step per batch learns, or reports why it cannot")
def one_sample_a_batch() -> Found:
    import upslope

    settings = {"num_envs": 1, "rollout_steps": 1, "steps": 20_000, "preset": False}
    run, text = said(lambda: upslope.train("jax:CartPole-v1", "actor_critic", **settings))
    moved = max(abs(row["policy/loss"]) for row in run.metrics())
    return moved > 0, f"largest policy loss {moved:.3g}; {text.strip()[:160]}"


@tried("the interface", "with the defaults and a constant reward of 1, the critic learns V near 1")
def constant_reward() -> Found:
    import upslope

    run = upslope.train("jax:probe/constant", steps=40_000, quiet=True)
    value = float(upslope.load(run.path, checkpoint="last").value([0.0]))
    return abs(value - 1) < 0.1, f"V = {value:.3f}"


@tried("the interface", "with −inf logits, entropy and KL have their limiting values")
def forbidden_by_logits() -> Found:
    import jax.numpy as jnp

    from upslope.core.distributions import Categorical

    one, other = Categorical(jnp.asarray([0.0, 0.0, -jnp.inf])), Categorical(jnp.asarray([1.0, 0.0, -jnp.inf]))
    entropy, kl = float(one.entropy()), float(one.kl(other))
    return abs(entropy - 0.693147) < 1e-5 and 0 < kl < 1, f"entropy {entropy:.4f}, KL {kl:.4f}"


# --- closing -------------------------------------------------------------------------------------------------------


@tried("closing", "with two workers, as many simulators are closed as were opened")
def counts_its_simulators() -> Found:
    os.environ["CLOSE_LOG"] = str(Path("log").resolve())
    train("CountsItsSimulators", seeds=2, workers=2, **E20)
    words = Path("log").read_text().split()
    return words.count("open") == words.count(
        "close"
    ) > 0, f"{words.count('open')} opened, {words.count('close')} closed"


@tried("closing", "an error in close() loses no results")
def fails_to_close() -> Found:
    import upslope

    run, text = said(lambda: train("FailsToClose", **E20))
    found, _ = said(lambda: upslope.evaluate(run.path, episodes=2))
    return bool(found) and "close()" in text, text.strip()[:160]


@tried("closing", "a program that reads standard input does not hang the workers")
def reads_standard_input() -> Found:
    return bool(train("ReadsStandardInput", seeds=2, workers=2, **E20).path), "trained"


@tried("closing", "a file queue.py in the current folder is not executed by workers")
def a_module_in_the_current_folder() -> Found:
    Path("queue.py").write_text("open('executed', 'w').close()\nraise SystemExit\n")
    done = command(*["train", "CartPole-v1", "--seeds", "2", "--workers", "2", "--steps", "640", "--quiet"])
    return done.returncode == 0 and not Path("executed").exists(), f"exit status {done.returncode}"


# --- upslope check -------------------------------------------------------------------------------------------------


@tried("upslope check", "if reset() returns no info, one line states what was returned and what is expected")
def old_reset() -> Found:
    return check_names("OldReset", "reset()")


@tried("upslope check", "the same for an observation of the wrong shape")
def wrong_shape() -> Found:
    return check_names("WrongShape", "(1, 2)", "(2,)")


@tried("upslope check", "the same for missing spaces")
def no_spaces() -> Found:
    return check_names("NoSpaces", "observation_space")


@tried("upslope check", "an action mask in `info` is recognised, and training never takes a forbidden action")
def masked() -> Found:
    found = checks_of("Masked").checks
    lines = [f"{one.name}: {one.found}" for one in found]
    train("Masked", **E20)  # a forbidden action would raise an error
    return any("mask" in line for line in lines), "; ".join(line for line in lines if "mask" in line)


# --- untrusted files -----------------------------------------------------------------------------------------------


def strangers_run() -> Path:
    """Create a run whose config would execute a command if it were trusted."""
    run = train("Plain", name="stranger", **E20).path
    description = json.loads((run / "config.json").read_text())
    touch = f"touch {Path('executed').resolve()}"
    description["config"] |= {"environment": "subprocess:getoutput", "env_kwargs": {"cmd": touch}}
    (run / "config.json").write_text(json.dumps(description))
    return run


@tried("untrusted files", "evaluate, resume, record, credit and a report with --credit run no command from a config")
def a_command_in_a_config() -> Found:
    import upslope
    from upslope.report.page import write_credit, write_report

    run, found = strangers_run(), []
    calls = {
        "evaluate": lambda: upslope.evaluate(run),
        "resume": lambda: upslope.resume(run, quiet=True),
        "record": lambda: upslope.record(run),
        "credit": lambda: write_credit(run),
        "report": lambda: write_report([run], "page.html", credit=True),
    }
    for name, call in calls.items():
        # A report omits what it is not allowed to run; all other commands refuse.
        if not refusal(call, "trust")[0] and name != "report":
            found.append(name)
    return not found and not Path("executed").exists(), f"not refused: {found}" if found else "all refused"


@tried("untrusted files", "`train --config FILE`, with and without --help, runs no command from the file")
def a_command_in_a_settings_file() -> Found:
    Path("settings.yaml").write_text("environment: subprocess:getoutput\nenv_kwargs: {cmd: touch executed}\n")
    codes = []
    for words in ([], ["--help"]):
        codes.append(command("train", "--config", "settings.yaml", *words).returncode)
    return not Path("executed").exists() and codes[0] == 2, f"exit status {codes[0]}; of --help {codes[1]}"


@tried("untrusted files", "a symbolic link in a run does not redirect writes outside it")
def a_link_out_of_a_run() -> Found:
    import upslope

    run = train("Plain", name="linked", **E20).path
    Path("outside").write_text("mine\n")
    (run / "evaluation.csv").symlink_to(Path("outside").resolve())
    found = refusal(lambda: upslope.evaluate(run, episodes=1), "symbolic link")
    return found[0] and Path("outside").read_text() == "mine\n", found[1]


@tried("untrusted files", "names that lead out of the folder or are invalid as file names are refused")
def names_that_are_no_names() -> Found:
    found = [
        refusal(lambda name=name: train("Plain", name=name, **E20), "name")[0] for name in ("../x", ".", "x" * 300)
    ]
    return all(found), f"refused: {found}"


# --- defaults ------------------------------------------------------------------------------------------------------


@tried("defaults", "a learning rate edited in config.json is not used silently")
def an_edited_learning_rate() -> Found:
    import upslope

    run = train("Plain", name="edited", **E20).path
    description = json.loads((run / "config.json").read_text())
    description["config"]["learning_rate"] = 0.5
    (run / "config.json").write_text(json.dumps(description))
    return refusal(lambda: upslope.resume(run, quiet=True), "learning_rate")


@tried("defaults", "a solved regulator is reported as healthy")
def regulator() -> Found:
    import upslope

    run = upslope.train("field_environments:Regulator", seeds=3, steps=100_000, preset=False, quiet=True)
    found = upslope.diagnose(run.path).alarms
    return not found, f"returns {[round(float(r), 2) for r in run.returns]}; alarms {[one.cause for one in found]}"


@tried("defaults", "the doctor does not blame an environment whose action matters only at the end")
def cue() -> Found:
    import upslope

    run = upslope.train("field_environments:Cue", seeds=3, steps=20_000, preset=False, quiet=True)
    found = [one.cause for one in upslope.diagnose(run.path).alarms]
    return "actions_without_effect" not in found, f"alarms {found}"


def attempt_one(name: str) -> Found:
    """Try one input in its own process, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, str(HERE / "field.py"), "--here", name]
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH", ""))))
        environment = os.environ | {"PYTHONPATH": path, "UPSLOPE_STATE": str(Path(folder) / "state")}
        try:
            done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return False, f"hangs: stopped after {LIMIT} s"
    try:
        is_right, found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return False, f"ended with a traceback: {' '.join(done.stderr.split())[-200:]}"
    return bool(is_right), found


def table(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Format the table for the page. Groups and conditions come from this file; only what was observed is stored."""
    lines = ["| what | input | must be true | holds |", "|---|---|---|---|"]
    for row in rows:
        holds = "yes" if row["right"] else f"**no**: {row['found'][:120]}"
        one = INPUTS[row["input"]]
        lines.append(f"| {one.group} | {row['input']} | {one.must} | {holds} |")
    count = sum(row["right"] for row in rows)
    measured = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n".join([*lines, "", f"{count} of {len(rows)} hold. Measured with {measured}."])


def main(names: list[str]) -> None:
    """Try the inputs, and print and store the results."""
    if names == ["list"]:
        print("\n".join(INPUTS))
        return
    if names[:1] == ["--here"]:
        print(json.dumps(INPUTS[names[1]].attempt()))
        return
    rows = []
    for name in names or INPUTS:
        one = INPUTS[name]
        is_right, found = attempt_one(name)
        rows.append({"group": one.group, "input": name, "must": one.must, "right": is_right, "found": found})
        print(f"{'yes' if is_right else 'NO ':4} {name}: {found[:200]}", flush=True)
    from upslope.runs.directory import versions

    if names and RESULTS.exists():
        before = json.loads(RESULTS.read_text("utf-8"))["inputs"]
        found = {row["input"]: row for row in (*before, *rows)}
        rows = [found[name] for name in INPUTS if name in found]
    stored = {"date": time.strftime("%Y-%m-%d"), "versions": versions(), "inputs": rows}
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    fill(PAGE, "field", table(rows, versions()))


if __name__ == "__main__":
    main(sys.argv[1:])
