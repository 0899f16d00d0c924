"""Environments of other libraries are found by prefix and imported only when needed. If a library is missing, the error
says how to install it.

The tests in tests/weekly use the real libraries; here, a module of a few lines stands in for gymnax.
"""

import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from upslope.cli.list_tables import list_tables
from upslope.config.config import configure
from upslope.config.trust import requested
from upslope.environments import registry
from upslope.environments.libraries import LIBRARIES
from upslope.environments.registry import make
from upslope.environments.sources.wrapping import box, is_board
from upslope.errors import UpslopeError


@dataclass(frozen=True)
class Params:
    max_steps_in_episode: int = 3
    pay: float = 1.0

    def replace(self, **changes: Any) -> "Params":
        return replace(self, **changes)


class Counter:
    """An environment that counts to `end` on a board of zeros and ones and then terminates. The reward is the
    action."""

    def __init__(self, end: int = 5):
        self.end = end

    def is_truncated(self, state: Any, params: Params) -> Any:
        return state >= params.max_steps_in_episode

    def observation_space(self, params: Params) -> Any:
        return SimpleNamespace(low=0, high=1, shape=(4, 5, 2), dtype=jnp.float32)

    def action_space(self, params: Params) -> Any:
        return SimpleNamespace(n=2)

    def reset_env(self, key: Any, params: Params) -> Any:
        return jnp.zeros((4, 5, 2)), 0

    def step_env(self, key: Any, state: Any, action: Any, params: Params) -> Any:
        state = state + 1
        return jnp.ones((4, 5, 2)), state, action * params.pay, state >= self.end, {}


@pytest.fixture
def fake_gymnax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a fake module `gymnax` with one environment."""

    def made(name: str, **arguments: Any) -> Any:
        return Counter(**arguments), Params()

    modules: dict[str, Any] = {
        "gymnax": {"make": made, "environments": SimpleNamespace(environment=SimpleNamespace(Environment=Counter))},
        "gymnax.registration": {"registered_envs": ["Counter-v0"]},
    }
    for name, parts in modules.items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)


def test_a_librarys_environment_is_one_of_ours(fake_gymnax: None):
    world: Any = make("gymnax:Counter-v0", {"end": 2, "max_steps_in_episode": 9, "pay": 2})
    assert world.observation_space == spaces.Box(0, 1, (4, 5, 2), np.uint8)
    assert (world.action_space, world.max_episode_steps) == (spaces.Discrete(2), 9)
    state, observation = world.reset(jax.random.key(0))
    assert observation.dtype == jnp.uint8
    for ended in (False, True):
        state, transition = world.step(jax.random.key(1), state, jnp.int32(1))
        assert (float(transition.reward), bool(transition.terminated)) == (2.0, ended)
        assert not transition.truncated and transition.observation.dtype == jnp.uint8


@pytest.mark.parametrize("library", LIBRARIES, ids=[library.prefix for library in LIBRARIES])
def test_a_missing_library_is_refused_with_what_installs_it(library: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UpslopeError) as refused:
        make(f"{library.prefix}:{library.example}")
    assert library.package in str(refused.value) and f'pip install "upslope[{library.prefix}]"' in str(refused.value)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("gymnax:Conter-v0", {}, "Did you mean Counter-v0?"),
        ("gymnax:Wholly-Else", {}, "It has Counter-v0."),
        ("gymnax:Counter-v0", {"lenght": 3}, "lenght"),
    ],
)
def test_what_a_library_does_not_have_is_refused(fake_gymnax: None, name: str, arguments: dict, said: str):
    with pytest.raises(UpslopeError, match=said.replace("?", r"\?")):
        make(name, arguments)


def test_an_older_gymnax_is_refused(fake_gymnax: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(Counter, "is_truncated")
    with pytest.raises(UpslopeError, match="merges termination"):
        make("gymnax:Counter-v0")


def test_every_library_has_a_source_and_a_line_in_the_list():
    assert {f"{library.prefix}:" for library in LIBRARIES} < {source.prefix for source in registry.SOURCES}
    shown = [str(cell) for table in list_tables() for column in table.columns for cell in column.cells]
    assert all(f"{library.prefix}:{library.example}" in shown and library.install in shown for library in LIBRARIES)


def test_no_library_is_imported_until_it_is_asked_for():
    packages = [library.package for library in LIBRARIES]
    code = f"import sys, upslope.environments.registry; print([p for p in {packages} if p in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environment", "arguments", "is_code"),
    [
        ("gymnax:Breakout-MinAtar", {"max_steps_in_episode": 100}, False),
        ("brax:ant", {"backend": "spring"}, True),
        ("gymnax:my_module:Mine", {}, True),
        ("jax:gymnax:Mine", {}, True),
        ("other:Breakout-MinAtar", {}, True),
    ],
)
def test_a_librarys_ids_are_trusted_and_text_is_not(environment: str, arguments: dict, is_code: bool):
    config = configure(environment, is_continuous=False, use_preset=False, env_kwargs=arguments)
    assert bool(requested(config)) == is_code


def test_bounds_that_fill_the_range_are_none_and_small_grids_are_boards():
    most = np.finfo(np.float32).max
    assert box(-most, [most, 1.0], (2,)) == spaces.Box(np.float32([-np.inf] * 2), np.float32([np.inf, 1]))
    assert is_board((5, 5)) and is_board((10, 10, 4)) and not is_board((20, 20)) and not is_board((2, 9))
