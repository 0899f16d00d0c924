"""Group runs that differ only in their seeds, and collect the warnings that a reader needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from upslope.analysis.lineage import lineage_warnings
from upslope.analysis.records import Record
from upslope.analysis.statistics import thinness
from upslope.config.config import Config
from upslope.core.messages import counted, shell
from upslope.runs.directory import ENGINES

NOT_SETTINGS = ("environment", "env_kwargs", "max_episode_steps", "algorithm", "seed", "seeds", "preset", "log_info")
"""Config fields that do not distinguish groups of the same algorithm and environment."""
MORE_SEEDS = "Train more, e.g. --seeds 10"
OVERSHOOT = 0.05
"""Fraction by which a group may exceed its budget without a warning."""
DECIDING_PACKAGES = ("upslope", "jax", "gymnasium")
"""Packages whose versions should agree: a comparison across versions gives a warning."""


@dataclass(frozen=True)
class Member:
    """The runs of one group, its label, and the settings in which it differs from the groups it is compared with."""

    records: tuple[Record, ...]
    label: str
    differs: dict[str, Any]

    @property
    def environment(self) -> str:
        return environment_of(self.records[0].config)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(seed for _, seed in self.seeds_of_records())

    def seeds_of_records(self) -> list[tuple[Record, int]]:
        """Each seed, paired with its run."""
        return [(record, seed) for record in self.records for seed in record.seeds]


def group(records: Sequence[Record]) -> tuple[list[Member], list[str]]:
    """Pool runs that differ only in their seeds, and give each group a distinct name.

    A seed counts once, however often it was trained: repeated seeds are left out, with a warning.
    """
    pools: dict[str, list[Record]] = {}
    for record in records:
        key = repr((environment_of(record.config), record.config.algorithm, sorted(settings_of(record).items())))
        pools.setdefault(key, []).append(record)
    members, warnings = [], []
    for pool in pools.values():
        rivals = [p for p in pools.values() if environment_of(p[0].config) == environment_of(pool[0].config)]
        same = [p for p in rivals if p[0].config.algorithm == pool[0].config.algorithm]
        label = " ".join([pool[0].config.algorithm, *in_words(differing(pool, same), same)])
        kept, repeated = without_repeats(pool)
        members.append(Member(tuple(kept), label, differing(pool, rivals)))
        warnings += repeated
    return members, warnings


def without_repeats(pool: list[Record]) -> tuple[list[Record], list[str]]:
    """Keep each seed once: from the run that got furthest. In a tie, prefer an evaluated run, then the run given
    first."""
    chosen: dict[int, Record] = {}
    for record in sorted(pool, key=lambda r: (-r.reached, not len(r.evaluations))):
        for seed in record.seeds:
            chosen.setdefault(seed, record)
    kept, warnings = [], []
    for record in pool:
        own = tuple(seed for seed in record.seeds if chosen[seed] is record)
        if own:
            kept.append(record if own == record.seeds else record.with_seeds(own))
        repeats = [seed for seed in record.seeds if seed not in own]
        if repeats:
            others = ", ".join(dict.fromkeys(str(chosen[seed].path) for seed in repeats))
            named = f"seed{'s' if len(repeats) > 1 else ''} {', '.join(map(str, repeats))} of {record.path}"
            what = named if own else str(record.path)
            warnings.append(
                f"left out: {what}: {others} has the same seeds with the same settings, and they would count twice. "
                f"To add evidence, train other seeds: --seed {max(chosen) + 1}"
            )
    return kept, warnings


def environment_of(config: Config) -> str:
    """The environment's name with its arguments and step limit: returns are comparable only if all of these agree."""
    changes = dict(config.env_kwargs)
    if config.max_episode_steps is not None:
        changes["max_episode_steps"] = config.max_episode_steps
    return " ".join([config.environment, *(f"{name}={value}" for name, value in sorted(changes.items()))])


def settings_of(record: Record) -> dict[str, Any]:
    """The settings that distinguish a run from others with the same algorithm and environment, including all fields of
    a custom estimator or objective."""
    settings = {name: value for name, value in record.config.to_json().items() if name not in NOT_SETTINGS}
    for role in ("estimator", "objective"):
        if ":" in settings[role]:
            settings[role] = record.description["axes"][role]
    return {name.rstrip("_"): value for name, value in settings.items()}


def differing(pool: list[Record], rivals: list[list[Record]]) -> dict[str, Any]:
    """The settings that differ between the compared groups, with the values of this one."""
    own, others = settings_of(pool[0]), [settings_of(p[0]) for p in rivals]
    return {name: value for name, value in own.items() if any(other[name] != value for other in others)}


def in_words(settings: dict[str, Any], rivals: list[list[Record]]) -> list[str]:
    """Format settings as `name=value`. Numbers have four digits, unless another group has a different number with the
    same four digits."""
    others = [settings_of(pool[0]) for pool in rivals]

    def shown(name: str, value: Any) -> Any:
        if type(value) is not float:
            return value
        rounded = f"{value:.4g}"
        numbers = [other[name] for other in others if type(other[name]) is float]
        return value if any(x != value and f"{x:.4g}" == rounded for x in numbers) else rounded

    return [f"{name}={shown(name, value)}" for name, value in settings.items()]


def warnings_of(members: Sequence[Member]) -> list[str]:
    """Caveats that a reader must know before trusting the numbers; caveats about scoring are collected elsewhere."""
    records = [record for member in members for record in member.records]
    found = [unequal_budgets(e, [m for m in members if m.environment == e]) for e in environments_of(members)]
    found += [other_wrappers(e, [m for m in members if m.environment == e]) for e in environments_of(members)]
    found += [past_budget(e, [m for m in members if m.environment == e]) for e in environments_of(members)]
    found += [words for m in members for words in lineage_warnings(m.label, m.records)]
    found += [stopped_early(m) for m in members]
    found += [unfinished(record) for record in records]
    found += [mixed_versions(records, package) for package in (*DECIDING_PACKAGES, "machine")]
    found += [mixed_versions([r for r in records if engine in r.versions], engine) for engine in ENGINES]
    found += thin(members)
    return [warning for warning in found if warning]


def environments_of(members: Sequence[Member]) -> list[str]:
    """The distinct environments, in order of appearance."""
    return list(dict.fromkeys(member.environment for member in members))


def unequal_budgets(environment: str, members: list[Member]) -> str:
    """A warning if groups in one environment were trained for different numbers of steps."""
    budgets = {m.label: m.records[0].config.steps for m in members if m.records[0].config.data is None}
    if len(set(budgets.values())) < 2:
        return ""
    words = ", ".join(f"{label} {steps:,}" for label, steps in budgets.items())
    return (
        f"unequal budgets in {environment}, in steps per seed: {words}. Each is scored at its own end; "
        "the table of sample efficiency compares them at equal steps"
    )


def other_wrappers(environment: str, members: list[Member]) -> str:
    """A warning if groups in one environment were scored through different wrappers, which may change the reward."""
    wrapped: dict[tuple[str, ...], list[str]] = {}
    for member in members:
        wrapped.setdefault(tuple(member.records[0].config.wrappers), []).append(member.label)
    if len(wrapped) < 2:
        return ""
    words = "; ".join(f"{', '.join(wrappers) or 'none'}: {', '.join(labels)}" for wrappers, labels in wrapped.items())
    return (
        f"different wrappers in {environment}: {words}. Scores use the rewards as the wrappers return "
        "them, so they are "
        "comparable only if no wrapper changes the rewards or the length of an episode"
    )


def past_budget(environment: str, members: list[Member]) -> str:
    """A warning if groups trained well beyond their budget in order to complete a rollout or episode."""
    words = []
    for member in members:
        records = [r for r in member.records if r.config.data is None]
        most = max((float(np.fmax.reduce(r.steps, axis=None)) / r.config.steps for r in records), default=1.0)
        if most > 1 + OVERSHOOT:
            words.append(f"{member.label} by up to {most - 1:.0%}")
    if not words:
        return ""
    return (
        f"steps beyond the budget in {environment}, because the last rollout is completed: {', '.join(words)}. The "
        "table of sample efficiency does not count them"
    )


def unfinished(record: Record) -> str:
    """A warning if a run stopped before its budget was spent."""
    if record.is_finished:
        return ""
    done = f"{record.reached:,} of {record.config.steps:,} steps"
    return f"{record.path} is not finished: {done}. Continue it: {shell('upslope', 'resume', record.path)}"


def stopped_early(member: Member) -> str:
    """A warning if seeds stopped when they reached --stop-at-return, since that rule selects high returns."""
    steps = [r.stopped[seed] for r, seed in member.seeds_of_records() if seed in r.stopped]
    if not steps:
        return ""
    at = f"{steps[0]:,}" if len(set(steps)) == 1 else f"{min(steps):,} to {max(steps):,}"
    limit = member.records[0].config.stop_at_return
    return (
        f"{member.label}: {len(steps)} of {counted(len(member.seeds), 'seed')} stopped at a return of {limit:g}, after "
        f"{at} steps, and are scored by it from then on. The rule selected that return for being high: compare the "
        "steps that were needed, or evaluate the runs"
    )


def mixed_versions(records: list[Record], package: str) -> str:
    """A warning if runs were made with different versions of a package."""
    versions: dict[str, list[str]] = {}
    for record in records:
        versions.setdefault(str(record.versions.get(package, "unknown")), []).append(str(record.path))
    if len(versions) < 2:
        return ""
    words = "; ".join(f"{version}: {', '.join(paths)}" for version, paths in versions.items())
    return f"different {'machines' if package == 'machine' else f'versions of {package}'}: {words}"


def thin(members: Sequence[Member]) -> list[str]:
    """Warnings about groups with few seeds, one for each number of seeds."""
    names: dict[int, list[str]] = {}
    for member in members:
        names.setdefault(len(member.seeds), []).append(f"{member.label} on {member.environment}")
    return [
        f"{words}: {', '.join(which)}. {MORE_SEEDS}" for n, which in sorted(names.items()) if (words := thinness(n))
    ]
