import numpy as np
import pytest
from lora_loom.lora_core.pictures.plots import grid, loss_plot, smoothed
from PIL import Image


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx(
        [3.0, 3.0, 3.0]
    )  # equal up to the rounding of the bias correction
    assert smoothed([2.0, 4.0])[0] == pytest.approx(2.0)
    assert smoothed([2.0, 4.0], decay=0.5)[1] == pytest.approx((0.25 * 2 + 0.5 * 4) / 0.75)


@pytest.mark.parametrize("losses", [[], [0.3], [0.1] * 5, [0.0] * 5, [1.0, 1e30, 1e-30]])
def test_a_loss_plot_can_be_drawn_of_any_course(losses):
    assert loss_plot(losses).size == (720, 360)


def test_a_falling_loss_is_drawn_falling():
    pixels = np.asarray(loss_plot([1 - n / 100 for n in range(100)]), int)
    raw = np.abs(pixels - [178, 200, 235]).sum(-1) < 10
    left, right = (np.flatnonzero(raw[:, columns].any(1)).mean() for columns in (slice(70, 120), slice(640, 690)))
    assert left < right - 100  # rows count downwards


def test_a_grid_has_room_for_every_picture_and_its_label():
    pictures = [Image.new("RGB", (64, 32), "red")] * 5
    assert grid(pictures, columns=5, cell_px=100).size == (5 * 106 + 6, 106 + 6)
    assert grid(pictures, ["a very long label " * 9] * 5, columns=2, cell_px=100).size == (2 * 106 + 6, 3 * 126 + 6)
