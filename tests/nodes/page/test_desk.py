"""The jobs of a page on the toy model, without a browser and without gradio: each kind from its order to its result."""

import io
import json
import time

import pytest
import shapes
from lora_loom.convert.files.jobs import open_lora
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs.publishing import Shelf
from lora_loom.nodes.page.bench import worked
from lora_loom.nodes.page.desk import Desk, Order
from lora_loom.nodes.page.works import WORKS, variants
from lora_loom.nodes.ui.alone import AloneHost, bases_below
from PIL import Image

QUICK = {
    "base": shapes.BASE, "data.folder": shapes.set_folder("object"),
    "data.trigger": "zog", "data.resolution": 64, "data.limit": 2, "batch_size": 1, "adapter.rank": 2,
    "samples.steps": 1, "samples.every": 0,
}  # fmt: skip
SOON_S = 600


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    return Desk(AloneHost(root, Shelf(root / "loras", root / "embeddings"), [shapes.BASE], "en"), WORKS)


def carried(desk, name, work="train", more=None, **settings):
    """The panel of a job, once it has ended."""
    desk.add(Order({**QUICK, "name": name, **settings}, "quick test", work=work, more=more or {}))
    deadline = time.monotonic() + SOON_S
    while desk.busy and time.monotonic() < deadline:
        time.sleep(0.02)
    panel = desk.panels.find("page", "").snapshot()
    assert panel["status"] == "finished", panel["error"]
    return panel


@pytest.fixture(scope="module")
def trained(desk):
    return carried(desk, "one", steps=2)


def test_a_run_ends_with_its_file_where_loras_are_listed(desk, trained):
    assert (trained["step"], trained["result"]["files"]) == (2, ["one.safetensors"])
    assert open_lora(desk.host.shelf().loras / "one.safetensors").modules


def test_auto_measures_what_the_page_leaves_open(desk):
    desk.add(Order({**QUICK, "name": "auto", "steps": 2}, "auto"))
    deadline = time.monotonic() + SOON_S
    while desk.busy and time.monotonic() < deadline:
        time.sleep(0.02)
    panel = desk.panels.find("page", "").snapshot()
    assert panel["status"] == "finished", panel["error"]
    told = [message.get("code") for message in panel["messages"]]
    assert [code for code in told if code.startswith("auto.")] == [
        "auto.yours", "auto.not_watched", "auto.fits", "auto.rate", "auto.strength"
    ]  # fmt: skip
    config = json.loads((desk.runs_root() / "auto" / "config.json").read_text(encoding="utf-8"))
    assert (config["auto_keeps"], config["steps"], config["optimizer"]["lr"] > 0) == ("steps", 2, True)
    assert panel["result"]["strength"] in [tenths / 10 for tenths in range(4, 15)]


def test_a_run_begins_from_a_lora_of_the_list(desk, trained):
    panel = carried(desk, "further", steps=1, **{"adapter.start_from": "one"})
    assert panel["result"]["files"] == ["further.safetensors"]


SLIDER = {"method": "slider", "data.folder": "", "slider.positive": "a red disc", "slider.sampler_steps": 2}


def test_a_slider_is_trained_from_prompts_alone(desk):
    assert carried(desk, "slid", steps=1, **SLIDER)["result"]["files"] == ["slid.safetensors"]
    assert open_lora(desk.host.shelf().loras / "slid.safetensors").modules
    assert carried(desk, "slid_measured", "check", **SLIDER)["result"]["lines"]


def test_a_slider_is_trained_from_pairs_of_pictures(desk, tmp_path):
    (tmp_path / "control").mkdir()
    for place, color in ((tmp_path / "control", "black"), (tmp_path, "white")):
        Image.new("RGB", (64, 64), color).save(place / "a.png")
    of_pairs = {"method": "slider", "slider.mode": "pairs", "data.folder": str(tmp_path), "data.controls": "auto"}
    assert carried(desk, "of_pairs", steps=1, **of_pairs)["result"]["files"] == ["of_pairs.safetensors"]


def test_a_slider_that_waits_says_how_long_it_is(desk, trained):
    desk.add(Order({**QUICK, "name": "before", "steps": 2}, "quick test"))
    desk.add(Order({**QUICK, **SLIDER, "name": "waits"}, "quick test"))
    steps = {row["name"]: row["steps"] for row in desk.queue()}
    desk.finish()
    assert steps["waits"] == 100


@pytest.mark.parametrize(
    ("work", "settings", "field"),
    [
        ("train", {"slider.positive": ""}, "slider.positive"),
        ("train", {"slider.strengths": "many"}, "slider.strengths"),
        ("train", {"slider.mode": "pairs"}, "slider.positive"),
        ("train", {"slider.mode": "pairs", "slider.positive": ""}, "data.folder"),
        ("zip", {}, "data.folder"),
    ],
)
def test_what_a_slider_lacks_is_said_before_its_turn_comes(desk, work, settings, field):
    with pytest.raises(LoomError) as error:
        desk.add(Order({**QUICK, **SLIDER, "name": "aimless", **settings}, "quick test", work=work))
    assert error.value.message.field == field
    assert not desk.busy


def test_the_size_of_buckets_is_the_one_that_was_asked_for(desk, trained):
    assert carried(desk, "buckets", steps=1, **{"data.bucket_step_px": 32})["status"] == "finished"
    config = (desk.runs_root() / "buckets" / "config.json").read_text(encoding="utf-8")
    assert '"bucket_step_px": 32' in config


def test_a_learning_rate_is_found_shown_and_offered(desk):
    panel = carried(desk, "rate", "find-lr", {"steps": 10})
    assert panel["result"]["lines"][0]["code"] == "learning_rate.suggested"
    assert 0 < panel["result"]["settings"]["optimizer.lr"] < 1
    assert Image.open(io.BytesIO(desk.picture(panel["result"]["picture"]))).format == "JPEG"
    assert not (desk.runs_root() / "rate").exists()


def test_one_step_is_measured_and_leaves_no_run(desk):
    panel = carried(desk, "measured", "check")
    assert panel["result"]["lines"]
    assert not (desk.runs_root() / "measured").exists()


def test_variants_are_trained_one_after_the_other_and_compared(desk):
    runs = '[[runs]]\nname = "small"\nadapter = { rank = 1 }\n[[runs]]\nname = "large"\nadapter = { rank = 3 }\n'
    panel = carried(desk, "both", "sweep", {"runs": runs}, steps=1, **{"samples.every": 1})
    ranks = {name: open_lora(desk.host.shelf().loras / f"both_{name}.safetensors") for name in ("small", "large")}
    assert {name: next(iter(lora.modules.values())).parts["down"].shape[0] for name, lora in ranks.items()} == {
        "small": 1,
        "large": 3,
    }
    assert panel["run"] == "both_large"
    assert desk.picture(panel["result"]["picture"])


def test_two_loras_are_zipped_into_a_file_of_the_list(desk, trained):
    more = {"first": "one", "second": "one", "folder": shapes.set_folder("object"), "steps": 1}
    panel = carried(desk, "zipped", "zip", more)
    assert panel["result"]["files"] == ["zipped.safetensors"]
    assert [line["code"] for line in panel["result"]["lines"]][0] == "zip.layers"


@pytest.mark.parametrize(
    ("work", "more", "field"),
    [
        ("sweep", {"runs": "[[runs"}, "runs"),
        ("sweep", {"runs": ""}, "runs"),
        ("sweep", {"runs": '[[runs]]\nname = "a/b"'}, "name"),
        ("sweep", {"runs": '[[runs]]\nname = "a"\nadapter = { rank = -1 }'}, "adapter.rank"),
        ("find-lr", {"steps": 5}, "steps"),
        ("find-lr", {"steps": "many"}, "steps"),
        ("zip", {"first": "", "second": "x"}, "first"),
        ("zip", {"first": "no_such", "second": "x"}, "first"),
        ("fly", {}, "work"),
    ],
)
def test_what_a_job_lacks_is_said_before_its_turn_comes(desk, work, more, field):
    with pytest.raises(LoomError) as error:
        desk.add(Order({**QUICK, "name": "nothing"}, work=work, more=more))
    assert error.value.message.field == field
    assert not desk.busy


def test_a_variant_keeps_what_it_does_not_say_of_its_section(desk):
    order = Order(
        {**QUICK, "name": "x", "adapter.alpha": 2.0}, more={"runs": '[[runs]]\nname = "a"\nadapter = { rank = 3 }'}
    )
    (variant,) = variants(order)
    assert (variant.settings["adapter.alpha"], variant.settings["adapter.rank"], variant.name) == (2.0, 3, "x_a")


def test_tools_write_beside_the_listed_files_and_never_over_one(desk, trained):
    names = [path.name for _ in range(2) for path in worked(desk, "convert", {"files": ["one"], "to": "kohya"}).files]
    assert names == ["one_kohya.safetensors", "one_kohya_2.safetensors"]
    assert worked(desk, "resize", {"files": ["one"], "rank": 1}).files[0].name == "one_rank1.safetensors"
    merged = worked(desk, "merge", {"files": ["one=0.5", "one_kohya"]})
    assert merged.files[0].parent == desk.host.shelf().loras
    assert "one.safetensors" in worked(desk, "inspect", {"files": "one"}).lines


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"files": []}, "files"),
        ({"files": ["no_such"]}, "files"),
        ({"files": ["one"], "to": "rubbish"}, "to"),
        ({"files": ["one"], "scale": "much"}, "scale"),
        ({"files": ["one"], "approximate": -1}, "approximate"),
        ({"files": ["one"], "embed": ["no_such"]}, "embed"),
    ],
)
def test_a_tool_says_which_of_its_fields_needs_a_change(desk, trained, values, field):
    with pytest.raises(LoomError) as error:
        worked(desk, "convert", values)
    assert error.value.message.field == field


def test_models_of_a_folder_are_files_and_folders_in_diffusers_layout_but_not_their_parts(tmp_path):
    for name in ("a.safetensors", "b/c.safetensors", "model/model_index.json", "model/unet/part.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert bases_below(tmp_path) == [str(tmp_path / name) for name in ("model", "a.safetensors", "b/c.safetensors")]


def test_pictures_that_readers_must_not_see_are_neither_opened_nor_checked(desk, monkeypatch):
    monkeypatch.setattr(desk.host, "may_edit", lambda folder: False)
    with pytest.raises(LoomError) as error:
        desk.shown_sets(QUICK)
    assert (error.value.message.code, error.value.message.field) == ("page.folder_elsewhere", "data.folder")


def test_the_queue_is_told_in_its_order_with_steps_and_time(desk, trained):
    """As an earlier run like it has told; a data set that would have to be fetched is not looked at."""
    record = desk.runs_root() / "one" / "run.json"
    pace = {"seconds_per_step": 2.0, "peak_bytes": 1, "seconds": {"preparing": 3.0}}
    before = record.read_text(encoding="utf-8")
    record.write_text(json.dumps({**json.loads(before), "pace": pace}), encoding="utf-8")
    orders = [
        Order({**QUICK, "name": "later", "steps": 7}, "quick test"), Order({**QUICK, "name": "other", "steps": 7, "batch_size": 2}, "quick test"),
        Order({**QUICK, "name": "hub", "data.folder": "hf:nobody/nothing"}), Order({**QUICK, "name": "wrong", "adapter.rank": -1}), Order(resume="one"),
    ]  # fmt: skip
    desk._waiting.extend(orders)  # nothing works on them
    try:
        rows = desk.queue()
    finally:
        desk.clear()
        record.write_text(before, encoding="utf-8")
    assert [(row["name"], row["steps"], row["seconds"], row["running"]) for row in rows] == [
        ("later", 7, 17.0, False), ("other", 7, None, False), ("hub", None, None, False), ("wrong", None, None, False), ("one", 2, 7.0, False),
    ]  # fmt: skip
    assert desk.queue() == []
