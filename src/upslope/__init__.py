"""upslope: policy gradients from REINFORCE to PPO.

`upslope.train("CartPole-v1", seeds=5)` trains an agent, and `upslope.load(run.path)` loads its policy. Names are
imported on first use, which keeps `import upslope` fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.analysis.compare import compare as compare
    from upslope.analysis.comparison import Comparison as Comparison
    from upslope.analysis.judge import judge as judge
    from upslope.analysis.judgement import Judgement as Judgement
    from upslope.api import Run as Run
    from upslope.api import resume as resume
    from upslope.api import train as train
    from upslope.config.config import Config as Config
    from upslope.core.estimators import GAE as GAE
    from upslope.core.estimators import Baseline as Baseline
    from upslope.core.estimators import Estimator as Estimator
    from upslope.core.estimators import GroupMean as GroupMean
    from upslope.core.estimators import LeaveOneOut as LeaveOneOut
    from upslope.core.estimators import NStep as NStep
    from upslope.core.estimators import RewardToGo as RewardToGo
    from upslope.core.estimators import TotalReturn as TotalReturn
    from upslope.core.estimators import UnitWeight as UnitWeight
    from upslope.core.estimators import VTrace as VTrace
    from upslope.core.objectives import SPO as SPO
    from upslope.core.objectives import Clip as Clip
    from upslope.core.objectives import DualClip as DualClip
    from upslope.core.objectives import ImportanceSampled as ImportanceSampled
    from upslope.core.objectives import KLPenalty as KLPenalty
    from upslope.core.objectives import NaturalGradient as NaturalGradient
    from upslope.core.objectives import Objective as Objective
    from upslope.core.objectives import PolicyGradient as PolicyGradient
    from upslope.core.objectives import Sample as Sample
    from upslope.core.objectives import TrustRegion as TrustRegion
    from upslope.core.types import Credit as Credit
    from upslope.core.types import Rollout as Rollout
    from upslope.core.types import Transition as Transition
    from upslope.core.types import Values as Values
    from upslope.diagnosis.check import Checked as Checked
    from upslope.diagnosis.check import check as check
    from upslope.diagnosis.doctor import Diagnosis as Diagnosis
    from upslope.diagnosis.doctor import diagnose as diagnose
    from upslope.diagnosis.probe import Probed as Probed
    from upslope.diagnosis.probe import probe as probe
    from upslope.engines.base import Placement as Placement
    from upslope.environments.base import CompiledEnvironment as CompiledEnvironment
    from upslope.environments.registry import make as make
    from upslope.errors import UpslopeError as UpslopeError
    from upslope.lab.ladder import Ladder as Ladder
    from upslope.lab.ladder import ladder as ladder
    from upslope.lab.sweep.sweep import Sweep as Sweep
    from upslope.lab.sweep.sweep import sweep as sweep
    from upslope.learning.bonuses.bonus import Bonus as Bonus
    from upslope.learning.bonuses.count import Count as Count
    from upslope.learning.bonuses.icm import ICM as ICM
    from upslope.learning.bonuses.noveld import NovelD as NovelD
    from upslope.learning.bonuses.rnd import RND as RND
    from upslope.models.heads import head_of as head_of
    from upslope.models.model import Model as Model
    from upslope.models.model import Outputs as Outputs
    from upslope.report.print_figures import figure as figure
    from upslope.report.print_tables import table as table
    from upslope.runs.bundles import bundle as bundle
    from upslope.runs.evaluation import Evaluation as Evaluation
    from upslope.runs.evaluation import evaluate as evaluate
    from upslope.runs.evaluation import record as record
    from upslope.runs.export.writing import export as export
    from upslope.runs.following import Following as Following
    from upslope.runs.policy import Policy as Policy
    from upslope.runs.policy import load as load
    from upslope.runs.tracking.sending import track as track
    from upslope.runs.tracking.tracker import Tracker as Tracker

PUBLIC_NAMES = {
    "api": ("train", "resume", "Run"),
    "runs.policy": ("load", "Policy"),
    "runs.following": ("Following",),
    "runs.evaluation": ("evaluate", "record", "Evaluation"),
    "runs.export.writing": ("export",),
    "runs.tracking.sending": ("track",),
    "runs.tracking.tracker": ("Tracker",),
    "analysis.compare": ("compare",),
    "analysis.judge": ("judge",),
    "analysis.judgement": ("Judgement",),
    "analysis.comparison": ("Comparison",),
    "report.print_figures": ("figure",),
    "report.print_tables": ("table",),
    "runs.bundles": ("bundle",),
    "lab.ladder": ("ladder", "Ladder"),
    "lab.sweep.sweep": ("sweep", "Sweep"),
    "diagnosis.check": ("check", "Checked"),
    "diagnosis.doctor": ("diagnose", "Diagnosis"),
    "diagnosis.probe": ("probe", "Probed"),
    "engines.base": ("Placement",),
    "config.config": ("Config",),
    "core.estimators": (
        *("Estimator", "TotalReturn", "RewardToGo", "Baseline", "NStep", "GAE"),
        *("LeaveOneOut", "GroupMean", "VTrace", "UnitWeight"),
    ),
    "core.objectives": (
        *("Objective", "Sample", "PolicyGradient", "ImportanceSampled", "KLPenalty", "Clip"),
        *("DualClip", "SPO", "NaturalGradient", "TrustRegion"),
    ),
    "core.types": ("Transition", "Rollout", "Values", "Credit"),
    "environments.base": ("CompiledEnvironment",),
    "environments.registry": ("make",),
    "models.model": ("Model", "Outputs"),
    "learning.bonuses.bonus": ("Bonus",),
    "learning.bonuses.count": ("Count",),
    "learning.bonuses.rnd": ("RND",),
    "learning.bonuses.noveld": ("NovelD",),
    "learning.bonuses.icm": ("ICM",),
    "models.heads": ("head_of",),
    "errors": ("UpslopeError",),
}
"""Module → the public names that it defines."""
MODULE_OF = {name: module for module, names in PUBLIC_NAMES.items() for name in names}
__all__ = sorted(MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll] - the names are found by `__getattr__`


def __getattr__(name: str) -> Any:
    if name in MODULE_OF:
        return getattr(import_module(f"upslope.{MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'upslope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
