"""The lab's rule for verdicts, its experiments at a small size, the refutation of wrong claims, and the page in both
languages."""

import json
import math
import re
import string

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_ind

from upslope.cli import experiments
from upslope.cli.main import main as cli
from upslope.core.estimators import NStep, RewardToGo
from upslope.core.storage import plain
from upslope.errors import UpslopeError
from upslope.lab import finding, gradients, sampling
from upslope.lab.experiments import EXPERIMENTS
from upslope.lab.finding import ABOVE_ZERO, BELOW_ZERO, Estimate, Finding, Line, Outcome, Panel, around, judge
from upslope.lab.page import page
from upslope.lab.run import Result, as_json, select
from upslope.lab.table1 import NONE
from upslope.lab.texts import measured, region, texts, typeset

QUICK = {experiment.name: experiment for experiment in EXPERIMENTS}
# Claims that even a small experiment must support. Whether a small experiment decides the others is a matter of chance.
SURE = {
    "expectation": {"mean", "rate"},
    "gradient": set(),
    "variance": {"to_go_cuts", "discounted_cuts", "baseline_cuts", "discounted_bias"},
    "advantages": {"variance", "bias", "lambda_0", "lambda_1", "mixture", "middle"},
    "importance": {"plain", "grows", "infinite"},
    "reuse": {"clip_near", "kl_near"},
    "table1": set(),
    "credit": {"one_step_late", "gae_sooner", "delay"},
    "seeds": {"one_seed"},
    "groups": {
        "unbiased",
        "mean",
        "variance",
        "deviation_alone",
        "deviation",
        "length",
        "wrong",
        "batch",
        "batch_less",
    },
    "entropy": set(),
    "counts": {"all", "less"},
    "television": {"endless"},
}


@pytest.mark.parametrize(
    ("interval", "predicted", "verdict"),
    [
        ((0.1, 0.2), ABOVE_ZERO, "supported"),
        ((-0.2, -0.1), ABOVE_ZERO, "refuted"),
        ((-0.1, 0.2), ABOVE_ZERO, "undecided"),
        ((-0.2, -0.1), BELOW_ZERO, "supported"),
        ((87.9, 88.1), (87.5, 88.5), "supported"),
        ((87.9, 88.6), (87.5, 88.5), "undecided"),
        ((88.6, 88.7), (87.5, 88.5), "refuted"),
        ((80.0, 90.0), (87.5, 88.5), "undecided"),
        ((0.0, 0.0), ABOVE_ZERO, "undecided"),
        ((2.0, 2.0), (-math.inf, 1.0), "refuted"),
        ((math.nan, math.nan), ABOVE_ZERO, "undecided"),
    ],
)
def test_the_rule(interval, predicted, verdict):
    assert judge(interval, predicted) == verdict


def test_intervals_are_students_and_welchs():
    generator = np.random.default_rng(0)
    left, right = generator.normal(1.0, 2.0, 7), generator.normal(0.0, 0.5, 12)
    mean, welch = finding.mean_of(left), finding.difference_of(left, right)
    np.testing.assert_allclose(mean.interval, ttest_1samp(left, 0.0).confidence_interval())
    np.testing.assert_allclose(welch.interval, ttest_ind(left, right, equal_var=False).confidence_interval())
    assert welch.value == pytest.approx(left.mean() - right.mean())
    assert judge(finding.mean_of(left[:1]).interval, ABOVE_ZERO) == "undecided", "one sample decides nothing"


def test_the_interval_of_a_share_contains_only_shares():
    assert finding.mean_share_of(np.array([0.2, 0.4])).interval == (0.0, 1.0)
    assert finding.mean_share_of(np.array([0.2, 0.3, 0.4])) == finding.mean_of(np.array([0.2, 0.3, 0.4]))


def test_the_exponent_of_a_known_power_law():
    sizes = [4, 16, 64, 256]
    noise = np.exp(0.1 * np.random.default_rng(0).normal(size=(320, 4)))
    found = finding.power_law(sizes, np.array(sizes) ** -0.7 * noise)
    low, high = found.interval
    assert low < -0.7 < high
    assert high - low < 0.02


def test_a_wrong_mean_is_refuted():
    outcome = sampling.expectation(repetitions=64, largest=1024, believed=90.0)
    verdicts = {f.name: f.verdict for f in outcome.findings}
    assert verdicts["mean"] == "refuted"


@pytest.mark.parametrize(("estimator", "gamma"), [(RewardToGo(), 0.5), (NStep(1), 0.5)])
def test_a_biased_estimator_is_refuted_as_the_gradient(estimator, gamma):
    # With γ = 0.5, later rewards count for too little; the true gradient is that of the undiscounted return.
    outcome = gradients.gradient(repetitions=32, largest=512, estimator=estimator, gamma=gamma)
    verdicts = {f.name: f.verdict for f in outcome.findings}
    assert verdicts == {"along": "refuted", "rate": "refuted"}


def test_what_is_predicted_is_what_theory_says(outcomes):
    """Check by hand the regions that claims of equality predict. Wider regions would support unequal values."""
    regions = {(name, f.name): f.predicted for name in ("expectation", "importance") for f in outcomes(name).findings}
    assert regions["expectation", "mean"] == pytest.approx((88 - 0.1, 88 + 0.1))
    assert regions["expectation", "rate"] == pytest.approx((-0.55, -0.45))
    # 0.1 · 1 kg + 0.4 · 3 kg + 0.5 · 2 kg in lake A.
    assert regions["importance", "weighted"] == pytest.approx((2.28, 2.32))
    assert regions["importance", "share"] == pytest.approx((math.exp(-1) - 0.02, math.exp(-1) + 0.02))


@pytest.fixture(scope="module")
def outcomes():
    """Return a function that runs each experiment only once, at its quick size."""
    found = {}

    def of(name):
        if name not in found:
            found[name] = QUICK[name].measure(seed=0, **QUICK[name].quick)
        return found[name]

    return of


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.weekly) if name == "credit" else name for name in SURE]
)
def test_an_experiment_in_small(name, outcomes):
    outcome = outcomes(name)
    verdicts = {f.name: f.verdict for f in outcome.findings}
    assert {n for n, verdict in verdicts.items() if verdict == "supported"} >= SURE[name]
    assert {n for n, verdict in verdicts.items() if verdict == "refuted"} <= {"as_written", "icm"}
    for f in outcome.findings:
        assert f.estimate.interval[0] <= f.estimate.value <= f.estimate.interval[1]
    for line in (line for panel in outcome.panels for line in panel.lines):
        assert len(line.x) == len(line.y)
        assert np.isfinite(np.asarray(line.y, np.float64)).all()


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", SURE)
def test_every_word_is_there_in_both_languages(name, language, outcomes):
    html = page([Result(name, outcomes(name), 1.0)], language, 0, True)
    shown = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    mine = texts(language)["experiments"][name]
    assert typeset(mine["title"]) in shown
    assert set(mine["claims"]) == {f.name for f in outcomes(name).findings}
    assert set(mine["panels"]) == {panel.name for panel in outcomes(name).panels}
    assert shown.count('class="chart"') == len(outcomes(name).panels)
    assert re.search(r"(src|href)=\"(https?:)?//", shown) is None, "the page is self-contained"
    panels = outcomes(name).panels
    shown_names = {line.name for panel in panels for line in panel.lines}
    shown_names |= {x for p in panels if p.is_bars for line in p.lines for x in line.x if re.search("[A-Za-z]", x)}
    assert shown_names <= {*texts(language)["lines"], *mine["panels"]}


def test_no_seed_is_global():
    quick = QUICK["expectation"]
    first, again, other = (quick.measure(seed=seed, **quick.quick).findings for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", ["-1", "1e30", str(10**30), str(2**31)])
def test_a_seed_that_cannot_be_gets_one_message(seed, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli(["lab", "--only", "expectation", "--quick", "--seed", seed, "--output", str(tmp_path / "lab.html")])
    said = capsys.readouterr().err
    assert "--seed" in said and "Traceback" not in said


def leaves(tree, path=()):
    """Map the path of every leaf to its text."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {p: text for key, value in tree.items() for p, text in leaves(value, (*path, key)).items()}


def test_the_languages_say_the_same_things():
    english, chinese = leaves(texts("en")), leaves(texts("zh"))
    assert english.keys() == chinese.keys()

    def slots(text):
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    for path, text in english.items():
        assert slots(text) == slots(chinese[path]), path


@pytest.mark.parametrize(
    ("estimate", "value", "interval"),
    [
        (Estimate(88.00318, (87.99625, 88.01011)), "88.003", "[87.996, 88.010]"),
        (Estimate(-0.5052, (-0.5226, -0.4878)), "−0.505", "[−0.523, −0.488]"),
        (Estimate(123.4, (101.0, 145.0)), "123", "[101, 145]"),
        (Estimate(13.6805, (13.6805, 13.6805)), "13.68", ""),
        (Estimate(1.0, (math.nan, math.nan)), "1", "[–, –]"),
    ],
)
def test_numbers_have_the_digits_that_they_deserve(estimate, value, interval):
    assert measured(estimate) == (value, interval)


def test_regions_and_type():
    assert region(ABOVE_ZERO) == "> 0"
    assert region((-math.inf, 1.0)) == "< 1"
    assert region(around(-0.5, 0.05)) == "−0.55 … −0.45"
    assert typeset("n^(−1/2) & R_t, A^T") == "n<sup>−1/2</sup> &amp; R<sub>t</sub>, A<sup>T</sup>"


def test_json_is_strict():
    panel = Panel("means", (Line("measured", [1, 2], np.array([0.5, np.nan])),))
    outcome = Outcome((Finding("mean", Estimate(1.0, (math.nan, math.nan)), ABOVE_ZERO),), (panel,), QUANTITIES)
    found = as_json([Result("expectation", outcome, 1.0)], "en", 0, True)
    again = json.loads(json.dumps(plain(found), allow_nan=False))
    assert again["experiments"][0]["findings"][0]["predicted"] == [0.0, None]
    assert again["experiments"][0]["panels"][0]["lines"][0]["y"] == [0.5, None]


QUANTITIES = {"draws": 1.0, "repetitions": 1.0, "largest": 1.0}


def test_unknown_names_are_refused():
    with pytest.raises(UpslopeError, match=r'Unknown lab experiment "exam"\. Available: expectation, gradient'):
        select(["exam"])
    with pytest.raises(UpslopeError, match="--only is empty"):
        select([])
    assert select(None) == list(EXPERIMENTS)
    assert [e.name for e in select(["seeds", "gradient"])] == ["gradient", "seeds"]
    assert NONE.startswith("no clipping")


def test_the_command(tmp_path, capsys):
    path = tmp_path / "lab.html"
    cli(["lab", "--only", "advantages", "--quick", "--json", "--language", "zh", "--output", str(path)])
    found = json.loads(capsys.readouterr().out)
    verdicts = {f["name"]: f["verdict"] for f in found["experiments"][0]["findings"]}
    assert verdicts["as_written"] == "refuted", "yet the exit status is 0"
    assert "优势" in path.read_text("utf-8")
    with pytest.raises(SystemExit) as stop:
        cli(["lab", "--only", "expectation", "--output", str(tmp_path / "nowhere" / "lab.html")])
    assert stop.value.code == 2
    assert "There is no folder" in capsys.readouterr().err


def test_the_help_names_every_experiment():
    said = str(experiments.lab.__doc__).split("Run only these experiments: ")[1].split(".")[0]
    assert re.split(r",\s+", said) == [experiment.name for experiment in EXPERIMENTS]
