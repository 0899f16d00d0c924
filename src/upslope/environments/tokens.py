"""A token world, a tiny stand-in for language: sequences of unequal length, judged by a verifier at their end."""

import numpy as np

from upslope.environments.tabular import Tabular
from upslope.errors import UpslopeError

MAX_STATES = 1024
"""The largest number of states in a token world, whose transition table grows with the square of this number."""


def tokens(digits: int = 2, length: int = 6, prompts: int = 5) -> Tabular:
    """Write digits whose sum is the number in the prompt, then the end token: a verifier pays 1 if the sum is right.

    Action k < `digits` writes the digit k + 1, and action `digits` ends the sequence. A sequence that reaches `length`
    tokens without the end token stops there and counts as wrong. The prompt is one of 1 … `prompts`, drawn with equal
    probability; most prompts have correct answers of several lengths. The observation combines the prompt with
    everything written so far: (prompt − 1) · K + prefix. The K prefixes are in tree order, where digit k after prefix i
    makes the prefix digits · i + k + 1. The largest observation stands for the end of the episode. All sequences can be
    enumerated: with the defaults there are 127 for each prompt.
    """
    whole = all(isinstance(x, int) for x in (digits, length, prompts))
    if not (whole and digits >= 1 and 2 <= length <= MAX_STATES and 1 <= prompts <= digits * (length - 1)):
        raise UpslopeError(
            "Tokens need at least 1 digit, a length of at least 2, and from 1 to digits · (length − 1) prompts, so "
            f"that each has a right answer, not digits={digits}, length={length} and prompts={prompts}."
        )
    prefixes = sum(digits**depth for depth in range(length))
    if prompts * prefixes >= MAX_STATES:
        raise UpslopeError(
            f"Tokens with digits={digits}, length={length} and prompts={prompts} have more than {MAX_STATES:,} states, "
            "too many for a table. Lower one of the three."
        )
    prefix, added = np.arange(prefixes), 1 + np.arange(digits)
    children = digits * prefix[:, None] + added
    total = np.zeros(digits * prefixes + 1, np.int64)
    for parent in prefix:  # in the order of the tree, so that a parent's sum is known
        total[children[parent]] = total[parent] + added
    over = prompts * prefixes
    state = np.arange(over)
    prompt, written = np.divmod(state, prefixes)
    grown = np.where(children[written] < prefixes, prompt[:, None] * prefixes + children[written], over)
    successor = np.full((over + 1, digits + 1), over)
    successor[:-1, :-1] = grown
    reward = np.zeros((over + 1, digits + 1, over + 1))
    reward[:-1, digits, over] = total[written] == prompt + 1  # the verifier
    start = np.zeros(over + 1)
    start[:over:prefixes] = 1 / prompts
    return Tabular(
        transition=np.eye(over + 1)[successor],
        reward=reward,
        start=start,
        terminal=np.arange(over + 1) == over,
        observation_of=np.arange(over + 1),
        max_episode_steps=length + 1,  # never reached, so no end is a truncation
    )
