"""Run folders are read as they lie there: whole, half-written, broken, foreign, hostile; and a run that goes on is told from one that was killed."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from lora_loom.lora_core.config import as_dict, parse
from lora_loom.lora_core.disk import locks
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs import bounded, checkpoints, listing, saves, trash
from lora_loom.lora_core.runs.reports import FileLog
from PIL import Image
from safetensors.torch import save_file
from slow_rows import mostly_slow


def make_run(root, name="a", steps=10, done=10, log="finished after step 10", **config):
    """A run folder as the trainer leaves it, in small."""
    folder = root / name
    (folder / "samples").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.json").write_text(
        json.dumps({"name": name, "steps": steps, "method": "lora", "base": "ComfyUI", **config})
    )
    rows = [
        {"step": n, "loss": 1 / n, **({"held_out": abs(n - 6) + 0.5} if n % 2 == 0 else {})} for n in range(1, done + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.log").write_text(
        f"2026-11-21 02:41:06.001 training steps 1 to {steps}: 2 layers, 8 values, 4 pictures\n2026-11-21 02:41:07.002 {log}\n"
    )
    for picture in ("before", "step-4", "step-10", "step-8"):
        Image.new("RGB", (8, 8)).save(folder / "samples" / f"{picture}.png")
    return folder


def test_a_run_is_read(tmp_path):
    folder = make_run(tmp_path, data={"trigger": "zog"})
    save_file(
        {"x": torch.zeros(1)},
        folder / "a.safetensors",
        {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "zog", "secret": "x"},
    )
    save_file({"x": torch.zeros(1)}, folder / "a_emb.safetensors")
    (folder / "checkpoints" / "step-00000005").mkdir()
    (folder / "checkpoints" / "step-00000010").mkdir()
    (folder / "checkpoints" / "step-00000010" / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "best-00000006.safetensors").write_bytes(b"x")
    (run,) = listing.listing(tmp_path)
    assert (run.id, run.method, run.base, run.trigger, run.step, run.steps, run.state) == (
        "a",
        "lora",
        "ComfyUI",
        "zog",
        10,
        10,
        "finished",
    )
    assert (run.best, run.picture, run.saves, run.best_save) == ((6, 0.5), 10, [10], 6)
    assert run.results == ["a.safetensors", "a_emb.safetensors"]
    assert run.about == {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "zog"}
    assert run.size_bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert abs(run.changed - time.time()) < 60


@pytest.mark.parametrize(
    ("log", "wanted"),
    [
        ("finished after step 10", ("finished", 10, "")), ("stopped after step 4", ("stopped", 4, "")), ("stopped early after step 6", ("stopped", 6, "")),
        ("paused after step 7", ("paused", 7, "")), ("saved step 10", ("interrupted", 10, "")),
        ("ended by InterruptProcessingException: ", ("interrupted", 10, "")),
        ("ended by LoomError: vae: is wrong.\nsecond line", ("failed", 10, "vae: is wrong.")),
        ("After step 10: loss 0.1 on validation pictures, 0.2 on training pictures; best after step 4", ("interrupted", 10, "")),
        ("training steps 1 to 20: 2 layers", ("interrupted", 10, "")),
        ("finished after step 10\n2026-11-21 03:00:00.000 training steps 11 to 20: 2 layers", ("interrupted", 10, "")),  # continued, then killed
        ("finished after step " + "9" * 5000, ("interrupted", 10, "")),
    ],
)  # fmt: skip
def test_how_it_ended_is_read_from_the_log(tmp_path, log, wanted):
    run = listing.read_run(make_run(tmp_path, log=log))
    assert (run.state, run.step, (run.error or {}).get("text", "")) == wanted


def test_a_run_is_running_as_long_as_its_process_lives(tmp_path):
    folder = make_run(tmp_path, log="saved step 10")
    code = (
        "import sys, pathlib\nfrom lora_loom.lora_core.runs.reports import FileLog\n"
        "log = FileLog(pathlib.Path(sys.argv[1]))\nprint('held', flush=True)\nsys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "run.log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline().strip() == "held"
        assert listing.read_run(folder).state == "running"
        with pytest.raises(LoomError, match="'a' is running; stop it first"):
            trash.throw_away(tmp_path, "a")
    finally:
        child.kill()
        child.wait()
    assert listing.read_run(folder).state == "interrupted"


def test_looking_never_takes_the_lock_from_the_writer(tmp_path):
    path = tmp_path / "run.log"
    path.write_text("")
    with FileLog(path):
        assert [locks.is_held(path) for _ in range(3)] == [True] * 3
    assert locks.is_held(path) is False
    assert locks.is_held(tmp_path / "nothing") is False


def test_without_locks_a_run_that_wrote_just_now_counts_as_running(tmp_path, monkeypatch):
    folder = make_run(tmp_path, log="saved step 10")
    monkeypatch.setattr(locks, "is_held", lambda path: None)
    assert listing.read_run(folder).state == "running"
    for path in folder.glob("*.*"):
        os.utime(path, (1, 1))
    assert listing.read_run(folder).state == "interrupted"


def test_half_written_and_broken_files_leave_blanks(tmp_path):
    folder = make_run(tmp_path)
    with open(folder / "log.jsonl", "ab") as log:
        log.write(b'\xff\xfe\n[1, 2]\n"x"\n{"step": true, "loss": 1}\n')
        log.write(b'{"step": 1e3, "loss": NaN}\n{"step": 10, "loss": 1e999, "held_out": NaN}\n{"step": 99, "lo')
    (folder / "run.log").write_bytes(b"\xff\x00 finished after step 3\n" * 3)
    (folder / "a.safetensors").write_bytes(b"\xff" * 100)
    (folder / "samples" / "step-x.png").write_bytes(b"")
    (folder / "samples" / ("step-" + "9" * 200 + ".png")).write_bytes(b"")
    run = listing.read_run(folder)
    assert (run.step, run.best, run.picture, run.state, run.about) == (10, (6, 0.5), 10, "interrupted", {})
    assert len(listing.curve(folder)["loss"]) == 10
    json.dumps([vars(run), listing.curve(folder)], allow_nan=False)


@pytest.mark.parametrize(
    "config",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"steps": ' + b"9" * 5000 + b"}", b'"' + b"x" * 2_000_000 + b'"',
    ],
)  # fmt: skip
def test_what_is_no_run_is_left_out_and_the_others_stay(tmp_path, config):
    make_run(tmp_path, "good")
    (make_run(tmp_path, "bad") / "config.json").write_bytes(config)
    assert [run.id for run in listing.listing(tmp_path)] == ["good"]


@pytest.mark.parametrize(
    "values",
    [
        {"name": 3, "steps": "x", "data": [], "method": None}, {"steps": -1, "data": {"trigger": 5}}, {"steps": True, "base": {}}, {"steps": 1e300},
        {"method": "\ud800" * 10, "data": {"trigger": "x" * 10_000}},
    ],
)  # fmt: skip
def test_settings_of_the_wrong_kind_are_blanks(tmp_path, values):
    (make_run(tmp_path) / "config.json").write_text(json.dumps(values))
    (run,) = listing.listing(tmp_path)
    assert run.steps == 0
    assert max(len(run.method), len(run.trigger), len(run.base)) <= bounded.MAX_TEXT
    json.dumps(vars(run)).encode()


def test_what_is_not_ours_is_not_listed(tmp_path):
    make_run(tmp_path, "a")
    for name in ("cache", "class_pictures", "imported", ".trash", ".hidden"):
        make_run(tmp_path, name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder as config" / "config.json").mkdir(parents=True)
    assert listing.run_ids(tmp_path) == ["a"]
    assert listing.listing(tmp_path / "nowhere") == []


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_not_followed(tmp_path):
    outside, root = make_run(tmp_path / "elsewhere", "secret"), tmp_path / "runs"
    mine = make_run(root, "mine")
    (root / "link").symlink_to(outside)
    (root / "odd").mkdir()
    (root / "odd" / "config.json").symlink_to(outside / "config.json")
    for name in ("samples", "checkpoints"):
        for path in (mine / name).iterdir():
            path.unlink()
        (mine / name).rmdir()
        (mine / name).symlink_to(outside / name)
    (mine / "log.jsonl").unlink()
    (mine / "log.jsonl").symlink_to(outside / "log.jsonl")
    (run,) = listing.listing(root)
    assert (run.id, run.picture, run.best, listing.pictures(mine), listing.curve(mine)["loss"]) == (
        "mine",
        None,
        None,
        {},
        [],
    )
    for name in ("link", "odd", "../elsewhere/secret", str(outside)):
        with pytest.raises(LoomError, match="there is no run"):
            listing.find(root, name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/", "./a", "A", "a ", "a\0", None, 3, ["a"], {}, True, "nothing", "a\n", "\ud800"]
)
def test_only_a_name_of_the_list_is_found(tmp_path, name):
    make_run(tmp_path, "a")
    with pytest.raises(LoomError, match="there is no run"):
        listing.find(tmp_path, name)
    assert listing.find(tmp_path, "a") == tmp_path / "a"


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path):
    curve = listing.curve(make_run(tmp_path, done=5000), points=100)
    assert len(curve["loss"]) <= 101
    assert (curve["loss"][0][0], curve["loss"][-1][0]) == (1, 5000)


def test_the_best_probe_follows_the_log(tmp_path):
    folder = make_run(tmp_path)
    assert listing.read_run(folder).best == (6, 0.5)
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"step": 11, "loss": 0.1, "held_out": 0.25}\n')
    assert listing.read_run(folder).best == (11, 0.25)


def test_only_a_run_the_train_node_can_go_on_with_is_resumable(tmp_path):
    for name in ("a", "a_2"):
        folder = make_run(tmp_path, name)
        with pytest.raises(LoomError, match="holds no complete save"):
            listing.resumable(tmp_path, name)
        (folder / "checkpoints" / "step-00000010").mkdir()
        (folder / "checkpoints" / "step-00000010" / "manifest.json").write_text("{}")
    assert listing.resumable(tmp_path, "a_2").name == "a_2"
    with pytest.raises(LoomError, match="continues the latest run of a name, which is 'a_2'"):
        listing.resumable(tmp_path, "a")


def test_the_trash_gives_back_what_it_was_given(tmp_path):
    folder = make_run(tmp_path)
    whole = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    first = trash.throw_away(tmp_path, "a")
    make_run(tmp_path)
    second = trash.throw_away(tmp_path, "a")
    assert [(t.id, t.name) for t in trash.thrown_away(tmp_path)] == [(second, "a"), (first, "a")]
    assert listing.run_ids(tmp_path) == []
    assert trash.take_back(tmp_path, second) == "a"
    assert trash.take_back(tmp_path, first) == "a_2"  # the name is taken by now
    assert {
        p.relative_to(tmp_path / "a_2"): p.read_bytes() for p in (tmp_path / "a_2").rglob("*") if p.is_file()
    } == whole
    assert trash.thrown_away(tmp_path) == []
    for number in (first, "..", "", None, 3):
        with pytest.raises(LoomError, match="not in the trash"):
            trash.take_back(tmp_path, number)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_trash_that_leads_elsewhere_is_refused(tmp_path):
    make_run(tmp_path / "runs")
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / ".trash").symlink_to(tmp_path / "outside")
    with pytest.raises(LoomError, match="is a link"):
        trash.throw_away(tmp_path / "runs", "a")
    assert not list((tmp_path / "outside").iterdir())


# ---- saves -----------------------------------------------------------------------------------------------------------


def config_of(**changes):
    return parse({"name": "a", **changes})


def test_saves_are_listed_with_their_losses_and_the_best_once(tmp_path, toy_config, run_toy):
    config = toy_config(
        steps=6, save={"every": 2, "keep": 10}, validation={"every": 2, "share": 0.25}, optimizer={"lr": 0.02}
    )
    run_toy(config, tmp_path / "run")
    found = saves.all_saves(tmp_path / "run")
    best = listing.read_run(tmp_path / "run").best_save
    assert [s.step for s in found] == sorted({2, 4, 6, best})
    assert [s.step for s in found if s.best] == [best]
    measured = listing.held_out(tmp_path / "run")
    assert {s.step: s.held_out for s in found if s.step} == {s.step: measured[s.step] for s in found if s.step}
    assert saves.loss_without(tmp_path / "run") > 0
    assert [s.step for s in saves.chosen(found, "last")] == [6]
    assert [s.step for s in saves.chosen(found, "best")] == [best]
    assert [s.step for s in saves.chosen(found, "every nth", 2)] == [s.step for s in found][::-1][::2][::-1]


def test_without_probes_there_is_no_best(tmp_path, toy_config, run_toy):
    run_toy(toy_config(steps=2), tmp_path / "run")
    with pytest.raises(LoomError, match="measured no validation pictures"):
        saves.chosen(saves.all_saves(tmp_path / "run"), "best")
    with pytest.raises(LoomError, match="holds no complete save"):
        saves.chosen([], "all")


ADAPTERS = [
    {"rank": 4}, {"rank": 4, "alpha": 2.0}, {"rank": 4, "rank_stabilized": True, "alpha": 8.0},
    {"rank": 4, "conv_rank": 2, "conv_alpha": 0.5, "targets": "conv"},
    {"rank": 4, "layer_rank": "mid_block = 8\ndown_blocks_0 = 2", "alpha": 2.0, "targets": "conv"}, {"algorithm": "loha", "rank": 4, "alpha": 1.0},
    {"algorithm": "lokr", "rank": 2, "alpha": 1.0}, {"algorithm": "lokr", "rank": 64}, {"algorithm": "dora", "rank": 4, "alpha": 2.0},
    {"algorithm": "loha", "rank": 4, "conv_rank": 2, "conv_alpha": 1.0, "targets": "conv"},
]  # fmt: skip


@pytest.mark.parametrize("adapter", mostly_slow(ADAPTERS, ADAPTERS[::2].__contains__), ids=str)
def test_a_save_is_written_as_the_result_of_the_same_step(tmp_path, toy_config, run_toy, adapter):
    from lora_loom.convert import products

    result = run_toy(toy_config(steps=2, adapter=adapter, text_encoder={"train": True, "rank": 3}), tmp_path / "run")
    (save,) = saves.all_saves(tmp_path / "run")
    stored = saves.weights(tmp_path / "run", save)
    of_0_1 = {
        key: value for key, value in stored.items() if not key.endswith(".alpha")
    }  # the first version did not store alphas
    assert len(of_0_1) < len(stored)
    for weights in (stored, {**of_0_1, **saves.alphas_of_0_1(saves.config_of(tmp_path / "run"), of_0_1)}):
        written = products(weights, "run", "sd1", {})["run"][0]
        assert written.keys() == result.tensors.keys()
        assert all(torch.equal(written[key], result.tensors[key]) for key in written)


def test_a_save_of_a_run_that_went_on_from_a_lora_has_that_loras_alpha(tmp_path, toy_config, toy_backend, run_toy):
    from lora_loom.lora_core.data.folder import open_sets
    from lora_loom.lora_core.training.job import Job
    from lora_loom.lora_core.training.trainer import train

    first = toy_config(steps=1, adapter={"rank": 2, "alpha": 1.0, "include": "mid_block", "targets": "attention"})
    run_toy(first, tmp_path / "first")
    (save,) = saves.all_saves(tmp_path / "first")
    start = {}
    for key, value in saves.weights(tmp_path / "first", save).items():
        name, _, part = key.rpartition(".")
        start.setdefault(name, {})[part] = value
    second = toy_config(steps=1, adapter={"rank": 4, "alpha": 4.0, "include": "mid_block", "targets": "attention"})
    train(
        Job(second, toy_backend, open_sets(second), tmp_path, start=start),
        tmp_path / "second",
        lambda state, facts: {"a": (state, {})},
    )
    (save,) = saves.all_saves(tmp_path / "second")
    alphas = {float(value) for key, value in saves.weights(tmp_path / "second", save).items() if key.endswith(".alpha")}
    assert alphas == {1.0}


def test_the_averages_are_what_a_save_is_used_with(tmp_path, toy_config, run_toy):
    from lora_loom.convert import products

    result = run_toy(toy_config(steps=3, ema_decay=0.9, optimizer={"lr": 0.01}), tmp_path / "run")
    (save,) = saves.all_saves(tmp_path / "run")
    written = products(saves.weights(tmp_path / "run", save), "run", "sd1", {})["run"][0]
    assert all(torch.equal(written[key], result.tensors[key]) for key in written)


def test_what_a_folder_of_the_first_version_does_not_tell_is_refused(tmp_path):
    down, up = torch.zeros(8, 4), torch.zeros(4, 8)
    with pytest.raises(LoomError, match="has rank 8, the run's settings say another"):
        saves.alphas_of_0_1(config_of(adapter={"rank": 4}), {"lora_unet_x.lora_down": down, "lora_unet_x.lora_up": up})
    both = config_of(adapter={"algorithm": "loha", "rank": 4, "alpha": 1.0, "conv_rank": 4, "conv_alpha": 2.0})
    with pytest.raises(LoomError, match="whether this layer uses adapter.alpha or adapter.conv_alpha"):
        saves.alphas_of_0_1(both, {"lora_unet_x.hada_w1_b": torch.zeros(4, 9)})


def test_schedule_free_saves_and_damaged_ones_are_refused(tmp_path):
    folder = make_run(tmp_path)
    (folder / "config.json").write_text(json.dumps(as_dict(config_of(optimizer={"name": "schedule_free"}))))
    place = checkpoints.folder_of(folder / "checkpoints", 4)
    with pytest.raises(LoomError, match="saves of schedule_free hold the weights to continue from"):
        saves.weights(folder, saves.Save(4, place))
    (folder / "config.json").write_text(json.dumps(as_dict(config_of())))
    place.mkdir()
    with pytest.raises(LoomError, match="is damaged or incomplete"):
        saves.weights(folder, saves.Save(4, place))
    (folder / "checkpoints" / "best-00000004.safetensors").write_bytes(b"x")
    with pytest.raises(LoomError, match="cannot be read"):
        saves.weights(folder, saves.Save(4, folder / "checkpoints" / "best-00000004.safetensors", True))
