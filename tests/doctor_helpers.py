"""Helpers for tests of the doctor: they write runs with synthetic metrics and collect its findings."""

import json

import numpy as np
from gymnasium import spaces

import upslope
from upslope.config.config import configure
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import described_spaces

SEEDS, ITERATIONS = 5, 40
HEALTHY = {
    "policy/kl": 0.008, "policy/clip_fraction": 0.1, "policy/entropy": 0.5, "policy/gradient_norm": 0.2,
    "critic/explained_variance": 0.7, "health/broken_links": 0.0, "health/reset_as_successor": 0.0,
    "health/log_prob_mismatch": 1e-7, "health/end_share": 0.02, "health/weight_agreement": 1.0,
    "health/terminal_error": 0.0, "health/truncation_bootstrap": 8.0, "health/truncation_error": 1e-7,
    "health/truncated_share": 0.2,
    "health/value_mean": 8.0, "health/value_bias": -0.5, "health/target_std": 1.0, "health/weight_mean": 0.5,
    "health/target_mean": 9.0, "health/target_max": 15.0, "health/target_min": 1.0,
    "health/reward_mean": 1.0, "health/reward_std": 0.3, "health/reward_min": 0.5, "health/reward_max": 1.5,
    "health/reward_scale": 0.2, "health/reward_nonzero": 1.0, "health/zero_after_end": 0.0,
    "health/surrogate_gain": 0.01, "health/weight_std": 1.0, "health/policy_signal": 0.2,
    "health/observation_constant": 0.0, "health/observation_mean": 0.3, "health/observation_std_max": 1.2,
    "health/policy_saturation": 0.01, "health/action_effect": 20.0, "health/late_effect": 10.0, "health/still": 0.0,
    "health/observation_max": 3.0,
}  # fmt: skip


def write_run(
    folder,
    changes=None,
    rise=50.0,
    lengths=None,
    box=False,
    world="World-v0",
    slowing=0.0,
    second=1.0,
    episodes=None,
    **settings,
):
    """Write a run with the metrics in `HEALTHY`, some of which are overridden by `changes`.

    Each change is a number or a function of `share`, the fraction of the run that is already over.
    `episodes(share, generator)` returns the (return, length) pairs of an iteration.
    """
    config = configure(world, "ppo", is_continuous=box, use_preset=False, seeds=SEEDS, **settings)
    directory, generator = RunDirectory(folder / "run"), np.random.default_rng(0)
    action = spaces.Box(-1.0, 1.0, (1,), np.float32) if box else spaces.Discrete(2)
    head = head_of(action, "World-v0")
    encoder = encoder_of(spaces.Box(-1, 1, (3,)), "World-v0")
    directory.create(config, described_spaces(encoder, head), {"needs_critic": True})
    for seed in range(SEEDS):
        for i in range(ITERATIONS):
            step = (i + 1) * 1024
            row = {"iteration": i, "seed": seed, "step": step, "episode/count": 10, "episode/length": 40.0}
            row |= {name: x * (1 + 0.05 * generator.normal()) for name, x in HEALTHY.items()}
            changed = {name: x(i / ITERATIONS) if callable(x) else x for name, x in (changes or {}).items()}
            row |= {"policy/loss": 0.1} | changed
            row = {name: None if x != x else x for name, x in row.items()} | {
                "time/elapsed": second * (i + slowing * i**2)
            }
            directory.append(directory.metrics_path, json.dumps(row) + "\n")
            told = [] if episodes is None else list(episodes(i / ITERATIONS, generator))
            for _ in range(10 if episodes is None else 0):
                length = int(generator.integers(20, 60)) if lengths is None else lengths(generator)
                told.append((20 + rise * i / ITERATIONS + 5 * generator.normal(), length))
            lines = [f"{step - len(told) + k},{seed},{value},{length}\n" for k, (value, length) in enumerate(told)]
            directory.append(directory.episodes_path, "".join(lines))
    return directory.path


def alarms_and_notes(path):
    found = upslope.diagnose(path)
    alarms = {finding.cause for finding in found.alarms}
    return alarms, {finding.cause for finding in found.findings} - alarms
