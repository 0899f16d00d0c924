"""The commands that diagnose problems with a run, an environment or upslope itself.

Each is a function whose parameters and docstring define its flags. Heavy imports happen inside it, so that `--help` and
error messages appear immediately.
"""

import sys
from typing import Any, Literal

from upslope.cli.arguments import Environment, Keys, Runs, Wrappers
from upslope.cli.terminal import answer, only_results, say
from upslope.cli.train import Switch
from upslope.config.config import positive


def doctor(runs: Runs, json: Switch = False) -> None:
    """Diagnose runs: symptoms, evidence, likely and alternative causes, and remedies.

    Args:
        runs: Run directories. The runs may still be training.
        json: Print JSON for programs: an object, or a list of objects for several runs.
    """
    from upslope.analysis.records import read_records
    from upslope.cli.diagnosis_tables import diagnosis_view
    from upslope.diagnosis.doctor import diagnosis_of

    records, doubts = read_records(runs)
    found = [diagnosis_of(record) for record in records]
    for warning in doubts:
        say(warning, sys.stderr)
    as_json = [diagnosis.to_json() for diagnosis in found]
    answer(json, as_json if max(len(runs), len(found)) > 1 else as_json[0], map(diagnosis_view, found))


def check(
    environment: Environment,
    env_kwargs: dict[str, Any] = {},  # noqa: B006 - it is only read
    max_episode_steps: int | None = None,
    wrappers: Wrappers = (),
    ignore_observation: Keys = (),
    json: Switch = False,
) -> None:
    """Test an environment in seconds before training on it, and suggest a training command.

    The exit status is 1 if an error is found.

    Args:
        environment: A Gymnasium id, `module:Id`, `module:callable`, or `jax:Name`.
        env_kwargs: Keyword arguments for the environment, as JSON.
        max_episode_steps: Steps after which an episode is truncated; by default the environment's own limit.
        wrappers: A wrapper to put around the environment, as in `upslope train`; repeatable.
        ignore_observation: Key of a part of the observations to ignore; repeatable.
        json: Print JSON for programs.
    """
    positive(max_episode_steps=max_episode_steps)
    from upslope.cli.diagnosis_tables import check_view
    from upslope.diagnosis.check import check

    with only_results(json):
        found = check(
            environment,
            env_kwargs=env_kwargs,
            max_episode_steps=max_episode_steps,
            wrappers=wrappers,
            ignore_observation=ignore_observation,
        )
    answer(json, found.to_json(), check_view(found))
    sys.exit(int(found.worst == "error"))


def probe(
    algorithm: str = "ppo",
    estimator: str | None = None,
    objective: str | None = None,
    hidden_sizes: tuple[int, ...] = (64, 64),
    activation: Literal["tanh", "relu", "silu"] = "tanh",
    learning_rate: float | None = None,
    steps: int = 60_000,
    seeds: int = 3,
    only: tuple[str, ...] = (),
    json: Switch = False,
) -> None:
    """Train on small environments with known answers. The first failure shows where the mistake is.

    The exit status is 1 if a probe is not solved.

    Args:
        algorithm: The rung of the ladder.
        estimator: An estimator (axis 1) instead of the rung's: a name, or your own as module:Name.
        objective: An objective (axis 2) instead of the rung's: a name, or your own as module:Name.
        hidden_sizes: Widths of the hidden layers.
        activation: Activation of the hidden layers.
        learning_rate: Adam's step size; the default depends on the rung.
        steps: Environment steps per seed and probe.
        seeds: Number of seeds per probe.
        only: Names of the probes to run; by default all.
        json: Print JSON for programs.
    """
    settings = {name: value for name, value in locals().items() if name != "json" and value is not None}
    positive(seeds=seeds, steps=steps)
    from upslope.cli.diagnosis_tables import probe_view
    from upslope.diagnosis.probe import probe, to_json

    with only_results(json):
        found = probe(**settings)
    title = " ".join(filter(None, (algorithm, estimator, objective)))
    answer(json, to_json(found), probe_view(title, found))
    sys.exit(int(not all(result.solved for result in found)))
