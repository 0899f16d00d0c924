"""Beginners' mistakes on the command line: each is immediately answered with a single message."""

import html
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_helpers import config_of

import upslope
from upslope.cli.main import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, main
from upslope.config.command import command_of
from upslope.core.messages import counted
from upslope.report import video
from upslope.runs import evaluation
from upslope.runs.directory import RunDirectory, versions
from upslope.runs.train import call_of

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "rollout_steps": 8,
    "minibatches": 2,
    "epochs": 1,
    "hidden_sizes": (8,),
    "quiet": True,
}


def start(script: str, words: list[str], folder: Path, **streams: Any) -> subprocess.Popen[str]:
    """Start the command in a separate process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen([sys.executable, "-c", script, *words], cwd=folder, env=environment, text=True, **streams)


def command(script: str, words: list[str], folder: Path, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process until it ends."""
    process = start(script, words, folder, **streams)
    out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def refused(words: str, capsys: pytest.CaptureFixture) -> str:
    """Run a command that must fail with exit status 2; return its error message."""
    with pytest.raises(SystemExit) as end:
        main(shlex.split(words))
    assert end.value.code == 2
    return capsys.readouterr().err


COUNTS = (
    *("epochs", "critic-epochs", "conjugate-gradient-iterations", "backtracks", "n", "group-size", "devices-per-seed"),
    *("max-episode-steps", "sequence-length", "noise-every", "imitation-iterations", "from-seed", "reference-seed"),
)
"""Flags that take a count and have no specific upper limit."""


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("trian CartPole-v1", 'There is no command "trian". Did you mean train'),
        ("evalute runs/one", "Did you mean evaluate?"),
        ("frobnicate", "`upslope --help` shows all"),
        ("evaluate nowhere --episodes 0", "--episodes must be 1 or more, not 0."),
        ("record nowhere --episodes -3", "--episodes must be 1 or more, not -3."),
        ("evaluate nowhere --environment-seed 2000", "--environment-seed must be from 0 to 1999, not 2000."),
        ("credit nowhere --episode-seed -1", "--episode-seed must be from 0 to 1999, not -1."),
        ("train CartPole-v1 --seeds 0", "--seeds must be greater than 0, not 0."),
        ("train CartPole-v1 --steps 0", "--steps must be greater than 0, not 0."),
        ("train CartPole-v1 --num-envs 0", "--num-envs must be greater than 0, not 0."),
        ("train CartPole-v1 --gamma 2", "--gamma must be in [0, 1], not 2.0"),
        ("train CartPole-v1 --workers 0", "--workers must be 1 or more, not 0."),
        ("resume nowhere --workers 0", "--workers must be 1 or more, not 0."),
        ("ladder CartPole-v1 --seeds 0", "--seeds must be 1 or more, not 0."),
        ("probe --steps 0", "--steps must be 1 or more, not 0."),
        ("check CartPole-v1 --max-episode-steps 0", "--max-episode-steps must be 1 or more, not 0."),
        ("train CartPole-v1 --lr 1e-3", "There is no --lr; upslope calls it --learning-rate."),
        ("train CartPole-v1 --total-timesteps=9", "There is no --total-timesteps; upslope calls it --steps."),
        ("train CartPole-v1 --vf_coef 0.5 --n-steps 5", "There is no --vf_coef. Policy and critic"),
        ("train CartPole-v1 --vf_coef 0.5 --n-steps 5", "There is no --n-steps; upslope calls it --rollout-steps."),
        ("train CartPole-v1 --algorithm PPO", 'There is no algorithm "PPO". Did you mean ppo'),
        ("train CartPole-v1 --algorithm sac", "upslope has only policy gradients"),
        ("train jax:CartPole-v1 --max-episode-steps 3e9", "--max-episode-steps can be at most 2,147,483,647, not 3000"),
        (
            "evaluate nowhere --max-episode-steps 3e9",
            "--max-episode-steps can be at most 2,147,483,647, not 3000000000",
        ),
        ("evaluate nowhere --episodes 1e300", "--episodes can be at most 2,147,483,647, not 1000"),
        ("judge nowhere --data x --iterations 1e300", "--iterations can be at most 2,147,483,647, not 1000"),
        ("train jax:CartPole-v1 --seed 1e300", "--seed can be at most 2,147,483,647, not 1000"),
        *(
            (f"train jax:CartPole-v1 --{name} 1e300", f"--{name} can be at most 2,147,483,647, not 1000")
            for name in COUNTS
        ),
        ("train", "No environment was given"),
        ("train CartPole-v1 --resume", "--resume needs the --name of the run"),
        ("doctor", "No run was given"),
    ],
)
def test_a_mistake_gets_its_answer(words: str, answer: str, capsys: pytest.CaptureFixture):
    assert answer in refused(words, capsys)


def test_plain_mistakes_are_refused_before_anything_heavy_is_imported(tmp_path: Path):
    script = (
        "import sys\nfrom upslope.cli.main import main\ntry:\n    main()\nfinally:\n    print('jax' in sys.modules)"
    )
    for words in ("evaluate x --episodes 0", "probe --seeds 0", "ladder X --seeds 0", "train X --seeds 0", "trian"):
        done = command(script, words.split(), tmp_path)
        assert (done.returncode, done.stdout) == (2, "False\n"), done.stderr


@pytest.mark.parametrize("words", ["list", "train --help"])
def test_output_that_nobody_reads_ends_a_command_quietly(words: str, tmp_path: Path):
    reading, writing = os.pipe()
    os.close(reading)
    done = command("from upslope.cli.main import main; main()", words.split(), tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (EXIT_BROKEN_PIPE, "")


def test_training_that_nobody_reads_is_saved(tmp_path: Path):
    words = "train jax:CartPole-v1 --no-preset --steps 10000000 --hidden-sizes 8 --name cut"
    process = start("from upslope.cli.main import main; main()", words.split(), tmp_path, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()  # as `head -1` does
    process.stdout = None
    said = process.communicate()[1]
    assert process.returncode == EXIT_INTERRUPTED and "Traceback" not in said
    assert f"Stopped and saved. Resume with: upslope resume {Path('runs') / 'cut'}" in said
    assert (tmp_path / "runs" / "cut" / "checkpoints" / "last.npz").exists()


def test_without_words_it_shows_its_help_and_tells_its_version(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 0 and "usage: upslope" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out == f"upslope {versions()['upslope']}\n"


def test_a_run_that_is_elsewhere_is_looked_for(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    made = tmp_path / "runs" / "CartPole-v1-ppo"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert "Did you mean runs/CartPole-v1-ppo?" in refused("evaluate CartPole-v1-ppo", capsys)
    assert "Did you mean runs/CartPole-v1-ppo?" in refused("resume runs/CartPole-v1-pp", capsys)
    assert "It contains runs: runs/CartPole-v1-ppo" in refused("report runs", capsys)
    monkeypatch.chdir(made)
    assert f"there is no such folder in {made}" in refused("evaluate runs/CartPole-v1-ppo", capsys)


@pytest.mark.parametrize(
    "words",
    [
        "CartPole-v1",
        "jax:CartPole-v1 --no-preset --seeds 3 --lambda 0.5 --no-normalize-advantage --hidden-sizes 8 8",
        """CartPole-v1 --algorithm a2c --env-kwargs '{"render_mode": null}' --max-episode-steps 20 --n 3""",
        "Pendulum-v1 --steps 1000 --activation relu --target-kl 0.5",
    ],
)
def test_the_command_of_a_config_gives_that_config(words: str):
    config = config_of(shlex.split(words))
    found = command_of(config, is_continuous="Pendulum" in words)
    assert config_of(shlex.split(found)[2:]) == config
    assert len(shlex.split(found)) <= len(shlex.split(words)) + 2  # without unnecessary flags


def test_record_gives_a_command_that_trains(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    run = upslope.train("jax:CartPole-v1", steps=64, max_episode_steps=9, name="own", preset=False, **SMALL)
    main(["record", str(run.path), "--episodes", "1", "--output", "a file.npz"])
    said = capsys.readouterr().out
    assert "recorded 1 episode in a file.npz" in said
    words = shlex.split(said.split("learn from them:")[1])
    assert words[:3] == ["upslope", "train", "jax:CartPole-v1"]
    config = config_of(words[2:])
    assert (config.algorithm, config.data, config.max_episode_steps) == ("off_policy", "a file.npz", 9)


def test_evaluate_and_compare_say_the_same_of_few_seeds_that_agree(tmp_path: Path, monkeypatch, capsys):
    options = SMALL | {"folder": tmp_path, "steps": 64, "preset": False}
    run = upslope.train("jax:CartPole-v1", seeds=2, name="two", max_episode_steps=3, **options)
    main(["evaluate", str(run.path), "--episodes", "1"])
    judged = " ".join(capsys.readouterr().out.split())
    main(["compare", str(run.path)])
    compared = " ".join(capsys.readouterr().out.split())
    for words in ("2 seeds are thin evidence", "all 2 seeds have the same score, so there is no spread"):
        assert words in judged and words in compared
    assert "±" not in judged and "1 episode per seed and mode" in judged


def test_a_film_that_cannot_be_is_refused_before_anything_is_played(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("episodes were played"))
    assert "A video is an .mp4" in refused(f"evaluate nowhere --video {tmp_path / 'film.gif'}", capsys)
    assert "There is no folder" in refused(f"evaluate nowhere --video {tmp_path / 'no' / 'film.mp4'}", capsys)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert 'pip install "upslope[video]"' in refused(f"evaluate nowhere --video {tmp_path / 'film.mp4'}", capsys)


def test_a_film_shows_an_episode_of_the_seed_that_is_evaluated(tmp_path: Path, monkeypatch, capsys):
    """The video is also recorded with all other options of the evaluation."""
    filmed: list[dict[str, Any]] = []

    def film(run: Any, path: Any, checkpoint: Any = "last", environment_seed: int = 0, **more: Any) -> Any:
        filmed.append({"checkpoint": checkpoint, "environment_seed": environment_seed, **more})
        return path

    monkeypatch.setattr(video, "film", film)
    monkeypatch.setattr(video, "video_path", lambda path: path)
    settings: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 16, "minibatches": 1, "seeds": 1}
    run = upslope.train("jax:CartPole-v1", folder=tmp_path, quiet=True, preset=False, **settings).path
    flags = "--environment-seed 3 --max-episode-steps 9 --checkpoint best --trust --episodes 1"
    main(["evaluate", str(run), "--video", str(tmp_path / "x.mp4"), *flags.split()])
    assert filmed == [{"checkpoint": "best", "environment_seed": 3, "max_episode_steps": 9, "trust": True}]


def test_numbers_have_their_plural():
    assert [counted(n, "episode") for n in (0, 1, 2, 1000)] == [
        "0 episodes",
        "1 episode",
        "2 episodes",
        "1,000 episodes",
    ]


LONG = "x" * 300
NAMING_FILES = [
    *(f"{name} {LONG}" for name in ("evaluate", "record", "resume", "doctor", "report", "credit", "compare", "watch")),
    *(f"export {LONG} --format c", f"judge {LONG} --data a", f"bundle {LONG}", f"track {LONG} --to tensorboard"),
    *(f"train jax:CartPole-v1 {flag} {LONG}" for flag in ("--config", "--from", "--reference", "--folder")),
    f"train jax:CartPole-v1 --algorithm off_policy --data {LONG}",
    *(f"{name} {LONG}" for name in ("report run -o", "bundle run -o", "record run --output")),
    f"evaluate run/{LONG}",
    f"ladder jax:CartPole-v1 --folder {LONG}",
]


@pytest.fixture(scope="module")
def run_of_mistakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    return upslope.train("jax:CartPole-v1", name="run", folder=folder, steps=32, preset=False, **SMALL).path


@pytest.mark.parametrize("words", NAMING_FILES, ids=lambda words: words.replace(LONG, "LONG"))
def test_a_path_that_the_system_refuses_gets_a_message(words: str, run_of_mistakes: Path, monkeypatch, capsys):
    monkeypatch.chdir(run_of_mistakes.parent)
    said = refused(words, capsys)
    assert said.startswith("upslope: ") and LONG in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "runs/a"), "cannot read or write runs/a: Permission denied. Check"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "cannot read or write a or b: Invalid"),
        (TimeoutError("timed out"), "The system refused to read or write: timed out."),
        (OSError(), "The system refused to read or write: OSError."),
    ],
)
def test_what_the_system_refuses_is_said_without_a_traceback(error: OSError, said: str, monkeypatch, capsys):
    def run(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("upslope.cli.main.run", run)
    assert said in refused("evaluate run", capsys)


def test_a_current_folder_that_is_gone_and_a_full_disk_get_a_message(tmp_path: Path):
    gone = "import os, sys; from upslope.cli.main import main; os.mkdir('x'); os.chdir('x'); os.rmdir('../x'); main()"
    done = command(gone, ["list"], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "Change to a folder that exists" in done.stderr
    with Path("/dev/full").open("w") as full:
        done = command("from upslope.cli.main import main; main()", ["list"], tmp_path, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "No space left" in done.stderr


def test_a_count_of_a_config_file_has_a_limit_too(run_of_mistakes: Path, tmp_path: Path, capsys):
    run = Path(shutil.copytree(run_of_mistakes, tmp_path / "run"))
    description = json.loads((run / "config.json").read_text())
    description["config"]["max_episode_steps"] = 3_000_000_000
    (run / "config.json").write_text(json.dumps(description))
    assert "--max-episode-steps can be at most 2,147,483,647" in refused(f"evaluate {run}", capsys)


JaxRuntimeError = type("JaxRuntimeError", (RuntimeError,), {"__module__": "jax.errors"})
FULL = [JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 140480160192 bytes."), MemoryError()]


@pytest.mark.parametrize("error", FULL, ids=repr)
def test_memory_that_runs_out_is_said_in_one_message(error: Exception, monkeypatch, capsys, tmp_path: Path):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("upslope.runs.loop.Loop.run", fail)
    assert "Lower --num-envs, --rollout-steps" in refused("train jax:CartPole-v1 --steps 10 --quiet", capsys)
    with pytest.raises(upslope.UpslopeError, match="not enough memory"):
        upslope.train("jax:CartPole-v1", folder=tmp_path, steps=10, preset=False, **SMALL)
    monkeypatch.setattr("upslope.cli.main.run", fail)
    assert "Lower --num-envs, --rollout-steps" in refused("evaluate run", capsys)


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def run(arguments: list[str]) -> None:
        raise JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr("upslope.cli.main.run", run)
    with pytest.raises(JaxRuntimeError):
        main(["list"])


def test_a_command_that_is_suggested_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = "with space; $(touch x) 'n"
    flags = "--steps 32 --num-envs 2 --rollout-steps 8 --hidden-sizes 8 --no-preset"
    main(["train", "jax:CartPole-v1", *flags.split(), "--name", name])
    main(["resume", f"runs/{name}"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "it:  upslope " in line or "budget:  " in line]
    typed = [shlex.split(line.partition(":  ")[2]) for line in lines]
    path = f"runs/{name}"
    run, continued = ["upslope", "evaluate", path], ["upslope", "train", "--from", path]
    assert run in typed and continued in typed and all(words[-1] == path for words in typed)
    main(["report", path, "-o", "page.html"])
    page = html.unescape(Path("page.html").read_text())
    assert shlex.join(["upslope", "evaluate", path]) in page and shlex.join(["upslope", "credit", path]) in page
    main(["bundle", path, "-o", "a bundle.zip"])
    assert shlex.join(["upslope", "report", "a bundle.zip"]) in capsys.readouterr().out
    assert "'a b'" in refused("track 'a b'", capsys)


def test_a_command_in_python_quotes_its_path():
    config = replace(config_of(["jax:CartPole-v1"]), environment="__main__:World")
    said = call_of("resume", config, RunDirectory('a "b"'))
    assert said == 'upslope.resume("a \\"b\\"", environment=…)'
