"""upslope doctor | check | probe: the commands that look for faults, and their flags.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import sys
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from upslope.cli.flags import JSON, Runs, Wrappers
from upslope.cli.terminal import answer, say
from upslope.config.config import positive

Json = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Doctor:
    """Say what is wrong with a run: symptom, evidence, likely cause and its rivals, remedy."""

    runs: Runs
    """The run directory, or several; they may still be training."""
    json: Json = False
    """Print JSON for programs: an object, or a list of them for several runs."""


@dataclass(frozen=True)
class Check:
    """Test an environment before training on it, in seconds, and propose how to begin."""

    environment: tyro.conf.Positional[str]
    """A Gymnasium id, `module:Id`, `module:callable`, or `jax:Name`."""
    env_kwargs: Annotated[dict[str, Any], JSON] = field(default_factory=dict)
    """Keyword arguments for the environment, as JSON."""
    wrappers: Wrappers = ()
    """A wrapper to put around the environment, repeatable, as in `upslope train`."""
    max_episode_steps: int | None = None
    """Truncate episodes after so many steps; by default at the environment's own limit."""
    json: Json = False
    """Print JSON for programs."""

    def __post_init__(self) -> None:
        positive(max_episode_steps=self.max_episode_steps)


@dataclass(frozen=True)
class Probe:
    """Train on nine worlds whose right answer is known: the first that fails says where the mistake is."""

    algorithm: str = "ppo"
    """The rung of the ladder."""
    estimator: str | None = None
    """Axis 1 instead of the rung's: a name, or your own as module:Name."""
    objective: str | None = None
    """Axis 2 instead of the rung's: a name, or your own as module:Name."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Activation of the hidden layers."""
    learning_rate: float | None = None
    """Adam's step size; by default one that suits the rung."""
    steps: int = 60_000
    """Environment steps per seed and probe."""
    seeds: int = 3
    """Seeds of each probe."""
    only: tuple[str, ...] = ()
    """Names of probes; by default all."""
    json: Json = False
    """Print JSON for programs."""

    def __post_init__(self) -> None:
        positive(seeds=self.seeds, steps=self.steps)


def doctor(flags: Doctor) -> None:
    """upslope doctor."""
    from upslope.analysis.records import read_records
    from upslope.cli.verdicts import diagnosis_view
    from upslope.diagnosis.doctor import diagnosis_of

    records, left_out = read_records(flags.runs)
    found = [diagnosis_of(record) for record in records]
    for warning in left_out:
        say(warning, sys.stderr)
    told = [one.to_json() for one in found]
    answer(flags.json, told if len(flags.runs) > 1 else told[0], map(diagnosis_view, found))


def check(flags: Check) -> None:
    """upslope check; the exit status is 1 where there is an error."""
    from upslope.cli.verdicts import check_view
    from upslope.diagnosis import check as checking

    settings = {name: getattr(flags, name) for name in ("env_kwargs", "wrappers", "max_episode_steps")}
    found = checking.check(flags.environment, **settings)
    answer(flags.json, found.to_json(), check_view(found))
    sys.exit(int(found.worst == "error"))


def probe(flags: Probe) -> None:
    """upslope probe; the exit status is 1 where a probe is not solved."""
    from upslope.cli.verdicts import probe_view
    from upslope.diagnosis import probe as probing

    settings = {name: value for name, value in vars(flags).items() if name != "json" and value is not None}
    found = probing.probe(**settings)
    title = " ".join(str(x) for x in (flags.algorithm, flags.estimator, flags.objective) if x)
    answer(flags.json, probing.to_json(found), probe_view(title, found))
    sys.exit(int(not all(one.solved for one in found)))


COMMANDS = {"doctor": Doctor, "check": Check, "probe": Probe}
DO = {Doctor: doctor, Check: check, Probe: probe}
