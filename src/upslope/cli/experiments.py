"""The commands that train many runs: `ladder`, `lab`.

Each is a function whose parameters and docstring define its flags. Heavy imports happen inside it, so that `--help` and
error messages appear immediately.
"""

from pathlib import Path
from typing import Any, Literal

from upslope.cli.arguments import Environment, Keys, Wrappers
from upslope.cli.cluster import HERE, OnCluster
from upslope.cli.terminal import answer, console, say
from upslope.cli.train import Quiet, Switch
from upslope.config.config import positive
from upslope.core.messages import shell


def ladder(
    environment: Environment,
    algorithms: tuple[str, ...] | None = None,
    steps: int = 50_000,
    seeds: int = 10,
    seed: int = 0,
    name: str | None = None,
    folder: Path = Path("runs"),
    resume: Switch = False,
    preset: bool = True,
    env_kwargs: dict[str, Any] = {},  # noqa: B006 - it is only read
    max_episode_steps: int | None = None,
    wrappers: Wrappers = (),
    ignore_observation: Keys = (),
    workers: int | None = None,
    cluster: OnCluster = HERE,
    evaluation_episodes: int = 20,
    quiet: Quiet = False,
) -> None:
    """Race all rungs that fit an environment, with the same seeds and budget, and compare them.

    Each rung has the settings of `upslope train ENVIRONMENT --algorithm RUNG`.

    Args:
        environment: A Gymnasium id (`CartPole-v1`), `module:Id`, or a compiled environment (`jax:CartPole-v1`).
        algorithms: Train only these rungs.
        steps: Environment steps per seed, the same for every rung.
        seeds: Number of seeds.
        seed: The first seed. The other seeds are the integers after it.
        name: Name of the folder for the rungs' run directories. An existing name is refused.
        folder: The parent of that folder.
        resume: Continue the race with this --name. Finished rungs are kept, and unfinished ones continue.
        preset: Use the environment's tuned settings if there are any, as `upslope train` does.
        env_kwargs: Keyword arguments for the environment, as JSON.
        max_episode_steps: Steps after which an episode is truncated; by default the environment's own limit.
        wrappers: A wrapper to put around the environment, as in `upslope train`; repeatable.
        ignore_observation: Key of a part of the observations to ignore; repeatable.
        workers: Processes that share the seeds of a Gymnasium environment; by default one per core.
        evaluation_episodes: Fresh episodes per seed and mode used to score each rung; 0 uses the training episodes.
        quiet: Print warnings only.
    """
    options = dict(locals()) | {"cluster": cluster.placement()}
    positive(seeds=seeds, steps=steps, workers=workers, max_episode_steps=max_episode_steps)
    positive(evaluation_episodes=evaluation_episodes or None)
    from upslope.cli.comparison_tables import comparison_page
    from upslope.lab.ladder import ladder

    found = ladder(**options)
    if not quiet:
        console().print(comparison_page(found.comparison))
        say(f"compare again:  {shell('upslope', 'compare', found.path)}/*/")
        say(f"report:  {found.report or shell('upslope', 'report', found.path) + '/*/'}")


def lab(
    only: tuple[str, ...] | None = None,
    language: Literal["en", "zh"] = "en",
    output: str = "lab.html",
    seed: int = 0,
    quick: Switch = False,
    json: Switch = False,
) -> None:
    """Test the lecture's claims with experiments, and show the predictions, measurements and verdicts on one HTML page.

    It takes two to three minutes on two cores and needs the extra `report`. The exit status is 0 even if a claim is
    refuted, because that is a finding.

    Args:
        only: Run only these experiments: expectation, gradient, variance, advantages, importance, reuse, table1,
            credit, seeds, groups, entropy, counts, television.
        language: English or Chinese.
        output: The page to write, or a folder for it. Only an existing upslope page is replaced.
        seed: Seed of the random samples.
        quick: Use small samples for a quick trial. Intervals are wider, and more claims stay undecided.
        json: Also print all findings and curves as JSON; other messages go to standard error.
    """
    from upslope.core.consoles import PlainTextConsole
    from upslope.learning.devices import computing
    from upslope.report.page import plotly_script

    plotly_script()  # if Plotly is missing, fail now rather than minutes later
    from upslope.core.storage import write_atomically
    from upslope.lab import page, run
    from upslope.report.output import page_path

    path = page_path(output, "lab.html")
    terminal = PlainTextConsole(stderr=True) if json else console()
    with computing(on_host=False):
        results = run.run(only, language, seed, quick, terminal)
    write_atomically(path, page.page(results, language, seed, quick).encode())
    terminal.print(run.verdict_table(results, language))
    terminal.print(run.closing(results, language, seed, quick, path), highlight=False)
    if json:
        answer(True, run.as_json(results, language, seed, quick), ())
