"""The commands that analyse runs and environments. Each is a function whose parameters and docstring define its flags.

Heavy imports happen inside the functions, so that `--help` and error messages appear at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from upslope.cli.cluster import HERE, OnCluster
from upslope.cli.terminal import answer, console, say
from upslope.cli.train import Quiet, Run, Switch, ask_for_trust
from upslope.config.config import configure, fresh, positive
from upslope.core.messages import counted

Runs = tyro.conf.Positional[tuple[Path, ...]]
Environment = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENVIRONMENT")]
Output = tyro.conf.arg(aliases=["-o"])
Checkpoint = Literal["last", "best"]
Wrappers = Annotated[tuple[str, ...], tyro.conf.arg(name="wrapper"), tyro.conf.UseAppendAction]
Keys = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY"), tyro.conf.UseAppendAction]
Score = Literal["auto", "stochastic", "deterministic", "training"]
Normalize = Literal["threshold", "range"] | None
"""`Score` and `Normalize` are copied from `analysis.scores` and `analysis.normalization`, which are slow to import."""


def evaluate(
    run: Run,
    episodes: int = 20,
    checkpoint: Checkpoint = "last",
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    video: Path | None = None,
    on: OnCluster = HERE,
    trust: Switch = False,
) -> None:
    """Run trained agents in fresh environments, both stochastic and deterministic, and store every return.

    Args:
        run: The run directory.
        episodes: Episodes per seed and mode.
        checkpoint: The checkpoint to evaluate.
        environment_seed: Each number gives different episodes.
        max_episode_steps: Steps after which an episode is truncated; by default the limit that the run trained with.
        video: Also film one deterministic episode of the first seed into this .mp4 (needs the extra `video`).
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked, or it is refused.
    """
    positive(episodes=episodes, max_episode_steps=max_episode_steps)
    fresh(environment_seed=environment_seed)
    from upslope.cli.evaluation_tables import evaluation_view
    from upslope.report.video import film, video_path
    from upslope.runs import evaluation

    if video is not None:
        video_path(video)
    ask_for_trust([run], trust)
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "environment_seed": environment_seed,
        "max_episode_steps": max_episode_steps,
        "trust": trust,
    }
    found = evaluation.evaluate(run, episodes=episodes, cluster=on.placement(), **options)
    console().print(evaluation_view(run, checkpoint, found))
    if video is not None:
        say(f"filmed {film(run, video, checkpoint, max_episode_steps=max_episode_steps, trust=trust)}")


def record(
    run: Run,
    episodes: int = 100,
    output: Path | None = None,
    checkpoint: Checkpoint = "last",
    seed: int | None = None,
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    trust: Switch = False,
) -> None:
    """Record episodes of a trained agent, with the probabilities of its actions, for off_policy and clone.

    Args:
        run: The run directory.
        episodes: Number of episodes.
        output: The file to write, or minari:NAME (needs the extra `minari`); by default dataset.npz in the run
            directory.
        checkpoint: The checkpoint to record.
        seed: One of the run's seeds; by default the first.
        environment_seed: Each number gives different episodes.
        max_episode_steps: Steps after which an episode is truncated; by default the limit that the run trained with.
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked, or it is refused.
    """
    positive(episodes=episodes, max_episode_steps=max_episode_steps)
    fresh(environment_seed=environment_seed)
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "seed": seed,
        "environment_seed": environment_seed,
        "max_episode_steps": max_episode_steps,
        "trust": trust,
    }
    from upslope.config.command import command_of
    from upslope.config.task import made_with
    from upslope.runs import evaluation
    from upslope.runs.directory import RunDirectory
    from upslope.runs.minari_datasets import is_minari
    from upslope.runs.policy import spaces_of

    ask_for_trust([run], trust)
    path = evaluation.record(run, episodes=episodes, output=output, **options)
    say(f"recorded {counted(episodes, 'episode')} in {path}")
    rung, data = ("clone", str(output)) if output is not None and is_minari(output) else ("off_policy", str(path))
    directory = RunDirectory(run)
    config, is_continuous = directory.config(), spaces_of(directory)[1].is_continuous
    arguments = made_with(vars(config))
    learner = configure(config.environment, rung, is_continuous=is_continuous, data=data, **arguments)
    say(f"to learn from them:  {command_of(learner, is_continuous=is_continuous)}")


def judge(
    run: Run,
    data: Annotated[str, tyro.conf.arg(metavar="FILE")],
    seed: int | None = None,
    checkpoint: Checkpoint = "last",
    gamma: float | None = None,
    horizon: int | None = None,
    iterations: int | None = None,
    trust: Switch = False,
    json: Switch = False,
) -> None:
    """Estimate what a trained agent would get from episodes that another policy recorded, without acting.

    It gives importance sampling, fitted Q evaluation and doubly robust estimates with intervals, or the reason why
    these data cannot tell. Also called off-policy evaluation (OPE).

    Args:
        run: The run directory.
        data: The recorded episodes: a file of `upslope record`, or minari:NAME (needs the extra `minari`).
        seed: One of the run's seeds; by default the first.
        checkpoint: The checkpoint to judge.
        gamma: γ of the value; by default the run's. 1 is the undiscounted return, as `upslope evaluate` gives it.
        horizon: Count only the first steps of an episode. By default all count, and an episode that was cut off is
            continued by the fitted Q.
        iterations: Regressions of the fitted Q; by default four horizons 1/(1−γ), from 200 to 1,000.
        trust: Run the model's code that the run's config.json names; it may do anything. Otherwise you are shown the
            code and asked, or it is refused. Upslope's own networks need none.
        json: Print everything as JSON.
    """
    positive(horizon=horizon, iterations=iterations)
    from upslope.analysis.judge import judge
    from upslope.cli.evaluation_tables import judgement_view
    from upslope.config.trust import ROLES, require
    from upslope.runs.directory import RunDirectory

    require(RunDirectory(run).config(), run, trust=trust, given=set(ROLES) - {"model"}, ask=True)
    options: dict[str, Any] = {"seed": seed, "checkpoint": checkpoint, "gamma": gamma, "horizon": horizon}
    found = judge(run, data=data, iterations=iterations, trust=trust, **options)
    answer(json, found.to_json(), [judgement_view(found)])


def export(
    run: Run,
    format: Literal["onnx", "numpy", "c"],
    output: Annotated[Path | None, Output] = None,
    seed: int | None = None,
    checkpoint: Checkpoint = "best",
    trust: Switch = False,
) -> None:
    """Write a trained policy to a file that acts without upslope: for a robot, a microcontroller, another program.

    The file gives the deterministic action in the environment's own units, and the parameters of its distribution;
    normaliser, masks, memory and action bounds are in it. It is checked against the policy before it is kept.

    Args:
        run: The run directory.
        format: numpy: a Python file and its arrays; c: a C99 header; onnx: a graph (needs the extra `onnx`).
        output: The file to write, or a folder for it; by default policy.py, .h or .onnx in the run directory.
        seed: One of the run's seeds; by default the one with the best training return.
        checkpoint: The checkpoint to export.
        trust: Run the model's code that the run's config.json names; it may do anything. Otherwise you are shown the
            code and asked, or it is refused. Upslope's own networks need none.
    """
    from upslope.config.trust import ROLES, require
    from upslope.runs.directory import RunDirectory
    from upslope.runs.export.writing import export

    require(RunDirectory(run).config(), run, trust=trust, given=set(ROLES) - {"model"}, ask=True)
    for note in export(run, format, output, seed=seed, checkpoint=checkpoint, trust=trust).notes:
        say(note)


def figure(
    runs: Runs,
    output: Annotated[Path, Output] = Path("figure.pdf"),
    kind: Literal["curves", "comparison", "profile"] = "curves",
    size: Literal["column", "page", "slide"] = "column",
    metric: str | None = None,
    labels: tuple[str, ...] = (),
    score: Score = "auto",
    normalize: Normalize = None,
    style: Path | None = None,
    trust: Switch = False,
) -> None:
    """Draw a figure for a paper or a slide, with the numbers of `upslope compare` (needs the extra `figure`).

    Runs that differ only in their seeds form one line. Areas and bars are 95 % intervals of the mean over seeds.

    Args:
        runs: Run directories, or archives of `upslope bundle`.
        output: The file to write: .pdf, .svg or .png; only an older upslope figure is replaced.
        kind: curves: a metric over environment steps; comparison: each seed's score and the mean; profile: the share of
            seeds whose normalised score exceeds τ.
        size: column: 3.25 inches wide; page: 6.75 inches; slide.
        metric: For curves: a metric of metrics.jsonl; by default the mean return of the last 100 training episodes.
        labels: Names for the groups of runs, in the order of the runs.
        score: How a seed is scored, as in `upslope compare`.
        normalize: For profiles: how scores are made comparable, as in `upslope compare`; by default range.
        style: A Matplotlib style sheet. Fonts, colours, lines and sizes are taken from it, and nothing is run.
        trust: For --normalize threshold: run the code that a run's config.json names; it may do anything. Otherwise
            you are shown its name and asked, or it is refused.
    """
    options = {name: value for name, value in locals().items() if name not in ("runs", "output")}
    from upslope.report.print_figures import figure

    if normalize == "threshold":
        ask_for_trust(runs, trust)
    drawn = figure(runs, output, **options)
    for note in drawn.notes:
        say(note)
    say(f"wrote {drawn.path} ({drawn.path.stat().st_size:,} bytes)")


def table(runs: Runs, format: Literal["latex", "markdown", "csv"] = "latex", score: Score = "auto") -> None:
    """Print a table of scores for a paper, a page or a spreadsheet: mean, IQM and median with intervals, seeds, steps.

    Reasons to doubt the numbers go to standard error.

    Args:
        runs: Run directories, or archives of `upslope bundle`.
        format: latex (with the package booktabs), markdown, or csv with all digits.
        score: How a seed is scored, as in `upslope compare`.
    """
    from upslope.analysis.compare import compare
    from upslope.report.print_tables import table_of

    found = compare(runs, score=score)
    print(table_of(found, format), end="")
    for warning in found.warnings:
        say(warning, sys.stderr)


def bundle(runs: Runs, output: Annotated[Path, Output] = Path("runs.zip"), checkpoints: bool = True) -> None:
    """Pack runs into one archive to send, with their versions and the commands that repeat them.

    `upslope report runs.zip` reads it as it is; so do compare, figure, table and doctor.

    Args:
        runs: Run directories.
        output: The archive, a .zip file; an existing file is not replaced.
        checkpoints: Also pack the checkpoints, so that the policies can be loaded once it is unpacked.
    """
    from upslope.runs.bundles import bundle

    path = bundle(runs, output, checkpoints=checkpoints)
    say(f"wrote {path} ({path.stat().st_size:,} bytes): upslope report {path}")


def compare(
    runs: Runs,
    score: Score = "auto",
    normalize: Normalize = None,
    metric: str = "return",
    trust: Switch = False,
    json: Switch = False,
) -> None:
    """Compare runs: means with intervals, sample efficiency, and the probability that one beats another.

    Runs that differ only in their seeds are pooled. Reasons to doubt a comparison are listed below it.

    A seed is scored by evaluation episodes of the last checkpoint in one mode, by the last 100 training episodes, or,
    with auto, by stochastic evaluation if all runs have it, else training. Normalised scores average over environments:
    0 is a random policy and 1 the reward threshold, or 0 and 1 are the lowest and highest score of these runs.

    Args:
        runs: Run directories.
        score: How a seed is scored.
        normalize: How scores are made comparable across environments.
        metric: The number compared per episode: return, length, or a key that every run kept with --log-info.
        trust: For --normalize threshold: run the code that a run's config.json names; it may do anything. Otherwise
            you are shown its name and asked, or it is refused.
        json: Print everything as JSON.
    """
    from upslope.analysis.compare import compare
    from upslope.cli.comparison_tables import comparison_page

    if normalize == "threshold":
        ask_for_trust(runs, trust)
    found = compare(runs, score=score, normalize=normalize, trust=trust, metric=metric)
    answer(json, found.to_json(), [comparison_page(found)])


def report(
    runs: Runs,
    score: Score = "auto",
    normalize: Normalize = None,
    metric: str = "return",
    output: Annotated[Path, Output] = Path("report.html"),
    credit: Switch = False,
    trust: Switch = False,
) -> None:
    """Write one self-contained page about runs: curves, comparison, evaluations, settings, diagnostics, credit.

    It only reads the runs, unless --credit is given. Results of `upslope evaluate` and `upslope credit` are shown too.

    Args:
        runs: Run directories.
        score: How a seed is scored, as in `upslope compare`.
        normalize: Also compare across environments, as in `upslope compare`; threshold creates each of them once.
        metric: The number compared per episode, as in `upslope compare`.
        output: The page to write, or a folder for it; only an older upslope page is replaced.
        credit: First play an episode of each run without a credit view, as `upslope credit` does.
        trust: For --credit: run the code that a run's config.json names; it may do anything. Otherwise you are
            shown its name and asked, or it is refused.
    """
    from upslope.report.page import write_report

    if credit or normalize == "threshold":
        ask_for_trust(runs, trust)
    say_written(write_report(runs, output, score=score, normalize=normalize, metric=metric, credit=credit, trust=trust))


def credit(
    run: Run,
    seed: int | None = None,
    episode_seed: int = 0,
    checkpoint: Checkpoint = "last",
    max_episode_steps: int | None = None,
    output: Annotated[Path | None, Output] = None,
    trust: Switch = False,
) -> None:
    """Play an episode, and show which actions each estimator credits for the outcome, on one self-contained page.

    Args:
        run: The run directory.
        seed: One of the run's seeds; by default the first.
        episode_seed: Each number gives a different episode.
        checkpoint: The checkpoint to play.
        max_episode_steps: Steps after which the episode is truncated; by default the limit that the run trained with.
        output: The page to write, or a folder for it; by default credit.html in the run directory.
        trust: Run the code that the run's config.json names; it may do anything. Otherwise you are shown its name
            and asked, or it is refused.
    """
    fresh(episode_seed=episode_seed)
    positive(max_episode_steps=max_episode_steps)
    from upslope.report.page import write_credit

    ask_for_trust([run], trust)
    options: dict[str, Any] = {
        "seed": seed,
        "episode_seed": episode_seed,
        "checkpoint": checkpoint,
        "max_episode_steps": max_episode_steps,
    }
    say_written(write_credit(run, output=output, trust=trust, **options))


def say_written(path: Path) -> None:
    """Print the path of a page and its size."""
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


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
    on: OnCluster = HERE,
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
        seed: The first seed; the others follow it.
        name: Name of the folder that holds the rungs' run directories. An existing one is refused.
        folder: The folder that holds it.
        resume: Continue the race of this --name: finished rungs stay, and unfinished ones continue.
        preset: Use the environment's tuned settings if there are any, as `upslope train` does.
        env_kwargs: Keyword arguments for the environment, as JSON.
        max_episode_steps: Steps after which an episode is truncated; by default the environment's own limit.
        wrappers: A wrapper to put around the environment, as in `upslope train`; repeatable.
        ignore_observation: Key of a part of the observations to leave out; repeatable.
        workers: Processes that share the seeds of a Gymnasium environment; by default one per core.
        evaluation_episodes: Fresh episodes per seed and mode that score each rung; 0 scores by training episodes.
        quiet: Print warnings only.
    """
    options = {key: value for key, value in locals().items() if key != "on"} | {"cluster": on.placement()}
    positive(seeds=seeds, steps=steps, workers=workers, max_episode_steps=max_episode_steps)
    positive(evaluation_episodes=evaluation_episodes or None)
    from upslope.cli.comparison_tables import comparison_page
    from upslope.lab.ladder import ladder

    found = ladder(**options)
    if not quiet:
        console().print(comparison_page(found.comparison))
        say(f"compare again:  upslope compare {found.path}/*/")
        say(f"report:  {found.report or f'upslope report {found.path}/*/'}")


def lab(
    only: tuple[str, ...] = (),
    language: Literal["en", "zh"] = "en",
    output: Path = Path("lab.html"),
    seed: int = 0,
    quick: Switch = False,
    json: Switch = False,
) -> None:
    """Test the lecture's claims by experiments, each with a prediction, a measurement and a verdict, on one HTML page.

    It takes one to two minutes on two cores and needs the extra `report`. The exit status is 0 even if a claim is
    refuted, because that is a finding.

    Args:
        only: Only these experiments: expectation, gradient, variance, advantages, importance, reuse, table1,
            credit, seeds, groups, entropy, counts, television.
        language: English or Chinese.
        output: The page to write, or a folder for it; only an older upslope page is replaced.
        seed: Each number draws different random samples.
        quick: Use small samples for a quick trial: intervals are wide, and more claims stay undecided.
        json: Also print all findings and curves as JSON; other messages go to standard error.
    """
    from upslope.core.consoles import PlainTextConsole
    from upslope.learning.devices import computing
    from upslope.report.page import plotly_script

    plotly_script()  # fail now rather than after minutes if Plotly is missing
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


def doctor(runs: Runs, json: Switch = False) -> None:
    """Diagnose runs: symptom, evidence, likely cause, rival causes, remedy.

    Args:
        runs: Run directories; they may still be training.
        json: Print JSON for programs: an object, or a list of objects for several runs.
    """
    from upslope.analysis.records import read_records
    from upslope.cli.diagnosis_tables import diagnosis_view
    from upslope.diagnosis.doctor import diagnosis_of

    records, left_out = read_records(runs)
    found = [diagnosis_of(record) for record in records]
    for warning in left_out:
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
    """Test an environment in seconds before training on it, and suggest a first command; exit status 1 on an error.

    Args:
        environment: A Gymnasium id, `module:Id`, `module:callable`, or `jax:Name`.
        env_kwargs: Keyword arguments for the environment, as JSON.
        max_episode_steps: Steps after which an episode is truncated; by default the environment's own limit.
        wrappers: A wrapper to put around the environment, as in `upslope train`; repeatable.
        ignore_observation: Key of a part of the observations to leave out; repeatable.
        json: Print JSON for programs.
    """
    positive(max_episode_steps=max_episode_steps)
    from upslope.cli.diagnosis_tables import check_view
    from upslope.diagnosis.check import check

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
    """Train on small environments whose right answer is known: the first failure shows where the mistake is.

    The exit status is 1 if a probe is not solved.

    Args:
        algorithm: The rung of the ladder.
        estimator: Axis 1 instead of the rung's: a name, or your own as module:Name.
        objective: Axis 2 instead of the rung's: a name, or your own as module:Name.
        hidden_sizes: Widths of the hidden layers.
        activation: Activation of the hidden layers.
        learning_rate: Adam's step size; by default one that suits the rung.
        steps: Environment steps per seed and probe.
        seeds: Number of seeds per probe.
        only: Names of probes; by default all.
        json: Print JSON for programs.
    """
    settings = {name: value for name, value in locals().items() if name != "json" and value is not None}
    positive(seeds=seeds, steps=steps)
    from upslope.cli.diagnosis_tables import probe_view
    from upslope.diagnosis.probe import probe, to_json

    found = probe(**settings)
    title = " ".join(filter(None, (algorithm, estimator, objective)))
    answer(json, to_json(found), probe_view(title, found))
    sys.exit(int(not all(result.solved for result in found)))


def completion(shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print a script that lets a shell complete commands, flags and their values.

    bash: `upslope completion bash > ~/.local/share/bash-completion/completions/upslope`. zsh: to a file `_upslope` in
    a folder of fpath, before compinit. fish: `upslope completion fish > ~/.config/fish/completions/upslope.fish`.
    """
    from upslope.cli.completions import script

    print(script(shell), end="")
