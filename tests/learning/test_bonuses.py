"""Bonuses agree with hand-computed counts, and with the same networks in NumPy, trained with numerical gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import quick_jit, rollout_of, same, task_of

from upslope.core.estimators import GAE, RewardToGo
from upslope.environments.deep_sea import DeepSea
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Bonus, Setting
from upslope.learning.bonuses.count import Count
from upslope.learning.bonuses.icm import ICM
from upslope.learning.bonuses.noveld import NovelD
from upslope.learning.bonuses.rnd import RND
from upslope.learning.fitting import Fitted
from upslope.learning.intrinsic import Intrinsic, joined_steps, paid_by
from upslope.learning.iteration import initialise, weigh
from upslope.learning.update import plain_update
from upslope.models.build import ModelSpec
from upslope.models.cells import cells_of
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

KEY = jax.random.key(5)
EPSILON = 1e-5  # Adam's constant, as in learning/optimisers.py


def setting_of(space, action_space=None, num_envs=2):
    action_space = action_space or spaces.Discrete(2)
    spec = ModelSpec(
        encoder_of(space, "world"), head_of(action_space, "world"), {"hidden_sizes": (4,), "activation": "tanh"}
    )
    return Setting(space, spec, num_envs)


def facts(observation, following, terminated=None, valid=None, action=None):
    """Return a rollout with these observations [T, N, …]."""
    shape = np.shape(observation)[:2]
    rollout = rollout_of(np.zeros(shape), terminated, valid=valid)
    action = rollout.action if action is None else jnp.asarray(action)
    return rollout._replace(
        observation=jnp.asarray(observation), next_observation=jnp.asarray(following), action=action
    )


# Two columns of four steps, with six states. In column 0, an episode ends after the second step.
NOW = np.array([[0, 0], [1, 2], [0, 3], [1, 4]], np.int32)
AFTER = np.array([[1, 2], [5, 3], [1, 4], [1, 2]], np.int32)
TERMINATED = np.array([[0, 0], [1, 0], [0, 0], [0, 0]], bool)
BEGINS = jnp.asarray(np.array([[1, 1], [0, 0], [1, 0], [0, 0]], bool))
# How often each successor has been visited so far, counted by hand in order of time and then column. The first state of
# an episode counts as a visit too.
LIFELONG = np.array([[1, 1], [1, 1], [2, 1], [3, 2]])
EPISODIC = np.array([[1, 1], [1, 1], [1, 1], [2, 2]])


@pytest.mark.parametrize(
    ("scope", "count"), [("lifelong", LIFELONG), ("episodic", EPISODIC), ("both", LIFELONG * EPISODIC)]
)
def test_counts_by_hand(scope, count):
    bonus, setting = Count(scope=scope), setting_of(spaces.Discrete(6))
    rollout = facts(NOW, AFTER, TERMINATED)
    call = quick_jit(bonus)
    paid, state = call(rollout, BEGINS, bonus.start(setting, KEY), KEY)
    np.testing.assert_allclose(paid, 1 / np.sqrt(count), rtol=1e-6)
    # The table contains every visit; for example, state 0 was the first state of three episodes.
    assert np.asarray(state.visits).tolist() == [3, 3, 2, 1, 1, 1]
    assert float(bonus.measured(state)["bonus/states_visited"]) == 6
    # The episodes continue in the next rollout, where column 0 visits state 1 and column 1 visits state 2, each for the
    # third time in its episode.
    last = facts(AFTER[3:], [[1, 2]])
    again, state = call(last, jnp.zeros((1, 2), bool), state, KEY)
    lifelong, episodic = np.array([4, 3]), np.array([3, 3])
    expected = {"lifelong": lifelong, "episodic": episodic, "both": lifelong * episodic}[scope]
    np.testing.assert_allclose(again[0], 1 / np.sqrt(expected), rtol=1e-6)


def test_padding_is_not_counted():
    bonus, setting = Count(scope="both"), setting_of(spaces.Discrete(6))
    valid = np.array([[1, 1], [1, 1], [0, 1], [0, 1]], bool)
    padded = facts(NOW, AFTER, valid=valid)
    _, state = quick_jit(bonus)(padded, BEGINS & jnp.asarray(valid), bonus.start(setting, KEY), KEY)
    assert np.asarray(state.visits).tolist() == [2, 1, 2, 1, 1, 1]


SPACES = {
    "choices": spaces.MultiDiscrete([3, 4], start=[1, 0]),
    "switches": spaces.MultiBinary((2, 2)),
    "both": spaces.Dict({"a": spaces.Discrete(3, start=2), "b": spaces.MultiBinary(2)}),
}


@pytest.mark.parametrize("name", SPACES)
def test_few_states_have_a_cell_each(name):
    space = SPACES[name]
    cells = cells_of(encoder_of(space, "world"), space, 1 << 10, 32, np.random.default_rng(0))
    space.seed(1)
    seen = {}
    for _ in range(300):
        drawn = space.sample()
        seen.setdefault(repr(drawn), set()).add(int(cells(jax.tree.map(jnp.asarray, drawn))))
    assert cells.are_exact and len(seen) == cells.count
    assert sorted(cell for found in seen.values() for cell in found) == list(range(cells.count))


def test_boards_share_a_cell_only_if_they_are_equal_and_real_numbers_if_they_are_near():
    space = spaces.Box(0, 10, (7, 7, 3), np.uint8)
    generator = np.random.default_rng(0)
    boards = generator.integers(0, 11, (40, 7, 7, 3)).astype(np.uint8)
    changed = boards.copy()
    changed[:, 3, 3, 0] = (changed[:, 3, 3, 0] + 1) % 11
    board = cells_of(encoder_of(space, "w"), space, 1 << 20, 32, generator)
    cells = quick_jit(lambda x: board(x))
    every = np.asarray(cells(jnp.asarray(np.concatenate([boards, changed]))))
    assert len(set(every.tolist())) == 80 and (np.asarray(cells(jnp.asarray(boards))) == every[:40]).all()
    car = spaces.Box(np.float32([-1.2, -0.07]), np.float32([0.6, 0.07]))
    place = cells_of(encoder_of(car, "w"), car, 1 << 16, 32, generator)
    near = quick_jit(lambda x: place(x))
    points = generator.uniform(car.low, car.high, (500, 2)).astype(np.float32)
    moved = points + np.float32([1e-4, 1e-5])
    assert np.mean(np.asarray(near(points)) == np.asarray(near(moved))) > 0.97
    # 32 lines through a square cut it into at most 1 + 32 + 32·31/2 = 529 regions.
    assert 100 < len(set(np.asarray(near(points)).tolist())) <= 529


def relu(x):
    return np.maximum(x, 0)


def perceptron(parameters, x):
    """Apply a network [W, b, W, b, …] in float64."""
    layers = [np.asarray(p, np.float64) for p in parameters]
    weights, biases = layers[::2], layers[1::2]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = relu(x @ weight + bias)
    return x @ weights[-1] + biases[-1]


def layers_of(network):
    return [p for pair in zip(network.weights, network.biases, strict=True) for p in pair]


def differences(loss, parameters, step=1e-6):
    """Compute the gradient of a loss by central differences, with one array per parameter."""
    found = []
    for k, p in enumerate(parameters):
        gradient = np.zeros(np.shape(p))
        for place in np.ndindex(*np.shape(p)):
            moved = []
            for sign in (1, -1):
                shifted = [np.array(x, np.float64) for x in parameters]
                shifted[k][place] += sign * step
                moved.append(loss(shifted))
            gradient[place] = (moved[0] - moved[1]) / (2 * step)
        found.append(gradient)
    return found


def first_step_of_adam(gradients, rate):
    """Return what Adam subtracts in its first step if the gradient's norm is clipped to 1: rate · g / (|g| + ε)."""
    norm = np.sqrt(sum((g**2).sum() for g in gradients))
    clipped = [g * min(1.0, 1.0 / norm) for g in gradients]
    return [rate * g / (np.abs(g) + EPSILON) for g in clipped]


def standardised(x, by=None):
    """Standardise rows by the mean and standard deviation of `by`, and clip them to ±5."""
    by = x if by is None else by
    return np.clip((x - by.mean(axis=0)) / np.sqrt(by.var(axis=0) + 1e-8), -5, 5)


@pytest.fixture(scope="module")
def numbers():
    """Draw observations [5, 2, 3], their successors, and actions."""
    generator = np.random.default_rng(2)
    now, after = generator.normal(size=(2, 5, 2, 3)).astype(np.float32)
    return now, after, generator.integers(0, 2, (5, 2)).astype(np.int32)


def assert_stepped(after, before, expected, rate):
    """Assert that the parameters moved by the expected step. The tolerance allows for gradients near 0, whose sign
    depends on rounding."""
    for new, old, step in zip(after, before, expected, strict=True):
        np.testing.assert_allclose(np.asarray(old) - np.asarray(new), step, atol=0.02 * rate)


def test_the_first_update_of_rnd(numbers):
    bonus = RND(features=2, width=3, share=1.0, epochs=1, minibatches=1, learning_rate=0.01)
    space = spaces.Box(-np.inf, np.inf, (3,))
    begun = bonus.start(setting_of(space), KEY)
    now, after, _ = numbers
    paid, state = quick_jit(bonus)(facts(now, after), BEGINS[:1] | np.zeros((5, 2), bool), begun, KEY)
    inputs = standardised(after.reshape(10, 3).astype(np.float64))
    target = perceptron(layers_of(begun.target.branch.outward), inputs)
    start = layers_of(begun.predictor.networks.branch.outward)

    def errors(parameters):
        return ((perceptron(parameters, inputs) - target) ** 2).mean(axis=1)

    np.testing.assert_allclose(np.asarray(paid).ravel(), errors(start), rtol=1e-4, atol=1e-6)
    expected = first_step_of_adam(differences(lambda p: errors(p).mean(), start), 0.01)
    assert_stepped(layers_of(state.predictor.networks.branch.outward), start, expected, 0.01)
    assert same(begun.target, state.target)


def test_the_first_update_of_icm(numbers):
    bonus = ICM(features=2, width=3, beta=0.3, epochs=1, minibatches=1, learning_rate=0.01)
    space = spaces.Box(-np.inf, np.inf, (3,))
    begun = bonus.start(setting_of(space), KEY)
    now, after, action = numbers
    paid, state = quick_jit(bonus)(facts(now, after, action=action), BEGINS[:1] | np.zeros((5, 2), bool), begun, KEY)
    seen, following = (standardised(x.reshape(10, 3).astype(np.float64), after.reshape(10, 3)) for x in (now, after))
    one_hot = np.eye(2)[action.ravel()]

    def parts_of(networks):
        return [*layers_of(networks.encode.branch.outward), *layers_of(networks.predict), *layers_of(networks.invert)]

    def terms(parameters):
        encode, predict, invert = parameters[:4], parameters[4:8], parameters[8:]
        phi, phi_after = perceptron(encode, seen), perceptron(encode, following)
        error = 0.5 * ((perceptron(predict, np.concatenate([phi, one_hot], 1)) - phi_after) ** 2).sum(axis=1)
        logits = perceptron(invert, np.concatenate([phi, phi_after], 1))
        log_prob = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return error, 0.3 * error - 0.7 * (log_prob * one_hot).sum(axis=1)

    start = parts_of(begun.fitted.networks)
    np.testing.assert_allclose(np.asarray(paid).ravel(), terms(start)[0], rtol=1e-4, atol=1e-6)
    expected = first_step_of_adam(differences(lambda p: terms(p)[1].mean(), start), 0.01)
    assert_stepped(parts_of(state.fitted.networks), start, expected, 0.01)


def test_noveld_by_hand():
    """The bonus is max(n(s') − α n(s), 0), paid only at the first visit in an episode."""
    bonus = NovelD(features=3, width=4, alpha=0.7)
    begun = bonus.start(setting_of(spaces.Discrete(6)), KEY)
    paid, _ = quick_jit(bonus)(facts(NOW, AFTER, TERMINATED), BEGINS, begun, KEY)
    one_hot = np.eye(6)
    inputs = standardised(one_hot, one_hot[AFTER.ravel()])
    networks = begun.distilled.predictor.networks, begun.distilled.target
    first, second = (perceptron(layers_of(x.branch.outward), inputs) for x in networks)
    novelty = np.sqrt(((first - second) ** 2).sum(axis=1))
    expected = np.where(EPISODIC == 1, np.maximum(novelty[AFTER] - 0.7 * novelty[NOW], 0), 0)
    assert (expected > 0).sum() > 1
    np.testing.assert_allclose(paid, expected, rtol=1e-3, atol=1e-5)


class Stated(Bonus):
    """A bonus that pays the index of the successor."""

    has_unit = True

    def start(self, setting, key):
        return ()

    def __call__(self, rollout, begins, state, key):
        return rollout.next_observation.astype(jnp.float32), state


V = np.array([0.5, -1.0, 2.0, 0.25, 3.0, -2.0, 1.0, 0.0, 0.0, 0.0])
"""The intrinsic critic's values for states 0 to 9."""


def weighed(is_episodic, gamma=0.5, estimator=None, reward=0.0, coefficient=2.0, bonus=None, has_gap=False):
    """Compute the credit of three steps in one column (0 → 1, end, 4 → 5 → 3) when a bonus is added to the reward.

    With `has_gap`, the end is followed by a step that a vector environment spends on its reset.
    """
    world = DeepSea(size=3)
    estimator = estimator or GAE(1.0)
    update = plain_update(needs_critic=estimator.needs_critic)
    intrinsic = Intrinsic(bonus or Stated(), coefficient, gamma, is_episodic)
    sizes = {"num_envs": 1, "rollout_steps": 3 + has_gap}
    task = task_of(world, update, {"hidden_sizes": ()}, estimator=estimator, intrinsic=intrinsic, **sizes)
    state = initialise(task, 0)
    if state.stream.critic is not None:
        layer = state.stream.critic.networks.branch.outward
        table = type(layer)((jnp.asarray(V, jnp.float32)[:, None],), layer.biases, layer.activation)
        branch = state.stream.critic.networks.branch
        reader = type(state.stream.critic.networks)(
            encoder=state.stream.critic.networks.encoder, networks=(), branch=type(branch)((), None, None, table)
        )
        state = state._replace(stream=state.stream._replace(critic=Fitted(reader, state.stream.critic.optimiser)))
    now, after = np.array([[0], [4], [5]], np.int32), np.array([[1], [5], [3]], np.int32)
    ended, valid = np.array([[1], [0], [0]], bool), np.ones((3, 1), bool)
    if has_gap:
        now, after = (np.insert(x, 1, state, axis=0) for x, state in ((now, 1), (after, 4)))
        ended, valid = (np.insert(x, 1, False, axis=0) for x in (ended, valid))
    rollout = facts(now, after, ended, valid)._replace(reward=jnp.full(valid.shape, reward))
    return quick_jit(partial(weigh, task))(state, rollout), rollout


def test_the_return_of_the_bonus_goes_on_after_the_end_of_an_episode():
    (state, scaled, credit, metrics), rollout = weighed(is_episodic=False, reward=1.0)
    # The rewards are the successors' indices, r = 1, 5, 3. After the end, the bonus return continues with state 4;
    # after the last step, it continues with V(3).
    third = 3 + 0.5 * V[3]
    second = 5 + 0.5 * third
    first = 1 + 0.5 * second
    np.testing.assert_allclose(np.asarray(state.stream.target)[:, 0], [first, second, third], rtol=1e-6)
    bonus = np.asarray([first - V[0], second - V[4], third - V[5]])
    assert np.asarray(scaled.reward).tolist() == np.asarray(rollout.reward).tolist() == [[1.0]] * 3
    assert float(metrics["bonus/mean"]) == 3 and "bonus/scale" not in metrics
    (_, _, unpaid, _), _ = weighed(is_episodic=False, reward=1.0, coefficient=0.0)
    np.testing.assert_allclose(np.asarray(credit.weight)[:, 0], np.asarray(unpaid.weight)[:, 0] + 2 * bonus, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(credit.target), np.asarray(unpaid.target))


class Unitless(Stated):
    """Like `Stated`, but the bonus is scaled by its own return."""

    has_unit = False


@pytest.mark.parametrize("bonus", [Stated(), Unitless()])
@pytest.mark.parametrize("estimator", [GAE(1.0), GAE(0.5), RewardToGo()])
def test_a_step_that_is_spent_on_a_reset_changes_nothing(estimator, bonus):
    found, expected = (
        weighed(False, estimator=estimator, bonus=bonus, has_gap=has_gap)[0] for has_gap in (True, False)
    )
    happened = [0, 2, 3]
    for mine, other in ((found[2].weight, expected[2].weight), (found[0].stream.target, expected[0].stream.target)):
        np.testing.assert_allclose(np.asarray(mine)[happened], np.asarray(other), rtol=1e-6)
    same(found[0].stream.statistics, expected[0].stream.statistics)
    same(found[0].stream.discounted_return, expected[0].stream.discounted_return)
    if not (bonus.has_unit or estimator.whole_episodes):  # 1, 5, 3 discounted by γ = ½ add up to 1, 5.5, 5.75
        assert np.asarray(found[0].stream.discounted_return).tolist() == [5.75]


def test_joining_is_undone():
    valid = jnp.asarray(np.random.default_rng(0).random((7, 5)) < 0.6).at[:, 2].set(False)
    joined, x = joined_steps(valid), jnp.arange(35).reshape(7, 5)
    assert (joined.apart(joined.together(x)) == x).all()
    together = np.asarray(joined.together(jnp.where(valid, x, -1)))
    for column in range(5):
        mine = [int(i) for i in x[:, column][valid[:, column]]]
        assert together[:, column].tolist() == mine + [-1] * (7 - len(mine))


def test_an_episodic_return_of_the_bonus_ends_with_the_episode():
    (state, *_), _ = weighed(is_episodic=True)
    third = 3 + 0.5 * V[3]
    np.testing.assert_allclose(np.asarray(state.stream.target)[:, 0], [1, 5 + 0.5 * third, third], rtol=1e-6)


def test_an_estimator_without_critic_needs_none_for_the_bonus():
    (state, _, credit, metrics), _ = weighed(is_episodic=False, estimator=RewardToGo())
    assert state.stream.critic is None and "bonus/explained_variance" not in metrics
    np.testing.assert_allclose(np.asarray(credit.weight)[:, 0], [2 * (1 + 0.5 * 6.5), 2 * 6.5, 6.0], rtol=1e-6)


def test_a_bonus_of_another_shape_is_refused():
    rollout = facts(NOW, AFTER)
    with pytest.raises(UpslopeError, match="shape"):
        paid_by(Stated(), rollout._replace(next_observation=jnp.zeros((4, 2, 3))), BEGINS, (), KEY)

    class Growing(Stated):
        def __call__(self, rollout, begins, state, key):
            return jnp.zeros((4, 2)), (*state, jnp.zeros(3))

    with pytest.raises(UpslopeError, match=r"Growing returned a state whose arrays differ.*float32\[3\]"):
        paid_by(Growing(), rollout, BEGINS, (), KEY)


def test_without_a_bonus_the_state_has_no_further_array():
    assert jax.tree.leaves(initialise(task_of(DeepSea(size=3)), 0).stream) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Count(scope="weekly"), "weekly"),
        (lambda: Count(cells=1), "from 2"),
        (lambda: Count(bits=31), "multiple of 32"),
        (lambda: RND(features=0), "features"),
        (lambda: RND(share=1.5), "share"),
        (lambda: NovelD(alpha=2.0), "α"),
        (lambda: ICM(beta=-1.0), "β"),
        (lambda: Count("episodic", 1 << 24).start(setting_of(spaces.Box(0, 1, (2,)), num_envs=64), KEY), "memory"),
    ],
)  # fmt: skip
def test_impossible_bonuses_are_refused(make, words):
    with pytest.raises(UpslopeError, match=words):
        make()
