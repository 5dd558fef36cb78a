"""Auto against hand-set runs on the bundled sets, by the loss on pictures that neither has seen at noise that is always the same."""

import pytest
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.config.reading import from_values
from lora_loom.lora_core.recipes import merged
from shapes import set_folder
from shapes.concepts import CONCEPTS
from shapes.learning import demo_job

RATES, GRID_STEPS = (3e-4, 1e-3, 3e-3), 600
OPEN = ("steps", "optimizer", "schedule")  # what a demo sets by hand


def job(name):
    """The demo of a set without what auto finds, in batches of four."""
    quick = {"samples": {"every": 0}, "batch_size": 4, "data": {"folder": set_folder(name)}}
    return {key: value for key, value in merged(demo_job(name), quick).items() if key not in OPEN}


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("name", sorted(CONCEPTS))
def test_auto_comes_within_a_twentieth_of_the_best_of_a_grid_set_by_hand(name, run_toy, tmp_path):
    """A loss that auto reached after the first step: one that is only best before it has learned nothing, and is passed over by auto itself."""
    found = run_toy(from_values({**job(name), "recipe": "auto"}, tmp_path), tmp_path / "auto")
    config = found.facts["config"]
    grid = {}
    for rate in RATES:
        watch = {"every": 60, "share": config["validation"]["share"]}
        given = {"steps": GRID_STEPS, "optimizer": {"lr": rate}, "validation": watch}
        result = run_toy(parse({**job(name), **given}), tmp_path / f"{rate}")
        grid[rate] = min(measure[1] for measure in result.facts["validation"][1:])
    lowest = min(measure[1] for measure in found.facts["validation"][1:])
    assert lowest <= 1.05 * min(grid.values()), (config["optimizer"]["lr"], found.step, lowest, grid)
    calibration = found.facts["calibration"]
    if calibration is None:  # of a LoRA that lowers no loss on these pictures no strength is the best
        assert lowest >= found.facts["validation"][0][1]
    else:
        strengths = dict(calibration["points"])
        assert strengths[calibration["strength"]] == min(strengths.values())
