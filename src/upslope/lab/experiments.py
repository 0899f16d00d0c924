"""All experiments: first those from the lecture, in its order, then those that go beyond it."""

from upslope.lab.advantages import advantages
from upslope.lab.credit import credit
from upslope.lab.exploration import counts, entropy
from upslope.lab.finding import Experiment
from upslope.lab.gradients import gradient, variance
from upslope.lab.groups import groups
from upslope.lab.reuse import reuse
from upslope.lab.sampling import expectation, importance
from upslope.lab.seeds import seeds
from upslope.lab.table1 import table1
from upslope.lab.television import television

EXPERIMENTS = (
    Experiment("expectation", expectation, {"repetitions": 64, "largest": 1024}),
    Experiment("gradient", gradient, {"repetitions": 32, "largest": 256}),
    Experiment("variance", variance, {"episodes": 4_000}),
    Experiment("advantages", advantages, {"episodes": 2_000}),
    Experiment("importance", importance, {"repetitions": 128, "largest": 512}),
    Experiment("reuse", reuse, {"seeds": 4, "epochs": (1, 48), "iterations": 8}),
    Experiment("table1", table1, {"seeds": 2, "steps": 8_192}),
    Experiment("credit", credit, {"seeds": 4, "others": (12,), "iterations": 60}),
    Experiment("seeds", seeds, {"pool": 32, "draws": 200, "iterations": 10}),
    Experiment("groups", groups, {"policies": 8}),
    Experiment("entropy", entropy, {"seeds": 6, "sizes": (6, 8, 10)}),
    Experiment("counts", counts, {"seeds": 4, "sizes": (8, 12, 16)}),
    Experiment("television", television, {"seeds": 2, "iterations": 60}),
)
