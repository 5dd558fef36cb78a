"""The widget table, without ComfyUI."""

from __future__ import annotations


def test_what_a_widget_says_of_itself_is_what_the_config_field_says(nodes):
    from lora_loom.lora_core.config import AdapterConfig

    field = AdapterConfig.__dataclass_fields__["dropout"]
    drawn = nodes("widgets").row("adapter.dropout").input()
    assert (drawn.id, drawn.kind, drawn.default, drawn.tooltip) == (
        "dropout",
        "FLOAT",
        field.default,
        field.metadata["help"],
    )
    assert (drawn.min, drawn.max) == (field.metadata["low"], field.metadata["high"])


def test_every_widget_of_train_lora_reaches_the_field_it_names(nodes):
    widgets, table = nodes("widgets"), nodes("train_lora").INPUTS
    changed = {}
    for entry in widgets.rows(table):
        kind, field = widgets.field_at(entry.path)
        options = entry.input().options or field.metadata["choices"]
        changed[entry.name] = options[-1] if options else {bool: True, int: 3, float: 0.25, str: "x"}[kind]
    values = widgets.settings(table, changed)
    assert values == {entry.path: changed[entry.name] for entry in widgets.rows(table)}
    assert len(values) > 35


def test_zero_and_auto_leave_the_value_to_the_preset_and_a_value_wins_over_it(nodes):
    widgets, table = nodes("widgets"), nodes("train_lora").INPUTS
    preset = {"steps": 800, "adapter.rank": 16, "schedule.name": "cosine"}
    left = widgets.settings(table, {"steps": 0, "rank": 0, "scheduler": "auto", "seed": 0}, preset)
    assert left == {**preset, "seed": 0}
    assert widgets.settings(table, {"steps": 5, "rank": 0, "scheduler": "linear"}, preset) == {
        "steps": 5,
        "adapter.rank": 16,
        "schedule.name": "linear",
    }


def test_a_widget_that_an_older_workflow_lacks_keeps_the_default(nodes):
    widgets = nodes("widgets")
    assert widgets.settings(nodes("train_lora").INPUTS, {"seed": 4}) == {"seed": 4}
    assert widgets.job({"seed": 4}).adapter.rank == widgets.field_at("adapter.rank")[1].default


def test_wired_settings_go_over_the_widgets(nodes):
    job = nodes("widgets").job({"optimizer.lr": 1e-4, "steps": 7}, {"optimizer.lr": 2e-4})
    assert (job.optimizer.lr, job.steps, job.base) == (2e-4, 7, "ComfyUI")


def test_the_widget_of_a_field_is_known_by_the_fields_path(nodes):
    names = nodes("extension").WIDGET_NAMES
    assert names["optimizer.lr"] == ("learning_rate",)
    assert names["embedding.init"] == ("init", "init_text")
    assert names["schedule.name"] == ("scheduler",)
