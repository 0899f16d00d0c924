"""The panel shows a run's numbers, and plain output has no colours or control characters."""

import io
import math
import os

import pytest
from rich.console import Console
from run_helpers import make_snapshot

from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.core import numbers
from upslope.environments.registry import make
from upslope.runs import display
from upslope.runs.display import LiveDisplay, PlainDisplay, QuietDisplay, Snapshot, choose
from upslope.runs.train import lines_of_networks

NAN = math.nan


def draw(snapshot: Snapshot, width: int = 80, curve=(1.0, 2.0, 4.0)) -> str:
    console = Console(file=io.StringIO(), record=True, width=width, color_system=None)
    console.print(display.panel("ppo on CartPole-v1 [seed]", snapshot, list(curve), width))
    return console.export_text()


def test_interval_is_student_t():
    # 10 12 14 16 18: mean 14, s² = (16 + 4 + 0 + 4 + 16) / 4 = 10, standard error √(10 / 5) = √2. For four degrees of
    # freedom, the 97.5 % quantile of t is 2.776445.
    assert numbers.half_width([10.0, 12.0, 14.0, 16.0, 18.0]) == pytest.approx(2.776445 * math.sqrt(2), rel=1e-6)
    assert "14.0 ± 3.9 (95 %) · 5 seeds" in draw(make_snapshot())


def test_interval_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    values = [3.0, -1.5, 8.25, 0.5]
    low, high = stats.t.interval(0.95, 3, loc=sum(values) / 4, scale=stats.sem(values))
    assert numbers.half_width(values) == pytest.approx((high - low) / 2)


def test_panel_shows_the_runs_numbers():
    text = draw(make_snapshot())
    assert "ppo on CartPole-v1 [seed]" in text
    assert "25 %" in text
    assert "25,000 of 100,000" in text
    # 5 seeds with 75,000 steps left each take 30 s at 12,500 steps per second.
    assert "0:10 · 0:30 left · 12,500 steps/s" in text
    assert "10.0 – 18.0" in text
    assert "10.0  12.0  14.0  16.0  18.0" in text
    assert "0.02    below 0.02" in text
    assert "private" not in text
    assert "environment 60 %" in text and "act 30 %" in text and "learn 10 %" in text
    assert "thin evidence" not in text


def test_one_seed_has_no_interval():
    text = draw(make_snapshot([200.0], metrics={}))
    assert "200 one seed: no interval · thin evidence" in text
    assert "±" not in text and "lowest" not in text


def test_few_seeds_are_thin_evidence():
    assert "4 seeds · thin evidence" in draw(make_snapshot([1.0, 2.0, 3.0, 4.0]), width=100)


def test_seeds_that_agree_have_no_interval():
    assert "7 5 seeds agree: no interval" in draw(make_snapshot([7.0] * 5))
    assert "7 1 of 2 seeds: no interval" in draw(make_snapshot([7.0, NAN]))


def test_recorded_data_has_no_episodes_to_wait_for():
    nothing = make_snapshot([NAN, NAN], is_recorded=True)
    assert "no episode finished yet" not in display.summary(nothing) + draw(nothing)
    assert "recorded data: see upslope evaluate" in display.summary(nothing) and "recorded data" in draw(nothing)


def test_no_time_is_promised_before_the_speed_is_known():
    words = display.time_words(make_snapshot(steps=[10], elapsed=9.0, steps_per_second=NAN))
    assert words == "0:09, including compilation · time left not known yet"
    assert display.time_words(make_snapshot(steps=[100_000] * 5, elapsed=9.0, steps_per_second=NAN)) == "0:09"


def test_seeds_without_an_episode():
    assert "no episode finished yet" in draw(make_snapshot([NAN, NAN]), curve=[NAN])
    text = draw(make_snapshot([NAN, 10.0, 14.0]), width=100)
    # t is 12.706 for one degree of freedom, and the standard error is 2.
    assert "12 ± 25 (95 %) · 2 of 3 seeds" in text
    assert "–  10.0  14.0" in text
    assert "1 of 2 seeds: no interval" in draw(make_snapshot([NAN, 3.0]))


def test_a_metric_lost_in_one_seed_is_told():
    assert "not finite in 1 of 2" in draw(make_snapshot([1.0, 2.0], metrics={"critic/loss": [NAN, 1.0]}))


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("seeds", [1, 3, 10, 11, 64])
def test_every_width_and_number_of_seeds(width, seeds):
    returns = [1234.5 * seed - 300 for seed in range(seeds)]
    metrics = dict.fromkeys(display.DIAGNOSTICS, returns)
    lines = draw(make_snapshot(returns, metrics=metrics), width, curve=returns[:60]).splitlines()
    assert {len(line) for line in lines} == {width}
    assert any("each seed" in line for line in lines) == (1 < seeds <= 10)


def test_an_empty_run_can_be_drawn():
    empty = Snapshot(0, [], 0, [], [], {"policy/kl": []}, {}, 0.0, 0.0)
    assert "0 %" in draw(empty, curve=[])
    assert "unknown left" in draw(empty, curve=[])


def test_curve_lies_on_the_budgets_axis():
    curve: list[float] = []
    for iteration in range(1, 1001):
        snapshot = make_snapshot([float(iteration)], steps=[iteration * 50])
        display.extend_curve(curve, snapshot)
    # Half of the budget is spent, so the curve fills half of the axis, and its last point is the latest value.
    assert len(curve) == display.CURVE_POINTS // 2 + 1
    assert curve[-1] == 1000.0
    assert display.sparkline([0.0, 7.0, NAN, 3.0], display.CURVE_POINTS) == "▁█ ▄"
    assert display.sparkline([5.0] * 60, 20) == "▁" * 20


def test_resumed_curve_starts_where_the_run_does():
    curve: list[float] = []
    display.extend_curve(curve, make_snapshot([5.0], steps=[50_000]))
    assert curve[-1] == 5.0 and all(math.isnan(value) for value in curve[:-1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.01234"),
        (1.5, "1.5"),
        (0.955, "0.955"),
        (12345.6, "12,346"),
        (-31.26, "-31.26"),
        (2e-5, "2e-05"),
        (-0.0, "0"),
        (1.02447e31, "1.024e+31"),
        (-999_999_999_999.0, "-999,999,999,999"),
        (NAN, "–"),
    ],
)
def test_numbers_are_short(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (0.955, 0.12, "0.95"),
        (0.955, 0.012, "0.955"),
        (-0.02, 0.5, "-0.02"),
        (-0.02, 30.0, "0"),
        (14.0, 7.8, "14.0"),
        (203.4, 496.0, "203"),
        (1e6, 0.0, "1,000,000"),
        (0.5, 1e-12, "0.500000"),
        (1.02447e31, 2e30, "1.02e+31"),
        (-3e13, 2.0, "-3.000000e+13"),
        (3e12, 5e14, "3e+12"),
        (0.5, NAN, "0.5"),
        (0.5, math.inf, "0.5"),
    ],
)
def test_numbers_have_the_digits_that_their_spread_supports(value, spread, text):
    assert numbers.number(value, spread) == text


def test_clock():
    assert [display.clock(seconds) for seconds in (7.9, 754.0, 3723.0)] == ["0:07", "12:34", "1:02:03"]


def test_update_is_cheap(monkeypatch):
    """An update draws nothing, because drawing takes time, and the amount of data that it keeps does not grow."""
    monkeypatch.setattr(LiveDisplay, "panel_of", lambda *_: pytest.fail("an update draws"))
    stream = io.StringIO()
    shown = LiveDisplay(Console(file=stream, force_terminal=True, width=80))
    snapshot = make_snapshot([float(seed) for seed in range(64)])
    for _ in range(200):
        shown.update(snapshot)
    assert stream.getvalue() == ""
    assert len(shown.curve) <= display.CURVE_POINTS


def test_live_display_keeps_the_last_panel_and_frees_the_terminal():
    stream = io.StringIO()
    hide, show = "\x1b[?25l", "\x1b[?25h"
    with LiveDisplay(Console(file=stream, force_terminal=True, width=80, height=40)) as shown:
        shown.start("ppo", ["runs/one"])
        shown.message("careful [now]")
        shown.finish(make_snapshot(), ["the end"])
    text = stream.getvalue()
    assert text.count(hide) == text.count(show) == 1
    assert text.index("runs/one") < text.index("careful [now]") < text.rindex("14.0 ± 3.9") < text.index("the end")


def test_live_display_frees_the_terminal_when_interrupted():
    stream = io.StringIO()
    shown = LiveDisplay(Console(file=stream, force_terminal=True, width=80, height=40))
    with pytest.raises(KeyboardInterrupt), shown:
        shown.start("ppo", [])
        raise KeyboardInterrupt
    assert "waiting for the first iteration" in stream.getvalue()
    assert "\x1b[?25h" in stream.getvalue() and not shown.live.is_started


def test_live_display_shows_that_a_signal_has_arrived():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    words = "stopping after this iteration; Ctrl-C again stops without saving"
    with LiveDisplay(console) as shown:
        shown.start("ppo", [])
        shown.stopping()
        assert words in shown.render().plain
        shown.update(make_snapshot())
        assert words in "".join(segment.text for line in console.render_lines(shown.render()) for segment in line)
        shown.finish(None, [])
        assert words not in "".join(s.text for line in console.render_lines(shown.render()) for s in line)


def test_low_terminal_gets_a_panel_that_fits():
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=14)
    with LiveDisplay(console) as shown:
        shown.start("ppo", [])
        shown.update(make_snapshot())
        assert len(console.render_lines(shown.render())) <= 14
        shown.finish(None, [])
    assert "below 0.02" in console.file.getvalue()  # type: ignore[attr-defined]


def test_plain_lines_are_few_and_plain():
    stream = io.StringIO()
    shown = PlainDisplay(stream)
    shown.start("ppo on CartPole-v1", ["runs/one"])
    for percent in range(1, 101):
        shown.update(make_snapshot(steps=[percent * 1000] * 5, elapsed=percent / 10))
    shown.finish(make_snapshot(steps=[100_000] * 5, elapsed=10.0), ["the end"])
    text = stream.getvalue()
    assert "\x1b" not in text and "\r" not in text
    lines = text.splitlines()
    assert lines[:2] == ["ppo on CartPole-v1", "runs/one"] and lines[-1] == "the end"
    # The first line is followed by one line for each tenth of the budget.
    assert len(lines) == 2 + 11 + 1
    assert "14.0 ± 3.9 (95 %) · 5 seeds" in lines[5]
    assert lines[-2].startswith("100 %")


def test_plain_lines_come_every_thirty_seconds_of_a_slow_run():
    stream = io.StringIO()
    shown = PlainDisplay(stream)
    for second in range(1, 92):
        shown.update(make_snapshot(steps=[second] * 5, elapsed=float(second)))
    assert len(stream.getvalue().splitlines()) == 4


def test_plain_lines_are_ascii_where_the_stream_is_not_utf8():
    raw = io.BytesIO()
    shown = PlainDisplay(io.TextIOWrapper(raw, encoding="latin-1"))
    shown.start("ppo · λ", ["5 – 6"])
    shown.update(make_snapshot())
    text = raw.getvalue().decode("ascii")
    assert "ppo - ?" in text and "5 - 6" in text and "14.0 +/- 3.9" in text


def test_quiet_display_speaks_on_stderr_only(capsys):
    with choose(quiet=True) as shown:
        shown.start("ppo", ["runs/one"])
        shown.update(make_snapshot())
        shown.message("careful")
        shown.finish(make_snapshot(), ["the end"])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "careful\n"


def test_choose_looks_at_the_stream(monkeypatch):
    assert isinstance(choose(quiet=True), QuietDisplay)
    # FORCE_COLOR does not make a pipe count as a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(choose(quiet=False, stream=io.StringIO()), PlainDisplay)
    monkeypatch.setenv("TERM", "xterm-256color")
    _, terminal = os.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as stream:
        assert isinstance(choose(quiet=False, stream=stream), LiveDisplay)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(choose(quiet=False, stream=stream), PlainDisplay)


def test_a_run_says_what_its_networks_are_made_of_beyond_perceptrons():
    pictures = make("user_environments:Pictures")
    config = configure("x", is_continuous=False, memory="lru", memory_size=7, shared_trunk=True, encoder=("board",))
    assert lines_of_networks(task_of(config, pictures)) == [
        "networks: boards/0 read by board, picture read by board, memory lru of 7 units, a shared trunk"
    ]
    plain = configure("CartPole-v1", is_continuous=False)
    assert lines_of_networks(task_of(plain, make("CartPole-v1"))) == []
