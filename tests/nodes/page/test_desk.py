"""The jobs of a page on the toy model, without a browser and without gradio: each kind from its order to its result."""

import io
import time

import pytest
from lora_loom.convert.files.jobs import open_lora
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.nodes.jobs.publishing import Shelf
from lora_loom.nodes.page.bench import worked
from lora_loom.nodes.page.desk import Desk, Order
from lora_loom.nodes.page.works import WORKS, variants
from lora_loom.nodes.ui.alone import AloneHost, bases_below
from PIL import Image

QUICK = {
    "base": "toy", "data.folder": "toy:object", "data.trigger": "zog", "data.resolution": 64, "data.limit": 2, "batch_size": 1, "adapter.rank": 2,
    "samples.steps": 1, "samples.every": 0,
}  # fmt: skip
SOON_S = 240


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    return Desk(AloneHost(root, Shelf(root / "loras", root / "embeddings"), ["toy"], "en"), WORKS)


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


def test_a_run_begins_from_a_lora_of_the_list(desk, trained):
    panel = carried(desk, "further", steps=1, **{"adapter.start_from": "one"})
    assert panel["result"]["files"] == ["further.safetensors"]


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
    more = {"first": "one", "second": "one", "folder": "toy:object", "steps": 1}
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
