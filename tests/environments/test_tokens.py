"""The token environment agrees with a verifier in this file, and its exact values agree with hand-computed counts."""

import itertools

import jax
import numpy as np
import pytest

import upslope
from upslope.environments.tokens import tokens
from upslope.errors import UpslopeError


def played(world, prompt, sequence):
    """Play a sequence of actions; return the rewards, the observations, and whether the episode is over."""
    state, rewards, seen = np.int32(prompt * (len(world.start) // 2)), [], []
    for action in sequence:
        if world.terminal[state]:
            break
        after = int(np.argmax(world.transition[state, action]))
        rewards.append(float(world.reward[state, action, after]))
        state = np.int32(after)
        seen.append(int(state))
    return rewards, seen, bool(world.terminal[state])


def test_the_verifier_pays_for_the_sum_in_the_prompt():
    world = tokens(digits=3, length=3, prompts=2)
    count = 0
    for prompt, sequence in itertools.product((0, 1), itertools.product(range(4), repeat=3)):
        written = list(itertools.takewhile(lambda token: token != 3, sequence))
        rewards, seen, is_over = played(world, prompt, sequence)
        is_right = len(written) < 3 and sum(digit + 1 for digit in written) == prompt + 1
        assert rewards == [0.0] * (len(rewards) - 1) + [float(is_right)]
        assert is_over and len(rewards) == min(len(written) + 1, 3)
        count += is_right
        # Each prompt has 13 prefixes, in breadth-first order: the root, its 3 children, and their 9 children.
        tree = [0]
        for digit in written[: len(rewards)]:
            tree.append(3 * tree[-1] + digit + 1)
        live = [13 * prompt + place for place in tree[1:] if place < 13]
        assert seen == [*live, 26]
    # The right sequences of three actions are (1, end, any of 4) for one prompt, and (2, end, any of 4) and (1, 1, end)
    # for the other.
    assert count == 4 + (4 + 1)


def test_a_uniform_policy_is_right_as_often_as_counted_by_hand():
    world = tokens(digits=2, length=3, prompts=2)
    uniform = np.full((len(world.start), 3), 1 / 3)
    # Prompt 1: "1 end". Prompt 2: "2 end" and "1 1 end".
    assert world.expected_return(uniform, 1.0) == pytest.approx((1 / 9 + 1 / 9 + 1 / 27) / 2)
    starts = {int(jax.jit(world.reset)(jax.random.key(seed))[0]) for seed in range(16)}
    assert starts == {0, 7}


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"prompts": 11}, "so that each has a right answer"),
        ({"digits": 0}, "at least 1 digit"),
        ({"length": 1}, "length=1"),
        ({"digits": 9, "length": 9}, "more than 1,024 states"),
    ],
)
def test_worlds_that_cannot_be_are_refused(kwargs, words):
    with pytest.raises(UpslopeError, match=words):
        upslope.make("jax:Tokens-v0", env_kwargs=kwargs)
