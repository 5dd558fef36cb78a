import io

import pytest
import torch
from lora_loom.lora_core.config import DataConfig, parse
from lora_loom.lora_core.data.encoder import Encoder
from lora_loom.lora_core.data.folder import scan
from lora_loom.lora_core.data.latents import LatentCache, View
from lora_loom.lora_core.data.sources import brought_in, from_images, from_latents
from lora_loom.lora_core.messages.errors import LoomError
from PIL import Image


def shade(n):
    return Image.new("RGB", (32, 32), (n * 40, 0, 0))


def looked_at(folder, **data):
    return scan(DataConfig(folder=str(folder), resolution=32, bucket_step_px=8, **data))


@pytest.fixture
def hub(tmp_path):
    """A dataset as the Hub has them: pictures inside parquet files."""
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = []
    for n in range(3):
        data = io.BytesIO()
        shade(n).save(data, ("PNG", "JPEG")[n % 2])
        rows.append(
            {"image": {"bytes": data.getvalue(), "path": f"{n}.png"}, "text": f"picture {n}", "other": f"other {n}"}
        )
    place = tmp_path / "set" / "data"
    place.mkdir(parents=True)
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "other": datasets.Value("string")}
    )
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, place / "train-00000-of-00001.parquet")
    return tmp_path / "set"


def test_a_hugging_face_dataset_becomes_a_folder_once(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    job = parse({"data": {"folder": f"hf:{hub}", "resolution": 32, "bucket_step_px": 8}})
    config, found = brought_in(job, tmp_path / "runs")
    assert [(p.name, p.caption) for p in found.pictures] == [
        ("000000.png", "picture 0"),
        ("000001.jpg", "picture 1"),
        ("000002.png", "picture 2"),
    ]
    assert Image.open(found.pictures[2].path).getpixel((0, 0)) == (80, 0, 0)
    again, _ = brought_in(job, tmp_path / "runs")
    assert again.data.folder == config.data.folder
    other, found = brought_in(parse({"data": {**vars(job.data), "caption_column": "other"}}), tmp_path / "runs")
    assert found.pictures[0].caption == "other 0"
    assert other.data.folder != config.data.folder


def of_columns(place, columns, count=2):
    """A dataset of the Hub with these columns of pictures, each of a shade of its own, and an instruction."""
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = []
    for n in range(count):
        row = {"edit_prompt": f"make it {n}"}
        for m, column in enumerate(columns):
            data = io.BytesIO()
            shade(3 * n + m).save(data, "PNG")
            row[column] = {"bytes": data.getvalue(), "path": f"{n}.png"}
        rows.append(row)
    (place / "data").mkdir(parents=True)
    kinds = {"edit_prompt": datasets.Value("string"), **{column: datasets.Image() for column in columns}}
    table = pa.Table.from_pylist(rows, schema=datasets.Features(kinds).arrow_schema)
    pyarrow.parquet.write_table(table, place / "data" / "train-00000-of-00001.parquet")
    return place


@pytest.mark.parametrize(("columns", "target", "shown"), [
    (["input_image", "edited_image"], 1, [0]),
    (["source", "target"], 1, [0]),
    (["image", "conditioning_image"], 0, [1]),
    (["reference_2", "reference_1", "after"], 2, [1, 0]),
    (["image", "mask"], 0, []),
])  # fmt: skip
def test_a_dataset_of_pairs_trains_what_was_edited_and_shows_what_it_was_made_from(
    columns, target, shown, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    place = of_columns(tmp_path / "pairs", columns)
    data = {"folder": f"hf:{place}", "resolution": 32, "bucket_step_px": 8, "controls": "auto"}
    _, found = brought_in(parse({"data": data}), tmp_path / "runs")
    assert [p.caption for p in found.pictures] == ["make it 0", "make it 1"]
    for n, picture in enumerate(found.pictures):
        assert Image.open(picture.path).getpixel((0, 0)) == shade(3 * n + target).getpixel((0, 0))
        seen = [Image.open(path).getpixel((0, 0)) for path in picture.controls]
        assert seen == [shade(3 * n + m).getpixel((0, 0)) for m in shown]
    _, without = brought_in(parse({"data": {**data, "controls": "none"}}), tmp_path / "runs")
    assert [len(picture.controls) for picture in without.pictures] == [0, 0]


def test_columns_of_pictures_that_do_not_tell_which_is_trained_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    place = of_columns(tmp_path / "pairs", ["left", "right"])
    with pytest.raises(LoomError, match=r"data.image_column: .* several columns \(.*left.*right"):
        brought_in(parse({"data": {"folder": f"hf:{place}"}}), tmp_path / "runs")
    _, found = brought_in(
        parse({"data": {"folder": f"hf:{place}", "image_column": "right", "resolution": 32, "bucket_step_px": 8}}),
        tmp_path / "runs",
    )
    assert Image.open(found.pictures[0].path).getpixel((0, 0)) == shade(1).getpixel((0, 0))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [({"caption_column": "nope"}, "data.caption_column: .* has no column 'nope'"),
     ({"image_column": "text"}, "data.image_column: .* has no pictures in column text"),
     ({"split": "nope"}, r"split nope\) could not be read")],
)  # fmt: skip
def test_what_a_dataset_lacks_is_one_sentence(data, sentence, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    with pytest.raises(LoomError, match=sentence):
        brought_in(parse({"data": {"folder": f"hf:{hub}", **data}}), tmp_path / "runs")


def test_a_folder_of_parquet_files_is_told_how_to_say_so(hub, tmp_path):
    with pytest.raises(LoomError, match="1 parquet file; if it is a Hugging Face dataset, write hf: in front"):
        brought_in(parse({"data": {"folder": str(hub)}}), tmp_path / "runs")


@pytest.mark.parametrize("name", ["../secret", "a/b/c", "", "no-such-thing", "https://example.org/x"])
def test_a_name_that_is_no_dataset_is_refused(name, tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(LoomError, match="is neither the name of a dataset"):
        brought_in(parse({"data": {"folder": f"hf:{name}"}}), tmp_path)


def test_pictures_of_other_nodes_are_kept_without_loss_under_a_name_of_their_content(tmp_path):
    images = [shade(n) for n in range(3)]
    folder = from_images(images, ["a", "", "c"], [], tmp_path)
    found = looked_at(folder)
    assert [p.caption for p in found.pictures] == ["a", "", "c"]
    assert all(Image.open(p.path).tobytes() == image.tobytes() for p, image in zip(found.pictures, images, strict=True))
    assert from_images(images, ["a", "", "c"], [], tmp_path) == folder
    assert from_images(images, ["a", "", "d"], [], tmp_path) != folder
    masked = from_images(images, ["a", "", "c"], [Image.new("L", (32, 32), 255)] * 3, tmp_path)
    shown = from_images(images, ["a", "", "c"], [], tmp_path, images[::-1])
    found = looked_at(shown, controls="auto").pictures
    assert [Image.open(p.controls[0]).getpixel((0, 0)) for p in found] == [i.getpixel((0, 0)) for i in images[::-1]]
    assert [len(p.controls) for p in looked_at(shown).pictures] == [0, 0, 0]
    assert masked != folder
    assert all(p.mask for p in looked_at(masked, masks="file").pictures)


def test_latents_of_other_nodes_are_trained_as_they_are(tmp_path):
    rng = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 4, 4, 6, generator=rng) for _ in range(2)]
    texts = [({"0": torch.randn(1, 77, 8, generator=rng)}, [[{"tensor": "0"}, {"dict": {}}]]) for _ in range(2)]
    folder = from_latents(latents, texts, 8, tmp_path)
    found = looked_at(folder, repeats=2)
    assert [(p.width_px, p.height_px, p.repeats, p.is_latent) for p in found.pictures] == [(48, 32, 2, True)] * 2
    assert found.pictures[0].caption != found.pictures[1].caption
    cache = LatentCache(found, Encoder(lambda pixels: pixels, wired=lambda samples: samples * 2), lambda n, of: None)
    assert torch.equal(cache[View(1)]["latent"], latents[1] * 2)
    assert from_latents(latents, texts, 8, tmp_path) == folder
    with pytest.raises(LoomError, match="this model takes no latents from other nodes"):
        LatentCache(found, Encoder(lambda pixels: pixels), lambda n, of: None)


def test_a_dataset_names_no_files_of_this_machine(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    secret = tmp_path / "secret.png"
    shade(3).save(secret)
    data = io.BytesIO()
    shade(1).save(data, "PNG")
    cells = [{"bytes": None, "path": str(secret)}, {"bytes": data.getvalue(), "path": None}, None]
    features = datasets.Features({"image": datasets.Image()})
    place = tmp_path / "set" / "data"
    place.mkdir(parents=True)
    pyarrow.parquet.write_table(
        pa.Table.from_pylist([{"image": c} for c in cells], schema=features.arrow_schema),
        place / "train-00000-of-00001.parquet",
    )
    _, found = brought_in(
        parse({"data": {"folder": f"hf:{tmp_path / 'set'}", "resolution": 32, "bucket_step_px": 8}}), tmp_path / "runs"
    )
    assert [Image.open(p.path).getpixel((0, 0)) for p in found.pictures] == [(40, 0, 0)]
