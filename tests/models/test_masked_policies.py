"""Action masks in all their forms, and the policy under a mask compared with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from upslope.core.distributions import Bernoulli, Categorical, MultiCategorical
from upslope.models.heads import head_of
from upslope.models.model import allowed

SIZES = (3, 2)
SPACES = {
    "a choice": spaces.Discrete(4, start=2),
    "choices": spaces.MultiDiscrete(SIZES),
    "choices in a matrix": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "switches": spaces.MultiBinary((2, 2)),
}


def logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def renormalised(x, mask):
    """Compute a softmax over only the allowed actions in NumPy: p = e^x / Σ_allowed e^x, and 0 elsewhere."""
    weight = np.where(mask, np.exp(x.astype(np.float64)), 0.0)
    return weight / weight.sum(axis=-1, keepdims=True)


def xlogy(p, q):
    return np.where(p > 0, p * np.log(np.where(q > 0, q, 1.0)), 0.0)


def test_a_masked_choice_is_the_softmax_of_what_is_left():
    x, y = logits(5, 4), logits(5, 4, seed=1)
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]], bool)
    mine, other = Categorical(jnp.asarray(x)).masked(mask), Categorical(jnp.asarray(y)).masked(mask)
    p, q = renormalised(x, mask), renormalised(y, mask)
    for action in range(4):
        expected = np.where(mask[:, action], np.log(np.where(mask[:, action], p[:, action], 1)), -np.inf)
        np.testing.assert_allclose(mine.log_prob(jnp.full(5, action)), expected, rtol=1e-5)
    np.testing.assert_allclose(mine.entropy(), -xlogy(p, p).sum(-1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mine.kl(other), (xlogy(p, p) - xlogy(p, q)).sum(-1), rtol=1e-4, atol=1e-6)
    assert mine.entropy()[2] == 0 and mine.kl(other)[2] == 0, "a single remaining action is certain"
    np.testing.assert_array_equal(mine.mode(), p.argmax(-1))
    samples = jax.vmap(mine.sample)(jax.random.split(jax.random.key(0), 2000))
    assert mask[np.arange(5), np.asarray(samples)].all()
    here = Categorical(x).masked(mask)  # the same in NumPy, as on the host
    np.testing.assert_allclose(here.log_prob(p.argmax(-1)), mine.log_prob(p.argmax(-1)), rtol=1e-6)


def test_switches_are_bound_or_free():
    x, y = logits(1, 3), logits(1, 3, seed=1)
    mask = np.array([[1, 1, 0, 1, 1, 0]], bool)  # free, on, off
    mine, other = (Bernoulli(jnp.asarray(z)).masked(mask) for z in (x, y))
    on, its = (1 / (1 + np.exp(-z[0, 0].astype(np.float64))) for z in (x, y))
    np.testing.assert_allclose(mine.log_prob(jnp.array([[1, 1, 0]])), np.log(on), rtol=1e-5)
    assert mine.log_prob(jnp.array([[1, 0, 0]])) == -np.inf and mine.log_prob(jnp.array([[1, 1, 1]])) == -np.inf
    np.testing.assert_allclose(mine.entropy(), -(on * np.log(on) + (1 - on) * np.log(1 - on)), rtol=1e-5)
    expected = on * np.log(on / its) + (1 - on) * np.log((1 - on) / (1 - its))
    np.testing.assert_allclose(mine.kl(other), expected, rtol=1e-4)
    samples = np.asarray(jax.vmap(mine.sample)(jax.random.split(jax.random.key(0), 200)))
    assert (samples[:, 0, 1:] == [1, 0]).all() and 0 < samples[:, 0, 0].mean() < 1


def policies(kind):
    x = logits(4, 5)
    if kind == "choice":
        return Categorical, (x,), np.array([1, 1, 0, 1, 0], bool), np.array([0, 1, 3, 0])
    if kind == "choices":
        build = lambda a, b: MultiCategorical((Categorical(a), Categorical(b)))  # noqa: E731
        return build, (x[:, :3], x[:, 3:]), np.array([1, 0, 1, 0, 1], bool), np.array([[0, 1], [2, 1], [0, 1], [2, 1]])
    mask = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1, 1], bool)
    return Bernoulli, (x,), mask, np.array([[0, 1, 0, 1, 1], [1, 1, 0, 0, 1]] * 2)


@pytest.mark.parametrize("kind", ["choice", "choices", "switches"])
def test_gradients_are_finite_and_those_of_what_is_left(kind):
    build, parameters, mask, action = policies(kind)
    parameters = tuple(map(jnp.asarray, parameters))

    def total(*parameters):
        policy = build(*parameters).masked(jnp.broadcast_to(mask, (4, mask.size)))
        other = build(*(0.5 * x for x in parameters)).masked(jnp.broadcast_to(mask, (4, mask.size)))
        return jnp.sum(policy.log_prob(action) + policy.entropy() + other.kl(policy) + policy.kl(other))

    slopes = jax.grad(total, argnums=tuple(range(len(parameters))))(*parameters)
    step = 1e-2
    for k, slope in enumerate(slopes):
        assert np.isfinite(slope).all()
        for place in [(0, 0), (1, 1), (3, slope.shape[1] - 1)]:
            moved = [
                [x.at[place].add(sign * step) if i == k else x for i, x in enumerate(parameters)] for sign in (1, -1)
            ]
            numeric = (total(*moved[0]) - total(*moved[1])) / (2 * step)
            np.testing.assert_allclose(slope[place], numeric, atol=5e-3)


def test_a_mask_that_allows_all_changes_no_bit():
    for kind in ("choice", "choices", "switches"):
        build, parameters, mask, action = policies(kind)
        free, masked = build(*parameters), build(*parameters).masked(np.ones_like(mask))
        assert np.array_equal(free.log_prob(action), masked.log_prob(action))
    assert allowed(free, None) is free


FLAT = {
    "a choice": ([1, 0, 1, 1], np.array([1, 0, 1, 1], np.int8)),
    "choices": ([1, 0, 1, 1, 0], (np.array([1, 0, 1], np.int8), np.array([1, 0], np.int8))),
    "choices in a matrix": (
        [1, 0, 1, 1, 0, 1, 1, 1, 1, 0, 1],
        (
            (np.array([1, 0], np.int8), np.array([1, 1, 0], np.int8)),
            (np.array([1, 1, 1, 1], np.int8), np.array([0, 1], np.int8)),
        ),
    ),
    "switches": ([1, 1, 0, 1, 1, 0, 1, 1], np.array([[2, 1], [0, 2]], np.int8)),
}


@pytest.mark.parametrize("kind", SPACES)
def test_both_forms_of_a_mask_say_the_same(kind):
    """Gymnasium's own sampling under a mask allows the same actions as the flat form."""
    space, head = SPACES[kind], head_of(SPACES[kind])
    flat, gymnasiums = FLAT[kind]
    expected = np.asarray(flat, bool)
    for form in (flat, expected, np.asarray(flat, np.float32), gymnasiums):
        np.testing.assert_array_equal(head.flat_mask(form), expected)
    traced = jax.jit(head.flat_mask)(jax.tree.map(jnp.asarray, gymnasiums))
    np.testing.assert_array_equal(traced, expected)
    space.seed(0)
    start = getattr(space, "start", 0)
    for _ in range(50):
        action = np.asarray(space.sample(mask=gymnasiums) - start).reshape(head.sample_shape)
        assert head.permits(expected[None], action[None]).all()
    generator = np.random.default_rng(0)
    seen = np.stack([head.random(generator, expected) for _ in range(200)])
    assert head.permits(np.broadcast_to(expected, (200, expected.size)), seen).all()
    assert len(np.unique(seen, axis=0)) >= 2
    assert head.allows_some(expected) and not head.allows_some(np.zeros_like(expected))


@pytest.mark.parametrize(
    ("kind", "mask", "words"),
    [
        ("a choice", np.ones(3), r"shape \(3,\), but \(4,\)"),
        ("a choice", np.array([1, 2, 0, 1]), "numbers other than 0 and 1"),
        ("a choice", ["a"] * 4, "not numbers"),
        ("choices", (np.ones(3), np.ones(3)), r"\(3,\), \(3,\)"),
        ("choices", np.ones(4), r"\(5,\), or a tuple"),
        ("switches", np.array([[3, 1], [0, 2]]), "which fix a bit"),
        ("switches", np.ones((2, 2), bool), r"\(8,\), two for each"),
    ],
)
def test_a_mask_of_another_form_is_refused(kind, mask, words):
    with pytest.raises(ValueError, match=words):
        head_of(SPACES[kind]).flat_mask(mask)


def test_one_part_without_a_choice_is_no_action():
    head = head_of(SPACES["choices"])
    assert not head.allows_some(np.array([1, 1, 1, 0, 0], bool))
    assert head.allows_some(np.array([[0, 0, 1, 0, 1]], bool)).tolist() == [True]
    assert not head_of(spaces.MultiBinary(2)).allows_some(np.array([1, 1, 0, 0], bool))
    with pytest.raises(ValueError, match="cannot be forbidden"):
        head_of(spaces.Box(-1, 1, (2,))).flat_mask(np.ones(2))
