"""upslope: policy gradients from REINFORCE to PPO.

`upslope.train("CartPole-v1", seeds=5)` trains, `upslope.load(run.path)` gives the policy. Names are imported when they
are first used, so that `import upslope` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upslope.analysis.compare import compare as compare
    from upslope.analysis.comparison import Comparison as Comparison
    from upslope.analysis.doctor import Diagnosis as Diagnosis
    from upslope.analysis.doctor import diagnose as diagnose
    from upslope.api import Run as Run
    from upslope.api import resume as resume
    from upslope.api import train as train
    from upslope.checking import Checked as Checked
    from upslope.checking import check as check
    from upslope.config import Config as Config
    from upslope.environments.base import CompiledEnvironment as CompiledEnvironment
    from upslope.environments.make import make as make
    from upslope.errors import UpslopeError as UpslopeError
    from upslope.estimators import GAE as GAE
    from upslope.estimators import Baseline as Baseline
    from upslope.estimators import Estimator as Estimator
    from upslope.estimators import NStep as NStep
    from upslope.estimators import RewardToGo as RewardToGo
    from upslope.estimators import TotalReturn as TotalReturn
    from upslope.estimators import UnitWeight as UnitWeight
    from upslope.evaluation import Evaluation as Evaluation
    from upslope.evaluation import evaluate as evaluate
    from upslope.evaluation import record as record
    from upslope.objectives import Clip as Clip
    from upslope.objectives import ImportanceSampled as ImportanceSampled
    from upslope.objectives import KLPenalty as KLPenalty
    from upslope.objectives import Objective as Objective
    from upslope.objectives import PolicyGradient as PolicyGradient
    from upslope.objectives import Sample as Sample
    from upslope.policy import Policy as Policy
    from upslope.policy import load as load
    from upslope.probing import Probed as Probed
    from upslope.probing import probe as probe
    from upslope.race import Ladder as Ladder
    from upslope.race import ladder as ladder
    from upslope.types import Credit as Credit
    from upslope.types import Rollout as Rollout
    from upslope.types import Transition as Transition
    from upslope.types import Values as Values

ROOMS = {
    "analysis.doctor": ("Diagnosis", "diagnose"),
    "analysis.compare": ("compare",),
    "analysis.comparison": ("Comparison",),
    "api": ("Run", "resume", "train"),
    "checking": ("Checked", "check"),
    "config": ("Config",),
    "environments.base": ("CompiledEnvironment",),
    "environments.make": ("make",),
    "errors": ("UpslopeError",),
    "estimators": ("GAE", "Baseline", "Estimator", "NStep", "RewardToGo", "TotalReturn", "UnitWeight"),
    "evaluation": ("Evaluation", "evaluate", "record"),
    "objectives": ("Clip", "ImportanceSampled", "KLPenalty", "Objective", "PolicyGradient", "Sample"),
    "policy": ("Policy", "load"),
    "probing": ("Probed", "probe"),
    "race": ("Ladder", "ladder"),
    "types": ("Credit", "Rollout", "Transition", "Values"),
}
"""Where each public name lives."""
HOME = {name: room for room, names in ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in HOME:
        return getattr(import_module(f"upslope.{HOME[name]}"), name)
    raise AttributeError(f"module 'upslope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(HOME)
