"""The door for the terminal: `lora-loom train`, `demo`, and the commands on files. Also `python __main__.py` from a bare checkout."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lora_core.config import TrainConfig
    from .lora_core.training.trainer import Result

DONE, FAILED = 0, 1
_WITH_STEPS = ("train", "sweep", "check", "find-lr", "demo")


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Exit codes: 0 done, 1 the input needs a change, 2 wrong usage, 130 or 143 stopped by a signal with the work kept."""
    parser = argparse.ArgumentParser(prog="lora-loom", description="Train LoRAs. The same engine runs inside ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train from a job file")
    train.add_argument("job", type=Path, help="TOML job file")
    train.add_argument("--resume", action="store_true", help="continue the latest run of this name")
    sweep = commands.add_parser("sweep", help="train several variants of a job and compare them on one sheet")
    sweep.add_argument("job", type=Path, help="TOML file with [[runs]], or the name of a bundled one: y2k")
    check = commands.add_parser("check", help="look at a job's pictures and captions, and run one step: how long will it take, how much memory")
    check.add_argument("job", type=Path, help="TOML job file")
    find = commands.add_parser("find-lr", help="find a learning rate for a job by a short test")
    find.add_argument("job", type=Path, help="TOML job file")
    find.add_argument("--steps", type=int, default=60, help="steps of the test (default: 60)")
    commands.add_parser("recipes", help="list the bundled job files a job can start from")
    sample = commands.add_parser("sample", help="draw pictures with LoRAs, embeddings or the saves of runs, on one sheet beside the base model")
    sample.add_argument("files", type=Path, nargs="*", help="LoRA and embedding files, run folders")
    sample.add_argument("--base", default="toy", help="toy, a folder in diffusers layout, or a .safetensors file (default: toy)")
    sample.add_argument("--base-config", default="", help="folder in diffusers layout with the configs and tokenizers of a base that is a file")
    sample.add_argument("--companion", default="", help="folder of the other stage of a two-stage model")
    sample.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    sample.add_argument("--prompt", action="append", help="a row of the sheet; give it several times for several rows")
    sample.add_argument("--negative", default="")
    sample.add_argument("--strength", type=float, nargs="+", default=[1.0], help="strengths of each LoRA (default: 1)")
    sample.add_argument("--width", type=int, default=64)
    sample.add_argument("--height", type=int, default=0, help="0: as the width")
    sample.add_argument("--steps", type=int, default=20)
    sample.add_argument("--cfg", type=float, default=7.0)
    sample.add_argument("--seed", type=int, default=1)
    sample.add_argument("--out", type=Path, default=Path("samples.png"), help="the sheet (default: samples.png)")
    sample.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    push = commands.add_parser("push", help="gather the files of a finished run with a model card, and upload them to the Hugging Face Hub")
    push.add_argument("run", type=Path, help="run folder")
    push.add_argument("--base-model", required=True, help="name of the base model on the Hub, such as stabilityai/stable-diffusion-xl-base-1.0")
    push.add_argument("--repo", default="", help="owner/name to upload to; without it the files are only gathered")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--license", default="", help="licence of the files, such as creativeml-openrail-m")
    push.add_argument("--trigger", action="append", help="word to prompt with; by default what the file's header names")
    push.add_argument("--out", type=Path, default=None, help="where files are gathered (default: hub in the run folder)")
    demo = commands.add_parser("demo", help="train on the bundled toy model and pictures, and show what it learned")
    demo.add_argument("--set", default="object", help="bundled picture set: object, style, pair or word", dest="picture_set")
    for command in (train, sweep, check, find):
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help="change a setting, such as optimizer.lr=2e-4")
    for command in (train, sweep, check, find, demo):
        command.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go (default: runs)")
        command.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    from .convert.files.arguments import FLAGS, add_commands

    add_commands(commands)
    args = parser.parse_args(argv)

    from .lora_core.backends.memory import keep_pages

    if args.command in _WITH_STEPS:
        keep_pages()
    from .lora_core.messages.errors import Problem

    try:
        own = {"train": _train, "sweep": _sweep, "check": _check, "find-lr": _find_lr, "recipes": _recipes, "demo": _demo, "sample": _sample, "push": _push}
        return own.get(args.command, _on_files)(args)
    except Problem as error:
        sys.stderr.write(f"lora-loom: {error.message.named(FLAGS)}\n")
        return FAILED


def _on_files(args: argparse.Namespace) -> int:
    from .convert.files.commands import run
    from .lora_core.pictures.plots import bars

    return run(args, lambda report: bars([(block.name, block.norm) for block in report.blocks], "norm of the change, by block"))


def _train(args: argparse.Namespace) -> int:
    result, code = run_job(_job(args), args)
    if result.files:  # of several processes only the first one writes
        sys.stdout.write(f"{result.outcome} after step {result.step}: {', '.join(map(str, result.files))}\n")
    return code


def _job(args: argparse.Namespace) -> TrainConfig:
    from .lora_core.config import from_values

    return from_values(_values(args.job, args.changes), args.job.parent)


def _values(path: Path, changes: list[str]) -> dict[str, Any]:
    """A job file's values with those of --set over them."""
    from .lora_core.messages.errors import LoomError
    from .lora_core.recipes import merged, read_toml

    values = read_toml(path)
    for change in changes:
        key, sign, value = change.partition("=")
        try:
            if not sign:
                raise ValueError(change)
            values = merged(values, _toml(key, value))
        except ValueError as error:
            raise LoomError("cli.set", field="--set", change=repr(change)) from error
    return values


def _toml(key: str, value: str) -> dict[str, Any]:
    """One setting as TOML reads it; a plain word needs no quotes. Raises ValueError."""
    from .lora_core.recipes import parse_toml

    try:
        return parse_toml(f"{key} = {value}")
    except ValueError:
        return parse_toml(f"{key} = {json.dumps(value)}")


def _recipes(args: argparse.Namespace) -> int:
    from .lora_core.recipes import about, names

    for name in names():
        sys.stdout.write(f"{name:28} {about(name)}\n")
    return DONE


def _check(args: argparse.Namespace) -> int:
    from .lora_core.data.lint import look
    from .lora_core.data.sheet import sheet
    from .lora_core.events import Listener
    from .lora_core.training.assemble import dry_run
    from .lora_core.training.fitting import verdict

    config, dataset, backend = _prepared(_job(args), args)
    report = look(dataset, backend.text_length, lambda n, of: None)
    args.out.mkdir(parents=True, exist_ok=True)
    picture = args.out / f"{config.name}-dataset.png"
    sheet(report).save(picture)
    sys.stdout.write(f"{report.text()}\n\nseen at a glance: {picture}\n")
    chosen, measured = dry_run(config, backend, dataset, args.out, Listener())
    fits, said = verdict(config, chosen, measured, config.for_pictures(len(dataset.pictures)).steps)
    sys.stdout.write(f"{said}\n")
    return DONE if fits else FAILED


def _find_lr(args: argparse.Namespace) -> int:
    from .lora_core.runs.reports import ProgressBar
    from .lora_core.training.lr_range import lr_range

    config, dataset, backend = _prepared(_job(args), args)
    with ProgressBar() as bar:
        found = lr_range(config, backend, dataset, args.out, bar, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    plot = args.out / f"{config.name}-learning-rate.png"
    found.drawn().save(plot)
    sys.stdout.write(f"{found.message()} {plot}\n")
    return DONE


def _sweep(args: argparse.Namespace) -> int:
    """Trains each run on the same loaded model and writes comparison.png."""
    from .lora_core.recipes import HERE
    from .lora_core.training.sweep import LastSamples, runs_of, sheet
    from .lora_core.training.trainer import sample_prompts

    bundled = HERE / "sweeps" / f"{args.job}.toml"
    path = bundled if bundled.is_file() and not args.job.exists() else args.job
    jobs = runs_of(_values(path, args.changes), Path.cwd() if path == bundled else path.parent)
    _, _, backend = _prepared(jobs[0], args)
    columns, code = [], DONE
    for job in jobs:
        drawn = LastSamples()
        result, code = run_job(job, args, backend, drawn)
        measures = result.facts["validation"]
        columns.append((job.name, drawn.images, sample_prompts(job, result.facts["captions"]), min(m[1] for m in measures) if measures else None))
        if code != DONE:
            break
    place = args.out / f"{jobs[0].name.rpartition('_')[0]}-comparison.png"
    if any(images for _, images, _, _ in columns):
        sheet(columns).save(place)
        sys.stdout.write(f"{len(columns)} runs compared: {place}\n")
    return code


def _demo(args: argparse.Namespace) -> int:
    """Trains a bundled concept and writes the LoRA, the loss plot and a before/after grid."""
    from .lora_core.config import parse
    from .lora_core.messages.errors import LoomError
    from .lora_core.toy.concepts import CONCEPTS
    from .lora_core.training.demo import demo_job

    if args.picture_set not in CONCEPTS:
        raise LoomError("demo.no_set", field="--set", name=repr(args.picture_set), allowed=CONCEPTS)
    result, code = run_job(parse(demo_job(args.picture_set)), args)
    where = {"LoRA in WebUI form": result.file, "loss plot": result.folder / "loss.png", "before and after": result.folder / "before-after.png"}
    for label, path in where.items():
        sys.stdout.write(f"{label:20} {path}\n")
    return code


def _sample(args: argparse.Namespace) -> int:
    """Draws prompts with the base model, then with each LoRA or save of a run at each strength, onto one sheet."""
    from .convert.embedding import is_embedding, read_embedding
    from .convert.files.disk import load_any
    from .lora_core.backends.base import SampleJob
    from .lora_core.config import SampleConfig, check
    from .lora_core.messages.errors import LoomError
    from .lora_core.training.sampling import drawn, of_run, of_start, sheet

    if not args.prompt or not args.files:
        raise LoomError("sample.nothing_given", field="sample")
    for strength in args.strength:
        check("--strength", strength, float, {"low": -10.0, "high": 10.0, "choices": ()})
    _use_threads(args.threads)
    backend = _backend(args.base, args.companion, args.precision, base_config=args.base_config)
    missing = [path for path in args.files if not path.exists()]
    if missing:
        raise LoomError("sample.file_missing", field="sample", file=missing[0])
    loaded = {path: load_any(path)[0] for path in args.files if path.is_file()}
    words = [path for path, data in loaded.items() if is_embedding(data)]
    embeddings = {path.stem: read_embedding(loaded[path]).vectors for path in words}
    worn = []
    for path in (p for p in args.files if p not in words):
        worn += of_run(path, backend) if path.is_dir() else [of_start(path.stem, backend, _read_lora(path, backend), embeddings)]
    worn = worn or [of_start(", ".join(embeddings), backend, {}, embeddings)]
    config = SampleConfig(negative=args.negative, steps=args.steps, cfg=args.cfg, seed=args.seed)
    columns = drawn(worn, args.strength, [SampleJob(prompt, args.width, args.height or args.width, config) for prompt in args.prompt], backend)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(columns, args.prompt).save(args.out)
    sys.stdout.write(f"{len(columns)} x {len(args.prompt)} pictures: {args.out}\n")
    return DONE


def _push(args: argparse.Namespace) -> int:
    """Gathers what of a run is for others, with a model card, and uploads it where a repository is named."""
    from .convert.files.disk import header
    from .convert.report import triggers
    from .lora_core.runs.hub import About, gather

    results = sorted(args.run.glob("*.safetensors"))
    words = triggers(header(results[0])[1]) if results else ()
    target = args.out or args.run / "hub"
    files = gather(args.run, target, About(args.base_model, args.license, tuple(args.trigger or words)))
    sys.stdout.write(f"{len(files)} files: {target}\n")
    if args.repo:
        sys.stdout.write(f"{_uploaded(target, args.repo, args.private)}\n")
    return DONE


def _uploaded(folder: Path, repo: str, private: bool) -> str:
    """Uploads a folder and returns its address. The token is the one huggingface_hub knows (login or HF_TOKEN); it is never read here."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    from .lora_core.messages.errors import LoomError

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=url.repo_id, commit_message="LoRA trained with LoRA Loom")
    except LocalTokenNotFoundError as error:
        raise LoomError("hub.no_login", field="--repo") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise LoomError(
            "hub.not_uploaded", field="--repo", repo=repo, reason=str(error).splitlines()[0][:200]
        ) from error
    return str(url)


def _use_threads(count: int) -> None:
    if count:
        import torch

        torch.set_num_threads(count)


def _backend(base: str, companion: str, precision: str, device: str = "", base_config: str = "", storage: str = "auto", offload: float = 0.0) -> Any:
    """The headless backend of a base model, whose layers have the names that files give them."""
    import torch

    from .convert.results import kohya_name
    from .lora_core.backends.diffusers_backend import DiffusersBackend
    from .lora_core.backends.opening import open_backend

    narrow = storage != "auto" or bool(offload)
    backend = open_backend(base, companion, precision, "cpu" if narrow else device, base_config, _in_hub_cache)
    if narrow:
        backend.store(storage, offload, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(backend, DiffusersBackend):
        backend.name = kohya_name
    return backend


def _opened(config: TrainConfig, device: str) -> Any:
    """The base model of a job."""
    from .lora_core.messages.errors import LoomError

    if config.compile and config.offload:
        raise LoomError("compile.with_offload", field="compile")
    backend = _backend(config.base, config.companion, config.precision, device, config.base_config, config.storage, config.offload)
    backend.compile = config.compile
    return backend


def _in_hub_cache(repo: str) -> str | None:
    """The folder of a repository that was downloaded earlier; asks nobody."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot_download(repo, local_files_only=True)
    except LocalEntryNotFoundError:
        return None


def _prepared(config: TrainConfig, args: argparse.Namespace, backend: Any = None, device: str = "") -> tuple[TrainConfig, Any, Any]:
    """(config with its folders found, dataset, backend) of a headless job."""
    from .lora_core.data.sources import brought_in

    _use_threads(args.threads)
    config, dataset = brought_in(config, args.out)
    return config, dataset, backend or _opened(config, device)


def run_job(config: TrainConfig, args: argparse.Namespace, backend: Any = None, also: Any = None) -> tuple[Result, int]:
    """Trains `config` headless below `args.out`; a signal stops after the current step and keeps the result. Returns (result, exit code).

    `backend`: a model that is loaded already. `also`: one more listener.
    """
    import torch

    from .convert import products
    from .lora_core.events import Control, Listener, Listeners
    from .lora_core.messages.errors import LoomError
    from .lora_core.processes import launched
    from .lora_core.runs.folders import last_run, new_run, remove_if_untrained
    from .lora_core.runs.reports import ProgressBar
    from .lora_core.runs.state import recorded
    from .lora_core.runs.trackers import Tracker
    from .lora_core.training.trainer import train

    world = launched()
    with world.main_first():  # what a job brings in is brought in once
        config, dataset, backend = _prepared(config, args, backend, "cpu" if world.sharded else world.device)
    if world.sharded:
        _shard(backend, world)
    if world.main:
        sys.stdout.write(dataset.summary() + "\n")
    start = _start(config, backend)
    resume = getattr(args, "resume", False)
    folder = world.of_main((last_run(args.out, config.name) if resume else new_run(args.out, config.name)) if world.main else None)
    if folder is None:
        raise LoomError("resume.no_run_in", field="name", name=repr(config.name), folder=args.out)

    def export(state: dict[str, torch.Tensor], facts: dict[str, Any]) -> dict[str, Any]:
        return products(state, config.name, backend.family, facts)

    control, received = Control(), []

    def on_signal(number: int, frame: Any) -> None:
        received.append(number)
        control.stop_and_keep()
        signal.signal(number, before[number])  # a second one ends the program at once

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        if not world.main:
            result = train(config, backend, dataset, folder, export, Listener(), control, resume, start, world)
        else:
            with recorded(folder) as record, ProgressBar() as bar:
                trackers = [Tracker(name.strip(), folder.name, folder) for name in config.trackers.split(",") if name.strip()]
                listeners = Listeners([record, bar, *trackers, *([also] if also else [])])
                result = train(config, backend, dataset, folder, export, listeners, control, resume, start, world)
    except BaseException:
        if not resume and world.main:
            remove_if_untrained(folder)
        if received:
            sys.stderr.write("lora-loom: stopped\n")
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return result, 128 + received[0] if received else DONE


def _shard(backend: Any, world: Any) -> None:
    """Splits the model over the processes, where its backend can."""
    from .lora_core.backends.two_stage import KINDS
    from .lora_core.messages.errors import LoomError

    if backend.stored:
        raise LoomError("accelerate.stored", field="accelerate")
    if isinstance(backend, tuple(KINDS.values())):
        raise LoomError("accelerate.family", field="accelerate", family=backend.family)
    backend.shard(world.device)
    if world.main:
        sys.stdout.write(f"the frozen model is split over {world.size} processes (PyTorch FSDP2)\n")


def _start(config: TrainConfig, backend: Any) -> Any:
    """What adapter.start_from names, for the layers of this run; None without it."""
    if not config.adapter.start_from:
        return None
    from .lora_core.training.build import chosen_layers

    own, texts = chosen_layers(config, backend)
    return _read_lora(Path(config.adapter.start_from), backend, [*own, *texts], config.adapter.algorithm)


def _read_lora(path: Path, backend: Any, names: list[str] | None = None, algorithm: str = "") -> Any:
    """A LoRA file by the layers of the model; `names` are those it may have (all by default), `algorithm` the form it is brought into (its own by default)."""
    from .convert import FormatError
    from .convert.families import UNKNOWN, known_family
    from .convert.files.jobs import open_lora
    from .convert.results import starting_point

    try:
        lora = open_lora(path, known_family(backend.family))
    except FormatError:  # a model of unusual shape: the names are its own
        lora = open_lora(path, UNKNOWN)
    return starting_point(lora, names or [backend.file_name(p) for p in (*backend.layers(), *backend.text_layers())], algorithm)


if __name__ == "__main__":
    if not __package__:  # started by path: load the checkout as the package it is
        import importlib.util

        root = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location("lora_loom", root / "__init__.py", submodule_search_locations=[str(root)])
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["lora_loom"] = package
        spec.loader.exec_module(package)
        sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != root]  # our nodes/ must not shadow the host's nodes.py
        from lora_loom.__main__ import main
    sys.exit(main())
