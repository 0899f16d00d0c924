"""The cases of `speed.py`, in which upslope and its peers do the same work, and where to get the peers.

A contender whose name begins with "upslope" is upslope itself. One whose name begins with "raw" learns nothing and only
serves as an upper bound. All others are rivals. All contenders in a case do the same work: the same environment, batch,
epochs, minibatches and widths, on the same cores.
"""

from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["steps_per_second", "seconds"]

PEERS = {
    "rejax": ("rejax", "gymnax==0.0.9"),  # rejax 0.1.3 expects gymnax's old five-value step
    "baselines": (
        "stable-baselines3",
        "sbx-rl",
        "sb3-contrib",
        "gymnasium[mujoco,atari]",
        "opencv-python-headless",
        "tyro",
        "tensorboard",
    ),
    "purejaxrl": ("flax", "distrax", "gymnax==0.0.9"),
    "rltools": ("rltools==2.2.1", "gymnasium[mujoco]"),
}
"""Virtual environment → the packages in it. RLtools also needs g++ and OpenBLAS (Debian: g++, libopenblas-dev)."""
CLONES = {
    "purejaxrl-clone": ("https://github.com/luchris429/purejaxrl", "31756b1"),
    "cleanrl-clone": ("https://github.com/vwxyzjn/cleanrl", "fe8d8a0"),
}
"""Peers that are not packages. Name of the folder next to the virtual environments → repository, commit."""
PUREJAXRL, CLEANRL = CLONES


@dataclass(frozen=True)
class Contender:
    """A library that does the work of a case."""

    name: str
    environment: str
    """The name of the contender's virtual environment."""
    script: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """A piece of work that all contenders do, one after another, in each round."""

    title: str
    contenders: tuple[Contender, ...]
    is_pinned: bool = False
    """Whether each contender gets only one core. Otherwise, each gets all of them."""
    unit: Unit = "steps_per_second"
    """The measured quantity: a rate, or the duration of all the work in seconds."""


def upslope(name: str, environment: str, seeds: int, steps: int, settings: dict[str, Any]) -> Contender:
    """Return a contender that runs upslope the way a user would."""
    return Contender(name, "upslope", "measure_upslope.py", (environment, seeds, steps, settings))


def baselines(name: str, library: str, environment: str, processes: int, steps: int, settings: Any) -> Contender:
    """Return a contender that runs Stable-Baselines3 or SBX."""
    return Contender(name, "baselines", "measure_baselines.py", (library, environment, processes, steps, settings))


def rejax(name: str, seeds: int, steps: int, *more: Any) -> Contender:
    """Return a contender that runs rejax."""
    return Contender(name, "rejax", "measure_rejax.py", (seeds, steps, *more))


def purejaxrl(name: str, file: str, environment: str, steps: int, processes: int, settings: Any) -> Contender:
    """Return a contender that runs PureJaxRL from its clone."""
    arguments = (PUREJAXRL, file, environment, steps, processes, settings)
    return Contender(name, "purejaxrl", "measure_purejaxrl.py", arguments)


def cleanrl(name: str, environment: str, processes: int, steps: int, num_envs: int, num_steps: int) -> Contender:
    """Return a contender that runs CleanRL's PPO from its clone, with networks compiled by PyTorch."""
    return Contender(
        name, "baselines", "measure_cleanrl.py", (CLEANRL, environment, processes, steps, num_envs, num_steps)
    )


def rltools(name: str, steps: int, shape: dict[str, Any]) -> Contender:
    """Return a contender that runs RLtools' C++ library on its own Pendulum."""
    return Contender(name, "rltools", "measure_rltools.py", (steps, shape))


def rltools_gymnasium(name: str, environment: str, processes: int, steps: int, settings: dict[str, Any]) -> Contender:
    """Return a contender that runs RLtools through its Python interface, which steps Gymnasium's environments."""
    return Contender(name, "rltools", "measure_rltools_gymnasium.py", (environment, processes, steps, settings))


def raw(name: str, environment: str, processes: int) -> Contender:
    """Return a contender that only steps a Gymnasium environment, without learning."""
    return Contender(name, "upslope", "measure_raw.py", (environment, processes))


def shell(name: str, environment: str, cache: str, score: float | str, *command: Any) -> Contender:
    """Return a contender whose whole shell command is timed, with a cold or a warm cache of compiled programs. The
    command must produce a policy that reaches this score, unless the score is "any"."""
    return Contender(name, environment, "measure_shell.py", (cache, score, *command))


SAME = {"normalize_rewards": False, "normalize_observations": False}
CARTPOLE = {"n_envs": 8, "n_steps": 128, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4}
ATARI = CARTPOLE | {"clip_range": 0.1, "ent_coef": 0.01}
PAPER = {"n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10}
WIDE = {"n_envs": 8, "n_steps": 256, "batch_size": 512, "n_epochs": 4}
WIDE_HERE = SAME | {"num_envs": 8, "rollout_steps": 256, "epochs": 4, "minibatches": 4}
WIDE_RLTOOLS = {"N_ENVIRONMENTS": 8, "ON_POLICY_RUNNER_STEPS_PER_ENV": 256, "BATCH_SIZE": 512, "N_EPOCHS": 4}
A2C = SAME | {"algorithm": "a2c", "num_envs": 16, "rollout_steps": 5}
BREAKOUT = SAME | {"num_envs": 64, "rollout_steps": 128, "minibatches": 8, "encoder": ["perceptron"]}
GRU = SAME | {
    "num_envs": 4, "rollout_steps": 128, "memory": "gru", "memory_size": 128, "hidden_sizes": [128],
    "shared_trunk": True, "activation": "relu",
}  # fmt: skip
MINIGRID = {"num_envs": 8, "rollout_steps": 128, "epochs": 10, "minibatches": 16, "ignore_observation": ["mission"]}
RECURRENT = {"n_envs": 4, "n_steps": 128, "batch_size": 128, "n_epochs": 4, "learning_rate": 2.5e-4}
COMPILED = SAME | {"num_envs": 64, "rollout_steps": 128}
BROAD = COMPILED | {"hidden_sizes": [256, 256]}
CHEETAH = "HalfCheetah-v5"


def on_pendulum(
    title: str, here: int, there: int, activation: str, settings: dict[str, Any], shape: dict[str, int]
) -> Case:
    """Return the case of Pendulum on one core, with these numbers of steps for upslope and for RLtools. RLtools is also
    measured with its faster approximation of tanh."""
    ours = settings | {"num_envs": shape["envs"], "rollout_steps": shape["steps"], "activation": activation}
    quotients = [("RLtools, its fast tanh", "FAST_TANH")] if activation == "tanh" else []
    theirs = [*quotients, ("RLtools", activation.upper())]
    return Case(
        f"compiled Pendulum, {title}, one core",
        (
            upslope("upslope", "jax:Pendulum-v1", 1, here, ours),
            *(rltools(name, there, shape | {"activation": kind}) for name, kind in theirs),
        ),
        is_pinned=True,
    )


def ppo_on_pendulum(title: str, here: int, there: int, activation: str, shape: dict[str, int]) -> Case:
    """Return a Pendulum case with PPO, in which upslope's epochs and minibatches match RLtools' shape."""
    minibatches = shape["envs"] * shape["steps"] // shape["batch"]
    settings = SAME | {"epochs": shape["epochs"], "minibatches": minibatches}
    return on_pendulum(title, here, there, activation, settings, shape)


ON_PENDULUM: dict[str, Case] = {
    "pendulum_64x128": ppo_on_pendulum(
        "64 × 128, batch 2048, 4 epochs, 64-64 tanh", 1_500_000, 1_000_000, "tanh",
        {"envs": 64, "steps": 128, "batch": 2048, "epochs": 4},
    ),
    "pendulum_4x1024": ppo_on_pendulum(
        "4 × 1024, batch 256, 2 epochs, 64-64 relu", 1_500_000, 2_000_000, "relu",
        {"envs": 4, "steps": 1024, "batch": 256, "epochs": 2},
    ),
    "pendulum_1x2048": ppo_on_pendulum(
        "1 × 2048, batch 64, 10 epochs, 64-64 tanh (the shape of Schulman et al. 2017)", 400_000, 400_000, "tanh",
        {"envs": 1, "steps": 2048, "batch": 64, "epochs": 10},
    ),
    "pendulum_a2c": on_pendulum(
        "A2C, 16 × 5, one batch of 80, 64-64 tanh", 2_000_000, 3_000_000, "tanh", A2C,
        {"envs": 16, "steps": 5, "batch": 80, "epochs": 1},
    ),
}  # fmt: skip

COMPILED_ENVIRONMENTS: dict[str, Case] = {
    "compiled_1": Case(
        "compiled CartPole, 64 × 128, 4 epochs × 4 minibatches, one seed",
        (
            upslope("upslope", "jax:CartPole-v1", 1, 3_000_000, COMPILED),
            purejaxrl("PureJaxRL", "ppo", "CartPole-v1", 1_500_000, 1, {"NUM_ENVS": 64}),
            rejax("rejax", 1, 1_500_000),
        ),
    ),
    "compiled_8": Case(
        "compiled CartPole, 64 × 128, 4 epochs × 4 minibatches, 8 seeds in all",
        (
            upslope("upslope", "jax:CartPole-v1", 8, 1_000_000, COMPILED),
            purejaxrl("PureJaxRL, 2 processes", "ppo", "CartPole-v1", 1_500_000, 2, {"NUM_ENVS": 64}),
            rejax("rejax", 8, 200_000),
        ),
    ),
    "compiled_wide": Case(
        "compiled CartPole, 64 × 128, 4 epochs × 4 minibatches, 256-256 tanh, 2 seeds",
        (
            upslope("upslope", "jax:CartPole-v1", 2, 400_000, BROAD),
            purejaxrl("PureJaxRL, 2 processes", "ppo", "CartPole-v1", 200_000, 2, {"NUM_ENVS": 64, "WIDTH": 256}),
            rejax("rejax", 2, 200_000, 64, "CartPole-v1", 4, 256),
        ),
    ),
    "breakout": Case(
        "gymnax Breakout-MinAtar, 64 × 128, 4 epochs × 8 minibatches, 64-64 tanh networks on the flattened board",
        (
            upslope("upslope, 1 seed", "gymnax:Breakout-MinAtar", 1, 800_000, BREAKOUT),
            upslope("upslope, 2 seeds", "gymnax:Breakout-MinAtar", 2, 800_000, BREAKOUT),
            purejaxrl(
                "PureJaxRL, 2 processes", "ppo", "Breakout-MinAtar", 500_000, 2,
                {"NUM_ENVS": 64, "NUM_MINIBATCHES": 8},
            ),
            rejax("rejax, 2 seeds", 2, 250_000, 64, "Breakout-MinAtar", 8),
        ),
    ),
    "gru": Case(
        "CartPole with a GRU of 128 units, 4 × 128, 4 epochs × 4 minibatches of one environment",
        (
            upslope("upslope, 1 seed", "jax:CartPole-v1", 1, 300_000, GRU),
            upslope("upslope, 2 seeds", "jax:CartPole-v1", 2, 300_000, GRU),
            upslope("upslope, Gymnasium, 2 seeds", "CartPole-v1", 2, 30_000, GRU),
            purejaxrl("PureJaxRL ppo_rnn", "ppo_rnn", "CartPole-v1", 200_000, 1, {}),
            purejaxrl("PureJaxRL ppo_rnn, 2 processes", "ppo_rnn", "CartPole-v1", 200_000, 2, {}),
            baselines("RecurrentPPO (LSTM), 2 processes", "recurrent", "CartPole-v1", 2, 4_096, RECURRENT),
        ),
    ),
}  # fmt: skip

GYMNASIUM: dict[str, Case] = {
    "parts": Case(
        "CartPole as a vector, as a Dict of two vectors, and with a mask, on the host, 8 × 128, 8 seeds",
        (
            upslope("upslope", "worlds:Parted", 8, 60_000, SAME),
            upslope("upslope, Dict", "worlds:Dicts", 8, 60_000, SAME),
            upslope("upslope, mask", "worlds:Masked", 8, 60_000, SAME),
        ),
    ),
    "minigrid": Case(
        "MiniGrid-DoorKey-5x5-v0, 8 × 128, 10 epochs × 16 minibatches, convolutions, 8 seeds",
        (
            upslope("upslope, 8 seeds", "MiniGrid-DoorKey-5x5-v0", 8, 20_000, MINIGRID),
            raw("raw stepping, 2 processes", "MiniGrid-DoorKey-5x5-v0", 2),
        ),
    ),
    "pong": Case(
        "Atari's Pong, 8 × 128, 4 epochs × 4 minibatches, convolutions of Mnih et al. 2015, one seed",
        (
            upslope("upslope, 1 seed", "PongNoFrameskip-v4", 1, 10_240, {"preset": True}),
            baselines("SB3", "atari", "PongNoFrameskip-v4", 1, 8_192, ATARI),
        ),
    ),
    "cartpole_1": Case(
        "Gymnasium CartPole-v1, 8 × 128, 4 epochs × 4 minibatches, one seed",
        (
            upslope("upslope, 1 seed", "CartPole-v1", 1, 200_000, SAME),
            cleanrl("CleanRL with torch.compile", "CartPole-v1", 1, 40_000, 8, 128),
            baselines("SB3", "sb3", "CartPole-v1", 1, 40_000, CARTPOLE),
            baselines("SBX", "sbx", "CartPole-v1", 1, 40_000, CARTPOLE),
            raw("raw stepping, 2 processes", "CartPole-v1", 2),
        ),
    ),
    "cartpole": Case(
        "Gymnasium CartPole-v1, 8 × 128, 4 epochs × 4 minibatches, several seeds",
        (
            upslope("upslope, 8 seeds", "CartPole-v1", 8, 120_000, SAME),
            cleanrl("CleanRL with torch.compile, 2 processes", "CartPole-v1", 2, 40_000, 8, 128),
            baselines("SB3, 2 processes", "sb3", "CartPole-v1", 2, 40_000, CARTPOLE),
            raw("raw stepping, 2 processes", "CartPole-v1", 2),
        ),
    ),
    "cartpole_a2c": Case(
        "Gymnasium CartPole-v1, A2C, 16 × 5, one seed",
        (
            upslope("upslope, 1 seed", "CartPole-v1", 1, 200_000, A2C),
            baselines("SB3", "a2c", "CartPole-v1", 1, 60_000, {"n_envs": 16, "n_steps": 5, "learning_rate": 1e-3}),
        ),
    ),
    "reinforce_cold": Case(
        "Gymnasium CartPole-v1, REINFORCE with reward to go, one episode an update, 40,000 steps from the shell, "
        "nothing compiled",
        (
            shell(
                "upslope", "upslope", "cold", "any", "upslope", "CartPole-v1", "--algorithm", "reward_to_go",
                "--steps", 40_000, "--no-preset", "--num-envs", 1, "--learning-rate", 0.01,
                "--learning-rate-schedule", "constant", "--hidden-sizes", 128, "--activation", "relu",
            ),
            shell("PyTorch's example", "baselines", "cold", "any", "reinforce_torch.py", 40_000),
        ),
    ),
    "halfcheetah": Case(
        "HalfCheetah-v5, 1 × 2048, 10 epochs of minibatches of 64 (Schulman et al. 2017)",
        (
            upslope("upslope, 8 seeds", CHEETAH, 8, 30_000, SAME),
            baselines("SB3", "sb3", CHEETAH, 1, 8_192, PAPER),
            baselines("SB3, 2 processes", "sb3", CHEETAH, 2, 8_192, PAPER),
            baselines("SBX", "sbx", CHEETAH, 1, 8_192, PAPER),
        ),
    ),
    "halfcheetah_wide_1": Case(
        "HalfCheetah-v5, 8 × 256, 4 epochs × 4 minibatches, one seed",
        (
            upslope("upslope, 1 seed", CHEETAH, 1, 300_000, WIDE_HERE),
            rltools_gymnasium("RLtools", CHEETAH, 1, 60_000, WIDE_RLTOOLS),
            baselines("SB3", "sb3", CHEETAH, 1, 30_000, WIDE),
            raw("raw stepping, 2 processes", CHEETAH, 2),
        ),
    ),
    "halfcheetah_wide": Case(
        "HalfCheetah-v5, 8 × 256, 4 epochs × 4 minibatches, several seeds",
        (
            upslope("upslope, 8 seeds", CHEETAH, 8, 60_000, WIDE_HERE),
            rltools_gymnasium("RLtools, 2 processes", CHEETAH, 2, 60_000, WIDE_RLTOOLS),
            baselines("SB3, 2 processes", "sb3", CHEETAH, 2, 30_000, WIDE),
            raw("raw stepping, 2 processes", CHEETAH, 2),
        ),
    ),
    "humanoid_1": Case(
        "Humanoid-v5, 8 × 256, 4 epochs × 4 minibatches, one seed",
        (
            upslope("upslope, 1 seed", "Humanoid-v5", 1, 60_000, WIDE_HERE),
            baselines("SB3", "sb3", "Humanoid-v5", 1, 16_384, WIDE),
            raw("raw stepping, 2 processes", "Humanoid-v5", 2),
        ),
    ),
}  # fmt: skip


def from_shell(cache: str) -> dict[str, Case]:
    """Return the cases that time the shell command until its policy reaches a score, with a cold or a warm cache.

    A run stops as soon as the mean return of its last 100 training episodes reaches the score, or when its budget is
    spent. In either case, the mean return of its last 20 episodes must reach the score. upslope uses its presets,
    PureJaxRL the settings of upslope's preset for CartPole, SB3 the settings of its zoo, and RLtools those of its
    example. SB3 compiles nothing, so its second run takes as long as its first.
    """
    state = {"cold": "nothing compiled before", "warm": "the second time"}[cache]
    rltools_name = {"cold": "RLtools with g++", "warm": "RLtools, compiled before"}[cache]
    return {
        f"shell_cartpole_{cache}": Case(
            f"from the shell to CartPole 475, compiled environment, one seed, {state}",
            (
                shell("upslope", "upslope", cache, 475, "upslope", "jax:CartPole-v1", "--stop-at-return", 475),
                shell("PureJaxRL", "purejaxrl", cache, 475, "solve_purejaxrl.py", PUREJAXRL),
                shell("SB3, Gymnasium", "baselines", "cold", 475, "solve_sb3.py", "CartPole-v1", 475),
            ),
            unit="seconds",
        ),
        f"shell_pendulum_{cache}": Case(
            f"from the shell to Pendulum −200, compiled environment, one seed, {state}",
            (
                shell("upslope", "upslope", cache, -200, "upslope", "jax:Pendulum-v1", "--stop-at-return", -200),
                shell(rltools_name, "rltools", cache, -200, "solve_rltools.py", -200),
                shell("SB3, Gymnasium", "baselines", "cold", -200, "solve_sb3.py", "Pendulum-v1", -200),
            ),
            unit="seconds",
        ),
    }


CASES: dict[str, Case] = ON_PENDULUM | COMPILED_ENVIRONMENTS | GYMNASIUM | from_shell("cold") | from_shell("warm")
