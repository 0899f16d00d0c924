"""The flags of the commands that look for faults: doctor, check, probe."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from upslope.flags import JSON, Run

Json = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class Doctor:
    """Say what is wrong with a run: symptom, evidence, likely cause and its rivals, remedy."""

    run: Run
    """The run directory; it may still be training."""
    json: Json = False
    """Print JSON for programs."""


@dataclass(frozen=True)
class Check:
    """Test an environment before training on it, in seconds, and propose how to begin."""

    environment: tyro.conf.Positional[str]
    """A Gymnasium id, `module:Id`, `module:callable`, or `jax:Name`."""
    env_kwargs: Annotated[dict[str, Any], JSON] = field(default_factory=dict)
    """Keyword arguments for the environment, as JSON."""
    max_episode_steps: int | None = None
    """Truncate episodes after so many steps; by default at the environment's own limit."""
    json: Json = False
    """Print JSON for programs."""


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
