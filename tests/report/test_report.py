"""The report shows what a run contains, and works in a real browser: self-contained, on narrow screens, and in dark
mode."""

import json
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import write_run

import upslope
from upslope.analysis.curves import at_steps, common_steps
from upslope.analysis.metrics import HEALTH, METRICS
from upslope.analysis.records import read_record
from upslope.cli.main import main
from upslope.diagnosis import findings
from upslope.learning import health as diagnostics
from upslope.report import output as outputs
from upslope.report import page as pages
from upslope.report.figures import Figures
from upslope.report.output import page_path, render
from upslope.report.page import unique_names, write_credit, write_report
from upslope.report.tables import score_figure

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, DESK = 390, 1200


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train two runs in two environments, one with a critic, evaluations and a credit view, and one without any of
    these."""
    folder = tmp_path_factory.mktemp("runs")
    for world, algorithm, name in (("jax:Key-v0", "gae", "key"), ("jax:CartPole-v1", "reinforce", "cartpole <b>")):
        upslope.train(
            world, algorithm, name=name, seeds=2, steps=4000, num_envs=2, folder=folder, quiet=True, preset=False
        )
    found = sorted(folder.iterdir(), reverse=True)
    upslope.evaluate(found[0], episodes=5)
    write_credit(found[0])
    return found


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("page") / "report.html")


# --- numbers ---------------------------------------------------------------------------------------------------


def test_metrics_on_common_steps_are_means_since_the_step_before(runs):
    record = read_record(runs[0])
    rows = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    grid = common_steps(record, 5)
    found = at_steps(record, "policy/entropy", grid)
    for s, seed in enumerate(record.seeds):
        mine = [(row["step"], row["policy/entropy"]) for row in rows if row["seed"] == seed]
        for k in range(1, len(grid)):
            since = [value for step, value in mine if grid[k - 1] < step <= grid[k]]
            assert found[s, k] == pytest.approx(np.mean(since))


def test_a_report_is_written_without_jax(runs, tmp_path):
    """Importing JAX alone would take a fifth of the time allowed for a report."""
    code = f"from upslope.report.page import write_report; import sys; write_report([{str(runs[0])!r}], "
    code += f"{str(tmp_path / 'r.html')!r}); assert 'jax' not in sys.modules and 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert findings.PREFIX == diagnostics.PREFIX


def test_several_environments_are_compared_in_one_unit_where_asked(tmp_path):
    """ppo scores higher than a2c in both environments, and also on average over them."""
    scores = {"ppo": {"CartPole-v1": (300, 400, 500), "Acrobot-v1": (-90, -80, -100)}}
    scores["a2c"] = {"CartPole-v1": (0, 100, 200), "Acrobot-v1": (-180, -140, -170)}
    runs = [
        write_run(tmp_path, f"{rung}-{world}", episodes=dict(enumerate([[(9, x)] for x in each])), steps=9,
                  algorithm=rung, environment=world)
        for rung, worlds in scores.items() for world, each in worlds.items()
    ]  # fmt: skip
    plain = write_report(runs, tmp_path / "plain.html").read_text("utf-8")
    assert "All environments" not in plain and "--normalize" in plain
    main(["report", *map(str, runs), "--normalize", "range", "-o", str(tmp_path / "all.html")])
    html = (tmp_path / "all.html").read_text("utf-8")
    section = html[html.index("All environments") :]
    assert "in CartPole-v1 0 is 0 and 1 is 500" in section and "Performance profiles" in section
    # By hand: ppo (0.6 + 0.8 + 1)/3 and (0.9 + 1 + 0.8)/3; a2c (0 + 0.2 + 0.4)/3 and (0 + 0.4 + 0.1)/3.
    for rung, mean in (("ppo", "0.85"), ("a2c", "0.18")):
        assert re.search(rf'<th scope="row">{rung}</th><td>{mean} <small>', section), rung


def section_of(html, name):
    return re.search(rf'<section id="{name}">.*?</section>', html, re.DOTALL)[0]


def test_groups_have_the_names_of_their_runs_and_the_budgets_they_spent(tmp_path):
    """One run has completed 18,000 of its 60,000 steps. Two others are finished and differ only in γ."""
    scores = {"slow start": (1, 2, 3), "high gamma": (4, 5, 6), "low gamma": (7, 8, 9)}
    settings = ({"algorithm": "a2c", "reached": 18_000}, {"gamma": 0.999}, {"gamma": 0.9})
    runs = [
        write_run(tmp_path, name, episodes={s: [(9000, x)] for s, x in enumerate(each)}, steps=60_000, **more)
        for (name, each), more in zip(scores.items(), settings, strict=True)
    ]
    html = write_report(runs, tmp_path / "report.html").read_text("utf-8")
    comparison = section_of(html, "comparison")
    assert re.findall(r'<th scope="row">(.*?)</th>', comparison) == [*scores, *scores]
    assert "18,000<br>of 60,000" in comparison and "within 18,000 steps" in html
    differing = section_of(html, "settings").split("<details>")[0]
    shown = re.findall(r'<th scope="row"><code>(.*?)</code>', differing)
    assert {"algorithm", "gamma"} <= set(shown) and "num_envs" not in shown and "steps" not in shown


def test_one_seed_is_a_dot_with_one_tick(tmp_path):
    run = write_run(tmp_path, "one", episodes={0: [(9, 0.955)]}, steps=9)
    (group,) = upslope.compare(run).groups
    figures = Figures()
    score_figure(figures, [group], {group.label: "one"})
    (drawn,) = figures.found
    assert [trace["mode"] for trace in drawn["data"]] == ["markers"], "no bar for a single seed"
    assert drawn["layout"]["xaxis"]["ticktext"] == ["0.955"]
    assert drawn["layout"]["xaxis"]["range"][0] < 0.955 < drawn["layout"]["xaxis"]["range"][1]


def test_what_templates_and_scripts_could_run_is_escaped(tmp_path):
    """A run's names, notes and labels are untrusted, and so is the text in its figures."""
    name = "</script><script>alert(1)</script>{{ 7 * 7 }}"
    figures = Figures()
    place = figures.add([{"name": name}], {}, height=10, label=f'"{name}')
    html = render("credit.html", figures, title=name, view=hostile_view(name, place))
    assert "<script>alert" not in html and "{{ 7 * 7 }}" in html
    assert html.count("<script>") == 1 and html.count("</script>") == 3
    assert 'aria-label="&quot;&lt;/script&gt;' in html


def hostile_view(name, place):
    episode = {"seed": name, "checkpoint": name, "own": name, "gamma": 1.0, "terminated": True, "num_steps": 2}
    episode |= {"reward": np.ones(2), "discounted_return": 2.0, "value": None, "picture_note": name}
    episode |= {"mask": None, "images": {}}
    policy = {"words": name, "kind": name, "drawn": 1, "left_out": 0}
    data = {"figure": name, "films": []}
    view = {"title": name, "data": data, "start": 0, "figure": place, "policy": policy, "memory": None}
    return view | {"credit": SimpleNamespace(**episode)}


def test_a_report_plays_what_is_missing_when_asked(runs, tmp_path):
    copy = shutil.copytree(runs[1], tmp_path / "run")
    stranger = shutil.copytree(runs[1], tmp_path / "stranger")
    config = stranger / "config.json"
    config.write_text(config.read_text("utf-8").replace("jax:CartPole-v1", "Unheard-v0"), "utf-8")
    html = write_report([copy, stranger], tmp_path / "report", credit=True).read_text("utf-8")
    assert (copy / "credit.npz").exists() and html.count('class="card credit"') == 1
    assert f"{stranger} has no credit view" in html and f"upslope credit {stranger}" in html


def test_every_metric_that_training_logs_is_explained(runs):
    logged = {name for run in runs for name in read_record(run).metrics}
    assert logged <= set(METRICS | HEALTH)


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "other" / runs[0].name)
    names = unique_names([read_record(runs[0]), read_record(copy), read_record(runs[1])])
    assert names == [f"{runs[0].parent.name}/key", "other/key", runs[1].name]


# --- the page --------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_escapes_names(report):
    html = report.read_text("utf-8")
    plain = re.sub(r'<script type="application/octet-stream".*?</script>', "", html, flags=re.DOTALL)
    assert "http://" not in plain and "https://" not in plain
    assert not re.search(r"<(?:link|iframe)|<script src|@import|url\(", plain)
    assert "cartpole--b" in plain or "cartpole &lt;b&gt;" in plain
    assert report.stat().st_size < 4e6
    for heading in ("Learning", "Comparison", "Evaluation", "Health", "Settings", "Diagnostics", "Credit"):
        assert f"<h2>{heading}</h2>" in plain
    assert "thin evidence" in plain  # the comparison warns that there are only two seeds


def test_runs_that_cannot_be_compared_still_have_a_report(runs, tmp_path, monkeypatch):
    def refuse(records, **options):
        raise upslope.UpslopeError("No common measure.")

    monkeypatch.setattr(pages, "compare_records", refuse)
    html = write_report(runs, tmp_path / "report").read_text("utf-8")
    assert "could not be compared. No common measure." in html and "<h2>Diagnostics</h2>" in html


def test_a_run_that_is_there_twice_is_shown_and_counts_once(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "again")
    html = write_report([runs[0], copy, runs[0], tmp_path], tmp_path / "report").read_text("utf-8")
    assert f"left out: {copy}: {runs[0]} has the same seeds" in html and ">again</button>" in html
    assert f"left out: {runs[0]} is given more than once" in html and f"left out: {tmp_path} is not a run" in html


def test_a_page_goes_where_a_person_expects_it(tmp_path):
    assert page_path(tmp_path, "report.html") == tmp_path / "report.html"
    assert page_path(tmp_path / "mine", "report.html") == tmp_path / "mine.html"
    assert page_path(tmp_path / "mine.HTM", "report.html") == tmp_path / "mine.HTM"
    for output, words in (
        ("README.md", "ends in .html"),
        ("nowhere/", "no folder .*nowhere"),
        ("no/x.html", "no folder"),
    ):
        with pytest.raises(upslope.UpslopeError, match=words):
            page_path(f"{tmp_path}/{output}", "report.html")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused(runs, tmp_path, monkeypatch):
    def refused(match, runs, output=tmp_path / "report.html"):
        with pytest.raises(upslope.UpslopeError, match=match):
            write_report(runs, output)

    refused("No run was given", [])
    refused("not a run directory", [tmp_path])
    refused("no folder", [runs[0]], tmp_path / "nowhere" / "report.html")
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own page</p>")
    refused("not an upslope page", [runs[0]], mine)
    assert mine.read_text() == "<p>my own page</p>"
    with pytest.raises(upslope.UpslopeError, match="not a run directory"):
        write_credit(tmp_path / "nothing")
    monkeypatch.setattr(outputs, "find_spec", lambda name: None)
    refused(re.escape('pip install "upslope[report]"'), [runs[0]])


def test_the_commands_say_where_the_page_is(runs, tmp_path, capsys):
    main(["report", str(runs[0]), str(runs[1]), "-o", str(tmp_path / "two.html")])
    assert f"wrote {tmp_path / 'two.html'}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["credit", str(runs[0]), "--seed", "99"])
    assert "has no seed 99" in capsys.readouterr().err


# --- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver():
    webdriver = pytest.importorskip("selenium.webdriver")
    if BROWSER is None or shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync", "hide-scrollbars"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def opened(driver, path, width, theme="light"):
    """Open a page from its file and draw all its figures."""
    driver.get_log("browser"), driver.get_log("performance")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": theme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get(path.as_uri())
    wait_for(driver, "return Boolean(window.Plotly)")
    wait_for(driver, "return document.querySelectorAll('.chart .main-svg').length > 0")
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    driver.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    wait_for(driver, "return [...document.querySelectorAll('.chart')].every(c => c.calcdata && c._fullLayout)")
    time.sleep(0.3)


def wait_for(driver, script):
    """Wait until the script returns true. The test timeout ends an endless wait."""
    while not driver.execute_script(script):
        time.sleep(0.1)


POINTS_DRAWN = """return [...document.querySelectorAll('.chart')].map(chart => [chart.getAttribute('aria-label'),
    chart._fullData.filter(t => t.visible === true && (t._length || (t.z && t.z.length))).length,
    chart.querySelectorAll('.trace path, .point, path.js-line, .hm image, .box, .boxes path').length])"""


TOO_WIDE = """return [...document.querySelectorAll('.wide')].filter(place => place.scrollWidth > place.clientWidth)
    .map(place => place.closest('section').id)"""


@pytest.mark.parametrize(("width", "theme"), [(DESK, "light"), (PHONE, "dark")])
def test_a_browser_draws_every_chart_without_an_error_or_the_network(driver, report, width, theme):
    opened(driver, report, width, theme)
    charts = driver.execute_script(POINTS_DRAWN)
    assert len(charts) >= 2 + 2 + 1 + len(METRICS) - 3 + 1
    assert [chart for chart in charts if not (chart[1] and chart[2])] == []
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in sent if e["method"] == "Network.requestWillBeSent"]
    assert report.as_uri() in urls
    assert [url for url in urls if url != report.as_uri() and not url.startswith(("data:", "blob:"))] == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    if width >= DESK:
        assert driver.execute_script(TOO_WIDE) == [], "no table needs horizontal scrolling"
    ink = driver.execute_script("return document.querySelector('.chart')._fullLayout.font.color")
    assert ink == {"light": "rgba(28,28,30,1)", "dark": "rgba(236,236,240,1)"}[theme]


def test_tables_of_nine_runs_fit_a_desk(driver, tmp_path):
    """The runs have negative returns and long names. On a phone, the tables scroll sideways, but the page does
    not."""
    runs = [
        write_run(tmp_path, f"a name of many words {k}", steps=6000, gamma=0.9 + k / 100, hidden_sizes=(64, 64, 64, 64),
                  episodes={s: [(1000 * e, -1234.5 * k + 99 * s * e) for e in range(1, 6)] for s in range(5)})
        for k in range(9)
    ]  # fmt: skip
    page = write_report(runs, tmp_path / "nine.html")
    opened(driver, page, 1280)
    assert driver.execute_script(TOO_WIDE) == []
    opened(driver, page, PHONE)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= PHONE
    assert "comparison" in driver.execute_script(TOO_WIDE)


def test_a_chart_shows_the_numbers_of_the_run(driver, report, runs):
    opened(driver, report, DESK)
    drawn = driver.execute_script(
        """const chart = document.querySelector('[aria-label="Entropy of the policy"]');
        return chart._fullData.filter(t => t.meta.run === 0 && t.line.width === 1)
            .flatMap(t => [...t.y]).filter(Number.isFinite)"""
    )
    entropy = read_record(runs[0]).metrics["policy/entropy"]
    assert min(drawn) == pytest.approx(np.nanmin(entropy), rel=1e-6)
    assert max(drawn) == pytest.approx(np.nanmax(entropy), rel=1e-6)


def test_a_chart_is_saved_as_svg(driver, report):
    opened(driver, report, DESK)
    saved = driver.execute_script(
        """const button = document.querySelector('.chart .modebar-btn');
        Plotly.downloadImage = (place, options) => { window.asked = [place.id, options.format, options.filename]; };
        button.click();
        return [...window.asked, button.dataset.title]"""
    )
    assert saved == ["figure-0", "svg", "Learning_in_jax_Key_v0", "Save as SVG"]


def test_pointing_zooming_and_hiding_reach_the_other_charts(driver, report):
    opened(driver, report, DESK)
    entropy, kl = ("Entropy of the policy", "KL divergence of an update")
    find = "const at = l => document.querySelector(`[aria-label='${l}']`);"
    driver.execute_script(f"{find} at('{entropy}').scrollIntoView({{block: 'center'}})")
    time.sleep(0.3)
    place = driver.execute_script(
        f"{find} const b = at('{entropy}').querySelector('.nsewdrag').getBoundingClientRect(); "
        "return [b.x + b.width / 2, b.y + b.height / 2]"
    )
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": place[0], "y": place[1]})
    wait_for(driver, f"{find} return (at('{kl}')._hoverdata || []).length > 0")
    driver.execute_script(f"{find} Plotly.relayout(at('{entropy}'), {{'xaxis.range[0]': 500, 'xaxis.range[1]': 1500}})")
    wait_for(driver, f"{find} return at('{kl}')._fullLayout.xaxis.range.join() === '500,1500'")
    driver.execute_script("document.querySelector('.chip').click()")
    wait_for(
        driver,
        f"{find} return at('{kl}')._fullData.every((t, i) => t.visible === (at('{kl}').data[i].meta.run !== 0))",
    )


def test_the_slider_ties_the_picture_to_the_curves(driver, report):
    opened(driver, report, PHONE)
    seen = driver.execute_script(
        """const card = document.querySelector('.credit'), slider = card.querySelector('input');
        return [1, 6].map(t => {
            slider.value = t;
            slider.dispatchEvent(new Event('input'));
            const chart = card.querySelector('.chart');
            return [card.querySelector('output').textContent, chart.layout.shapes[0].x0, card.querySelector('img').src];
        })"""
    )
    assert [s[:2] for s in seen] == [["1", 1], ["6", 6]]
    assert seen[0][2] != seen[1][2]
    wait_for(driver, "return document.querySelector('.credit img').naturalWidth > 0")
