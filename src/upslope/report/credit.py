"""The credit view: pictures, a slider, and the weight that each estimator gives to each action."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from upslope.analysis.credit import EpisodeCredit, Part
from upslope.report.figures import Figures, Html, axis, typed

ROW_HEIGHT = 30
"""Height of an estimator's row in the heat strip, in pixels."""
PANEL_HEIGHT = 85
GAP = 26
MARGINS = 56
MAX_LINES = 6
"""Maximum number of actions or dimensions that are drawn."""
MAX_CHOICES = 24
"""Maximum number of choices of a mask that are drawn."""
MEMORY_HEIGHT, FAINTEST = 360, -4.0
"""Height of the memory picture in pixels, and the smallest influence that is distinguished, as the log₁₀ of its ratio
to the largest one."""
MAX_PARTS = 6
"""Maximum number of parts of an action that are drawn."""
SCALE = [[0, "@down"], [0.5, "@mid"], [1, "@up"]]


def credit_view(figures: Figures, credit: EpisodeCredit, title: str, picture_bytes: int) -> dict[str, Any]:
    """The template's data for an episode. At most about `picture_bytes` of pictures are kept, evenly spaced."""
    place = credit_figure(figures, credit, title)
    data = view_data(figures.found[-1]["name"], credit, picture_bytes)
    figures.found[-1]["credit"] = data
    memory = None if credit.influence is None else memory_part(figures, credit, title)
    # The view opens at the step to which the last estimator (GAE, if there is one) gives the largest weight.
    start = credit.most_blamed(list(credit.weights)[-1])
    view = {"title": title, "credit": credit, "figure": place, "data": data, "start": start, "memory": memory}
    return view | {"policy": policy_key(credit)}


def policy_key(credit: EpisodeCredit) -> dict[str, Any]:
    """The legend of the policy panels: its text, the number of colours drawn, and the number left out."""
    described = [key_of_part(part) for part in credit.parts]
    if len(described) == 1:
        words, kind, count = described[0]
    else:
        pairs = zip(credit.parts, described, strict=True)
        words = "; ".join(f"{part.key}: {words}" for part, (words, _, _) in pairs)
        kind, count = "number", max(count for _, _, count in described)
    return {"words": words, "kind": kind, "drawn": min(count, MAX_LINES), "left_out": max(count - MAX_LINES, 0)}


def key_of_part(part: Part) -> tuple[str, str, int]:
    """For the panel of a part of an action: its text, the meaning of its colours, and the number of colours."""
    policy = part.policy
    if "mean" in policy:
        words = "each dimension's mean and the area ±σ around it; points are the actions taken"
        return words, "dimension", policy["mean"].shape[1]
    if "median" in policy:
        words = "each dimension's median and the area of ±σ before tanh; points are the actions taken"
        return words, "dimension", policy["median"].shape[1]
    if "probability" in policy:
        return "probabilities of the actions; points mark the one taken", "action", policy["probability"].shape[1]
    return "the joint probability of all choices in the action taken", "", 0


def panels_of(credit: EpisodeCredit) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """The panels below the heat strip, each with its title, traces and axis settings."""
    panels = []
    if credit.td_error is not None and credit.value is not None:
        colours = np.where(credit.td_error < 0, "@down", "@up").tolist()
        panels.append(("TD error δ<br>(reward)", [bars(credit.td_error, colours)], {"zeroline": True}))
        panels.append(("V(s)<br>(reward)", [line(credit.value, "V(s)", "@0")], {}))
    panels.append(("reward", [bars(credit.reward, "@ink/0.6")], {"zeroline": True}))
    panels += map(policy_panel, credit.parts[:MAX_PARTS])
    if credit.mask is not None:
        panels.append(mask_panel(credit))
    return panels


def mask_panel(credit: EpisodeCredit) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """The choices that were forbidden at each step and, if each action is a single choice, the actions taken."""
    assert credit.mask is not None
    shown = credit.mask[:, :MAX_CHOICES].T
    strip = {
        "type": "heatmap",
        "z": typed(shown.astype(np.float32)),
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "@down"], [1, "@mid"]],
        "showscale": False,
        "ygap": 1,
        "hovertemplate": "choice %{y}, t = %{x}, allowed: %{z:d}<extra></extra>",
    }
    traces = [strip]
    if credit.action.ndim == 1:
        taken = np.flatnonzero(credit.action < len(shown))
        traces.append(marks(taken, credit.action[taken], "taken", 0) | {"marker": {"color": "@ink", "size": 4}})
    return "choice", traces, {"range": [len(shown) - 0.5, -0.5], "dtick": max(1, len(shown) // 4)}


def memory_part(figures: Figures, credit: EpisodeCredit, title: str) -> dict[str, Any]:
    """What the memory kept: the influence of each observation on later decisions, and how far back it reaches."""
    assert credit.influence is not None and credit.influence_steps is not None
    size, decisions = credit.influence.astype(np.float64), credit.influence_steps
    steps = np.arange(size.shape[1])
    largest = size.max()
    with np.errstate(divide="ignore"):
        shares = np.log10(size / largest) if largest > 0 else np.full(size.shape, FAINTEST)
    shares = np.where(steps <= decisions[:, None], np.maximum(shares, FAINTEST), np.nan)
    trace = {
        "type": "heatmap",
        "x": typed(steps),
        "y": typed(decisions),
        "z": typed(shares),
        "zmin": FAINTEST,
        "zmax": 0,
        "colorscale": [[0, "@mid"], [1, "@up"]],
        "hoverongaps": False,
        "hovertemplate": "observation at k = %{x}, decision at t = %{y}: 10^%{z:.2f} of the largest<extra></extra>",
        "colorbar": {
            "title": {"text": "influence<br>relative to<br>the largest"},
            "tickvals": list(range(int(FAINTEST), 1)),
            "ticktext": [f"{10.0**k:g}" for k in range(int(FAINTEST), 1)],
            "thickness": 12,
        },
    }
    layout = {
        "xaxis": axis("step k of the observation"),
        "yaxis": axis("step t of the decision", autorange="reversed"),
        "hovermode": "closest",
    }
    figure = figures.add([trace], layout, height=MEMORY_HEIGHT, label=f"What the memory kept in an episode of {title}")
    back = (size * (decisions[:, None] - steps)).sum() / max(size.sum(), 1e-30)
    return {
        "figure": figure,
        "back": f"{back:.1f}",
        "first": size.shape[1],
        "is_part": size.shape[1] < credit.num_steps,
    }


def policy_panel(part: Part) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """The probabilities of the actions with the taken one marked, or the middle of the policy with an area of one σ
    around it."""
    name, policy, action = f"{part.key}<br>" if part.key else "", part.policy, part.action
    if "mean" in policy or "median" in policy:
        middle, low, high = bands_of(policy)
        word = "mean" if "mean" in policy else "median"
        traces = []
        for k in range(min(middle.shape[1], MAX_LINES)):
            one = f"dimension {k}"
            traces += [area(low[:, k], high[:, k], k), line(middle[:, k], f"{word}, {one}", f"@{k}")]
            traces.append(marks(np.arange(len(action)), action[:, k], f"action, {one}", k))
        return f"{name or 'action: '}{word} ± σ", traces, {}
    if "probability" in policy:
        probability = np.asarray(policy["probability"])
        # With two actions, the probability of one is enough.
        drawn = [1] if probability.shape[1] == 2 else list(range(min(probability.shape[1], MAX_LINES)))
        traces = [line(probability[:, a], f"π({a}|s)", f"@{a}") for a in drawn]
        for a in range(min(probability.shape[1], MAX_LINES)):
            taken = np.flatnonzero(action == a)
            traces.append(marks(taken, probability[taken, a if a in drawn else drawn[0]], f"took {a}", a))
        return f"{name}{'π(1|s)' if drawn == [1] else 'π(a|s)'}", traces, {"range": [-0.08, 1.08]}
    chosen = chosen_probability(part)
    return f"{name}π(action)", [line(chosen, "probability of the action taken", "@0")], {}


def bands_of(policy: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The middle of a continuous policy, and the lower and upper ends of the area around it, each [T, K]."""
    if "median" in policy:
        return policy["median"], policy["low"], policy["high"]
    return policy["mean"], policy["mean"] - policy["std"], policy["mean"] + policy["std"]


def chosen_probability(part: Part) -> np.ndarray:
    """The probability [T] of an action with several choices, i.e. the product of their probabilities."""
    if "probability of 1" in part.policy:
        one = np.asarray(part.policy["probability of 1"])
        return np.where(part.action == 1, one, 1 - one).prod(axis=1)
    heads = list(part.policy.values())
    picked = [np.take_along_axis(p, part.action[:, [k]], axis=1)[:, 0] for k, p in enumerate(heads)]
    return np.prod(picked, axis=0)


def credit_figure(figures: Figures, credit: EpisodeCredit, title: str) -> Html:
    """The heat strip and the panels below it, on a common axis of steps."""
    panels = panels_of(credit)
    strip = ROW_HEIGHT * len(credit.weights)
    inner = strip + len(panels) * (PANEL_HEIGHT + GAP)
    traces = [heat_strip(credit)]
    layout: dict[str, Any] = {
        "xaxis": axis("step t of the episode", anchor=f"y{len(panels) + 1}", range=[-0.5, credit.num_steps - 0.5]),
        "yaxis": {"domain": [1 - strip / inner, 1], "autorange": "reversed", "fixedrange": True, "ticks": ""},
        "shapes": [{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "@ink"}}],
        "hovermode": "closest",
        "bargap": 0,
    }
    top = inner - strip
    for number, (name, drawn, settings) in enumerate(panels, 2):
        low, high = (top - GAP - PANEL_HEIGHT) / inner, (top - GAP) / inner
        layout[f"yaxis{number}"] = {**axis(name), "domain": [max(low, 0), high], "fixedrange": True, **settings}
        traces += [{**trace, "yaxis": f"y{number}"} for trace in drawn]
        top -= GAP + PANEL_HEIGHT
    return figures.add(traces, layout, height=inner + MARGINS, label=f"Credit in an episode of {title}")


def heat_strip(credit: EpisodeCredit) -> dict[str, Any]:
    """Ψ_t divided by the estimator's largest |Ψ|. It is not centred, so that TotalReturn's equal weights are
    visible."""
    weights = np.stack(list(credit.weights.values()))
    largest = np.abs(weights).max(axis=1, keepdims=True)
    scaled = weights / np.where(largest > 0, largest, 1)
    return {
        "type": "heatmap",
        "z": typed(scaled),
        "y": [f"<b>{name}</b>" if name == credit.own else name for name in credit.weights],
        "customdata": typed(weights),
        "hovertemplate": "%{y}, t = %{x}: Ψ = %{customdata:.4~g}<extra></extra>",
        "zmin": -1,
        "zmax": 1,
        "colorscale": SCALE,
        "showscale": False,
        "ygap": 3,
    }


def bars(y: np.ndarray, colour: str | list[str]) -> dict[str, Any]:
    """A bar for each step."""
    marker = {"color": colour, "line": {"width": 0}}
    return {"type": "bar", "y": typed(y), "marker": marker, "showlegend": False, "hovertemplate": "%{y:.4~g}"}


def line(y: np.ndarray, name: str, colour: str) -> dict[str, Any]:
    """A line over all steps."""
    look = {"mode": "lines", "line": {"color": colour, "width": 1.5}, "showlegend": False}
    return {"type": "scatter", "name": name, "y": typed(y), **look, "hovertemplate": "%{y:.4~g}"}


def marks(steps: np.ndarray, y: np.ndarray, name: str, k: int) -> dict[str, Any]:
    """The actions taken, as points."""
    look = {"mode": "markers", "marker": {"color": f"@{k}", "size": 5}, "showlegend": False}
    return {"type": "scatter", "name": name, "x": typed(steps), "y": typed(y), **look, "hovertemplate": "%{y:.4~g}"}


def area(low: np.ndarray, high: np.ndarray, k: int) -> dict[str, Any]:
    """The area between two lines."""
    steps = np.arange(len(low))
    x, y = np.concatenate([steps, steps[::-1]]), np.concatenate([high, low[::-1]])
    look = {"fill": "toself", "fillcolor": f"@{k}/0.15", "mode": "lines", "line": {"width": 0}}
    return {"type": "scatter", "x": typed(x), "y": typed(y), **look, "hoverinfo": "skip", "showlegend": False}


def view_data(figure: str, credit: EpisodeCredit, picture_bytes: int) -> dict[str, Any]:
    """The data that the slider shows at each step."""
    columns = {"reward r": credit.reward}
    if credit.value is not None and credit.td_error is not None:
        columns |= {"V(s)": credit.value, "TD error δ": credit.td_error}
    return {
        "figure": figure,
        "columns": {name: typed(x) for name, x in columns.items()},
        "weights": {name: typed(x) for name, x in credit.weights.items()},
        "spread": {name: round(credit.spread(name), 1) for name in credit.weights},
        "most": {name: credit.most_blamed(name) if credit.singles_out(name) else None for name in credit.weights},
        "own": credit.own,
        "actions": [action_text(credit, t) for t in range(credit.num_steps)],
        "films": films_of(credit, picture_bytes),
    }


def films_of(credit: EpisodeCredit, picture_bytes: int) -> list[dict[str, Any]]:
    """The series of pictures through which the slider moves: those that the environment draws, and the images that the
    agent sees."""
    found = [("drawn by the environment", credit.picture_steps, credit.pictures)] if credit.pictures else []
    for key, images in credit.images.items():
        found.append((f"seen by the agent: {key}" if key else "seen by the agent", credit.image_steps, images))
    films = []
    for caption, steps, pictures in found:
        kept = evenly(pictures, picture_bytes // len(found))
        encoded = [base64.b64encode(pictures[k]).decode() for k in kept]
        films.append({"caption": caption, "steps": [int(steps[k]) for k in kept], "pictures": encoded})
    return films


def evenly(pictures: Sequence[bytes], limit: int) -> range:
    """Select every k-th picture, with the smallest k that keeps their total size within the limit."""
    stride = 1
    while sum(map(len, pictures[::stride])) > limit and stride < len(pictures):
        stride += 1
    return range(0, len(pictures), stride)


def action_text(credit: EpisodeCredit, t: int) -> str:
    """Text that gives the choice for each part of the action, its probability, and the number of allowed choices."""
    texts = [(part.key, part_text(part, t)) for part in credit.parts]
    words = "; ".join(f"{key}: {text}" if key else text for key, text in texts)
    return words if credit.mask is None else f"{words}; {int(credit.mask[t].sum())} of {credit.mask.shape[1]} allowed"


def part_text(part: Part, t: int) -> str:
    """Text that gives the choice for a part of an action, and its probability."""
    action, policy = rounded(part.action[t]), part.policy
    if "mean" in policy:
        return f"{action}, from mean {rounded(policy['mean'][t])} with σ {rounded(policy['std'][t])}"
    if "median" in policy:
        low, high = rounded(policy["low"][t]), rounded(policy["high"][t])
        return f"{action}, from median {rounded(policy['median'][t])}, one σ from {low} to {high}"
    if "probability" in policy:
        return f"{action}, with π = {policy['probability'][t][int(part.action[t])]:.3f}"
    return f"{action}, with π = {chosen_probability(part)[t]:.3f}"


def rounded(x: np.ndarray | np.generic) -> str:
    """Format a number or a vector with at most three decimals."""
    return json.dumps(np.round(np.asarray(x, np.float64), 3).tolist()) if x.dtype.kind == "f" else str(x.tolist())
