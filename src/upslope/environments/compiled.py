"""The compiled worlds by name."""

from collections.abc import Callable

from upslope.environments import probes
from upslope.environments.base import CompiledEnvironment
from upslope.environments.classic.acrobot import Acrobot
from upslope.environments.classic.cartpole import CartPole
from upslope.environments.classic.mountain_car import MountainCarContinuous
from upslope.environments.classic.pendulum import Pendulum
from upslope.environments.tabular import delayed_key, gridworld, short_corridor

COMPILED: dict[str, Callable[..., CompiledEnvironment]] = {
    "CartPole-v1": CartPole,
    "Pendulum-v1": Pendulum,
    "Acrobot-v1": Acrobot,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "GridWorld-v0": gridworld,
    "ShortCorridor-v0": short_corridor,
    "Key-v0": delayed_key,
    "probe/constant": probes.constant,
    "probe/observation": probes.observation,
    "probe/delay": probes.delay,
    "probe/action": probes.action,
    "probe/both": probes.both,
    "probe/truncation": probes.truncation,
    "probe/continuous": probes.continuous,
    "probe/multidiscrete": probes.multidiscrete,
    "probe/multibinary": probes.multibinary,
}
"""Name → constructor. The first four are Gymnasium's worlds, step for step, under Gymnasium's names and
with its keyword arguments. Every constructor can be called without arguments."""
