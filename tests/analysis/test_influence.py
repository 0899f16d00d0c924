"""The influence of earlier observations through a memory, and the images of an episode as pictures."""

import io

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

import upslope
from upslope.analysis.influence import EXACT, influence_of, probes_of
from upslope.analysis.observation_pictures import HUES, observed_pictures
from upslope.core.types import Rollout
from upslope.models.agent import initialise_agent
from upslope.models.build import ModelSpec
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

LENGTH, KEPT = 7, 0.5


class Accumulates(equinox.Module):
    """A model with h_t = ½ h_{t−1} + w · o_t, whose second logit (of two) is h_t."""

    weight: jax.Array
    value_weight: jax.Array
    head: object = equinox.field(static=True)

    def prepare(self, observation):
        return observation

    def start(self, num):
        return jnp.zeros((num, 1))

    def step(self, features, carry, fresh):
        carry = KEPT * carry + (features @ self.weight)[:, None]
        logits = jnp.concatenate([jnp.zeros_like(carry), carry], axis=1)
        return upslope.Outputs(self.head.distribution(logits, jnp.zeros(0)), features @ self.value_weight), carry

    def groups(self):
        return {"policy": self.weight, "value": self.value_weight}


def episode(observation, action=None):
    length = len(jax.tree.leaves(observation)[0])
    zeros, no = np.zeros((length, 1), np.float32), np.zeros((length, 1), bool)
    return Rollout(
        observation=observation, action=np.zeros((length, 1), np.int32), reward=zeros, terminated=no, truncated=no,
        next_observation=observation, behaviour_log_prob=zeros, valid=~no,
    )  # fmt: skip


def test_the_influence_is_the_gradient_through_time():
    weight = jnp.array([3.0, 4.0])
    spec = ModelSpec(
        encoder_of(spaces.Box(-1, 1, (2,)), ""),
        head_of(spaces.Discrete(2), ""),
        own=lambda observations, actions, key: Accumulates(weight, weight, upslope.head_of(actions, "")),
    )
    observation = np.random.default_rng(0).standard_normal((LENGTH, 1, 2)).astype(np.float32)
    found = influence_of(initialise_agent(jax.random.key(0), spec), episode(observation))
    steps = np.arange(LENGTH)
    lag = steps[:, None] - steps
    # By hand: ∂h_t/∂o_k = ½^(t−k) w, whose norm is 5 · ½^(t−k). Later observations have no influence.
    np.testing.assert_allclose(found.size, np.where(lag >= 0, 5 * KEPT ** np.maximum(lag, 0), 0), rtol=1e-5)
    np.testing.assert_array_equal(found.steps, steps)


def test_random_signs_estimate_the_norm_over_many_outputs():
    probes = probes_of(50)
    assert probes.shape == (EXACT, 50) and np.allclose((probes**2).sum(axis=0), 1)
    assert np.array_equal(probes_of(3), np.eye(3))


@pytest.mark.parametrize("memory", [None, "gru"])
def test_images_and_vectors_have_an_influence_where_there_is_a_memory(memory):
    space = spaces.Dict({"board": spaces.Box(0, 255, (5, 5, 2), np.uint8), "x": spaces.Box(-1, 1, (2,), np.float32)})
    settings = {"hidden_sizes": (8,), "memory": memory, "memory_size": 8}
    spec = ModelSpec(encoder_of(space, ""), head_of(spaces.Discrete(3), ""), settings)
    draw = np.random.default_rng(0)
    observation = {
        "board": draw.integers(0, 3, (LENGTH, 1, 5, 5, 2)).astype(np.uint8),
        "x": draw.standard_normal((LENGTH, 1, 2)).astype(np.float32),
    }
    found = influence_of(initialise_agent(jax.random.key(0), spec), episode(observation))
    if memory is None:
        assert found is None
    else:
        assert np.all((found.size > 0) == np.tril(np.ones((LENGTH, LENGTH), bool)))


def decoded(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def test_a_board_shows_a_colour_for_each_channel_and_a_picture_its_newest_frame():
    board = np.zeros((3, 4, 4, 2), np.uint8)
    board[0, 1, 2, 0], board[2, 3, 0, 1] = 1, 5
    frames = np.zeros((3, 2, 20, 20, 3), np.uint8)
    frames[:, 1, :, :, 0] = 200
    space = spaces.Dict(
        {"board": spaces.Box(0, 255, (4, 4, 2), np.uint8), "camera": spaces.Box(0, 255, (2, 20, 20, 3), np.uint8),
         "x": spaces.Box(-1, 1, (2,), np.float32)}
    )  # fmt: skip
    x = np.zeros((3, 2), np.float32)
    steps, found = observed_pictures(encoder_of(space, ""), {"board": board, "camera": frames, "x": x})
    assert steps.tolist() == [0, 1, 2] and set(found) == {"board", "camera"}
    first, last = decoded(found["board"][0]), decoded(found["board"][2])
    assert first.shape == (160, 160, 3)
    np.testing.assert_array_equal(first[60, 100], HUES[0])
    np.testing.assert_array_equal(last[140, 20], HUES[1])
    assert not first[0, 0].any()
    red = decoded(found["camera"][0])[80, 80]
    assert red[0] == pytest.approx(200, abs=12) and max(red[1:]) < 25  # lossy WebP
