"""Presets of networks that have a part of the noise levels: their range by what the model is, the file's name, and that what a person sets wins."""

import dataclasses
from types import SimpleNamespace

import pytest
from lora_loom.lora_core.backends.base_model import Expert, FurtherInput
from lora_loom.nodes.jobs.presets import PRESETS
from lora_loom.nodes.jobs.settings import left_open


@dataclasses.dataclass
class Base:
    shift: float | None = 1.0
    expert: Expert | None = None
    further: FurtherInput | None = None


FIRST_FRAME = SimpleNamespace()


@pytest.mark.parametrize(
    ("preset", "base", "wanted"),
    [
        ("Wan 2.2 high noise", Base(), (875, 1000)),
        ("Wan 2.2 low noise", Base(), (0, 875)),
        ("Wan 2.2 high noise", Base(further=FIRST_FRAME), (900, 1000)),
        ("Wan 2.2 low noise", Base(further=FIRST_FRAME), (0, 900)),
        ("Wan 2.2 low noise", Base(expert=Expert("expert.low_noise", 0.0, 0.9)), (0, 900)),
        ("Wan 2.2 high noise", Base(shift=8.0), (467, 1000)),  # 0.875 / (8 - 7 * 0.875)
        ("SDXL refiner", Base(shift=None), (0, 200)),
    ],
)
def test_a_network_is_trained_where_it_is_asked(preset, base, wanted):
    timesteps = PRESETS[preset].timesteps(base)
    assert (timesteps["objective.min_timestep"], timesteps["objective.max_timestep"]) == wanted


def test_files_are_called_as_others_look_for_them_and_other_presets_change_nothing():
    assert PRESETS["Wan 2.2 high noise"].named("cat") == "cat_high_noise"
    assert PRESETS["Wan 2.2 low noise"].named("cat_low_noise") == "cat_low_noise"
    assert PRESETS["SDXL refiner"].named("cat") == "cat_refiner"
    assert PRESETS["concept"].named("cat") == "cat"
    assert PRESETS["concept"].timesteps(Base()) == {}


def test_a_range_that_a_person_sets_wins():
    filled = {"objective.min_timestep": 875, "objective.max_timestep": 1000}
    assert left_open(filled, {"objective.min_timestep": 800, "objective.max_timestep": 1000}) == {
        "objective.max_timestep": 1000
    }
    assert left_open(filled, {}) == filled
