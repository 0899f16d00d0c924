"""A bonus must not put different observations into the same cell."""

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from upslope.models.cells import cells_of
from upslope.models.encoders import encoder_of


def count_cells(space: spaces.Space, observations: np.ndarray, bits: int = 32) -> int:
    cells = cells_of(encoder_of(space, "world"), space, 1 << 16, bits, np.random.default_rng(0))
    return len(np.unique(np.asarray(cells(jnp.asarray(observations)))))


@pytest.mark.parametrize(("side", "high"), [(15, 255), (17, 255), (25, 255), (40, 1)])
def test_each_place_in_a_grid_has_a_cell(side: int, high: int):
    places = np.zeros((side * side, side, side, 2), np.uint8)
    for place in range(side * side):
        places[place, place // side, place % side, 0] = 1
    found = count_cells(spaces.Box(0, high, (side, side, 2), np.uint8), places)
    assert found > 0.98 * side * side  # the rest share a cell by chance


def test_sparse_real_numbers_are_told_apart():
    indicators = np.eye(100, dtype=np.float32)
    assert count_cells(spaces.Box(0, 1, (100,)), indicators) > 90
    boards = indicators.reshape(100, 10, 10, 1).repeat(4, axis=-1)
    assert count_cells(spaces.Box(0, 1, (10, 10, 4)), boards) > 90


def test_images_of_few_kinds_are_boards_of_any_size():
    for high, largest in ((1, np.log(2)), (255, 1 / 255)):
        encoder = encoder_of(spaces.Box(0, high, (20, 20, 2), np.uint8), "world")
        assert encoder.encode(np.ones((20, 20, 2), np.uint8)).max() == pytest.approx(largest, rel=1e-6)
