"""Measure PureJaxRL's PPO, feed-forward or recurrent, on gymnax; print a JSON line.

    python measure_purejaxrl.py CLONE ppo|ppo_rnn ENVIRONMENT STEPS PROCESSES '{"NUM_ENVS": 64, …}'

CLONE is a clone of github.com/luchris429/purejaxrl (31756b1). It is not a package, so its file is imported. The file is
unchanged except for two lines that current Flax rejects, because a GRU's width must now be given when it is created.
Brax and Navix, which its wrappers import for environments that are not measured here, are replaced by empty modules.
The settings replace those at the end of the file. WIDTH is the width of ppo's hidden layers, which the file fixes at
64. Each process trains one seed, since a program uses only one core.
"""

import json
import sys
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from measure import at_once, peak_memory

DEFAULTS: dict[str, Any] = {
    "LR": 2.5e-4, "NUM_ENVS": 4, "NUM_STEPS": 128, "UPDATE_EPOCHS": 4, "NUM_MINIBATCHES": 4, "GAMMA": 0.99,
    "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.01, "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh",
    "ANNEAL_LR": True, "DEBUG": False,
}  # fmt: skip
NEWER_FLAX = {
    "nn.GRUCell()(rnn_state, ins)": "nn.GRUCell(ins.shape[1])(rnn_state, ins)",
    """nn.GRUCell.initialize_carry(
            jax.random.PRNGKey(0), (batch_size,), hidden_size
        )""": "jnp.zeros((batch_size, hidden_size))",
}


UNUSED = {
    "brax": ("envs",),
    "brax.envs.wrappers.training": ("EpisodeWrapper", "AutoResetWrapper"),
    "navix": (),
}
"""Unused module that PureJaxRL's wrappers import → the names that they import from it."""


def replace_unused() -> None:
    """Install empty modules in place of libraries that PureJaxRL imports but that are not needed here."""
    for name, wanted in UNUSED.items():
        module = ModuleType(name)
        for attribute in wanted:
            setattr(module, attribute, object)
        sys.modules[name] = module


def imported(clone: Path, name: str, width: int = 64) -> ModuleType:
    """Import the module with this name from the clone, with hidden layers of this width."""
    replace_unused()
    folder = clone / "purejaxrl"
    sys.path.insert(0, str(folder))
    source = (folder / f"{name}.py").read_text("utf-8")
    for old, new in NEWER_FLAX.items():
        source = source.replace(old, new)
    if name == "ppo":
        source = source.replace("64, kernel_init", f"{width}, kernel_init")
    module = ModuleType(name)
    exec(compile(source, str(folder / f"{name}.py"), "exec"), module.__dict__)
    return module


def one(clone: Path, name: str, environment: str, steps: int, settings: dict[str, Any]) -> dict[str, float]:
    """Train twice in this process. The first time includes compilation, and the second time measures the rate."""
    import jax

    config = DEFAULTS | {"ENV_NAME": environment, "TOTAL_TIMESTEPS": steps} | settings
    width = config.pop("WIDTH", 64)
    train = jax.jit(imported(clone, name, width).make_train(config))
    key = jax.random.PRNGKey(0)
    started = perf_counter()
    jax.block_until_ready(train(key))
    first = perf_counter() - started
    started = perf_counter()
    jax.block_until_ready(train(key))
    seconds = perf_counter() - started
    return {"steps_per_second": steps / seconds, "first_update": first - seconds}


if __name__ == "__main__":
    clone, name, environment, steps, processes, settings = sys.argv[1:]
    if int(processes) == 1:
        answer = one(Path(clone), name, environment, int(float(steps)), json.loads(settings))
    else:
        answers = at_once(int(processes), __file__, clone, name, environment, steps, "1", settings)
        answer = {
            "steps_per_second": sum(a["steps_per_second"] for a in answers),
            "first_update": max(a["first_update"] for a in answers),
        }
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
