"""Runs inside a WebUI's process: every method of the engine on the host's model, and what the host's options and pictures change in what is trained."""

import contextlib
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402

SAMPLES = {"prompt": "a photo of a cat", "every": 2, "steps": 4, "cfg": 5.0, "seed": 7, "width_px": 64, "height_px": 64}


def refused(**config):
    """Code and sentence of the refusal, and whether the model is what it was; the losses of a run where none came."""
    with proof.locked():
        try:
            losses = proof.trained(proof.config_of(**config))[2]
        except Exception as error:  # noqa: BLE001 - the test looks at it
            message = getattr(error, "message", None)
            return {"code": getattr(message, "code", type(error).__name__), "text": str(error)}
        return {"code": "", "text": "", "losses": losses}


def what_is_lent():
    with proof.locked():
        backend = proof.lend().backend
        base = backend.base_model(proof.config_of().objective)
        return {"family": backend.family, "prediction": base.predicts.prediction, "layers": len(backend.layers())}


# ---- noise levels and texts ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def option(**values):
    """The host's options with these values, as its page would set them."""
    from modules import shared

    before = {name: shared.opts.data[name] for name in values if name in shared.opts.data}
    shared.opts.data.update(values)
    try:
        yield
    finally:
        for name in values:
            shared.opts.data.pop(name)
        shared.opts.data.update(before)


def noise_levels(**options):
    """The last noise level trained and the one pictures begin at; the timesteps the network is told at four levels of the table."""
    with proof.locked(), option(**options):
        backend = proof.lend().backend
        objective = backend.objective(proof.config_of().objective)
        told, network = [], backend.network
        plain = network.forward

        def forward(x, timesteps=None, *arguments, **more):
            told.append(float(timesteps.flatten()[0]))
            return plain(x, timesteps, *arguments, **more)

        override = proof.package("lora_core.adapters.attach").override
        proof.picture()
        drawn = _largest_level_of_a_picture()
        levels = objective.levels(torch.linspace(0, 1, 5, dtype=torch.float64)[1:])
        table = getattr(objective.levels, "sigmas", None)
        for sigma in levels:
            with override(network, "forward", forward), backend.training({}, _no_adapters()), torch.no_grad():
                told.clear()
                proof._loss_at(backend, _of_one_level(objective, sigma))()
            sigma_told = told[-1]
            nearest = int((table.log() - sigma.log()).abs().argmin()) if table is not None else None
            assert nearest is None or abs(sigma_told - nearest) < 1e-3, (sigma_told, nearest)
        return {"last": float(objective.levels(torch.tensor([1.0], dtype=torch.float64))), "drawn": drawn}


def _no_adapters():
    return proof.package("lora_core.adapters").AdapterSet({})


def _of_one_level(objective, sigma):
    class One:
        levels = staticmethod(lambda u: sigma.expand(len(u)))
        corrupt, target = objective.corrupt, objective.target

    return One


def _largest_level_of_a_picture():
    """The first noise level of a picture, as the host's sampler sees it."""
    from modules import sd_samplers_kdiffusion

    seen, cls = [], sd_samplers_kdiffusion.KDiffusionSampler
    plain = cls.get_sigmas

    def get_sigmas(self, p, steps):
        sigmas = plain(self, p, steps)
        seen.append(float(sigmas[0]))
        return sigmas

    cls.get_sigmas = get_sigmas
    try:
        proof.picture()
    finally:
        cls.get_sigmas = plain
    return seen[-1]


def clip_skip(skip, caption="a photo of a dog"):
    """The largest difference between a caption as it is trained and as the host reads it in a prompt; without and after a picture."""
    with proof.locked(), option(CLIP_stop_at_last_layers=skip):
        differences, sizes = [], []
        for _ in range(2):
            backend = proof.lend().backend
            trained = _text(backend, caption)
            proof.picture()
            for ours, theirs in zip(trained, _text_of_host(caption)):
                differences.append(float((theirs[..., : ours.shape[-1]] - ours).abs().max()))
            sizes.append(float(trained[0].abs().mean()))
        return {"differences": differences, "mean": sizes[0], "text": trained[0].flatten()[:8].tolist()}


def _text(backend, caption):
    """[what the attention reads, the pooled text where there is one]."""
    if hasattr(backend, "captions"):
        made = backend.captions.of(caption)
        parts = [made["crossattn"], made.get("pooled")]
    else:
        hidden, more = backend.texts.text(caption)[0][:2]
        parts = [hidden, more.get("pooled_output")]
    return [part.float().cpu().clone() for part in parts if part is not None]


def _text_of_host(prompt):
    """The same, as the host reads a prompt of a picture."""
    from modules import prompt_parser, shared

    with torch.inference_mode():
        made = shared.sd_model.get_learned_conditioning(prompt_parser.SdConditioning([prompt], width=64, height=64))
    parts = [made["crossattn"], made["vector"]] if isinstance(made, dict) else [made]
    return [part.float().cpu() for part in parts]


# ---- what pictures leave ---------------------------------------------------------------------------------------------


def after_a_picture(left):
    """Losses and weights of a run that follows a picture with this."""
    with contextlib.ExitStack() as undo:
        undo.enter_context(proof.locked())
        globals()[f"_leave_{left}"](undo)
        lent, result, losses = proof.trained(proof.config_of())
        return {"losses": losses, "tensors": proof._tensors(result.file), "said": [m.code for m in lent.settled]}


def _leave_clip_skip(undo):
    undo.enter_context(option(CLIP_stop_at_last_layers=1))  # the hosts restore only options that have been set once
    proof.picture(override_settings={"CLIP_stop_at_last_layers": 2})


def _leave_emphasis(undo):
    undo.enter_context(option(emphasis="No norm"))
    proof.picture("a (cat:1.4) [old] AND a dog")


def _leave_token_merging(undo):
    undo.enter_context(option(token_merging_ratio=0.0))
    proof.picture(override_settings={"token_merging_ratio": 0.5})


def _leave_embedding(undo):
    """One whose name is a word of the captions."""
    from modules import shared
    from safetensors.torch import save_file

    host = proof.package("nodes.webui.engine.host")
    folder = Path(shared.cmd_opts.embeddings_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "dog.safetensors"
    save_file({"emb_params": torch.randn(2, 768, generator=torch.Generator().manual_seed(1))}, file)

    def without():
        file.unlink()
        host.refresh_lists()

    host.refresh_lists()
    undo.callback(without)
    proof.picture("a dog")


def _leave_hypernetwork(undo):
    """By a file in the host's folder and its name in a prompt. Forge and reForge load it, and draw without."""
    from modules import shared
    from modules.hypernetworks import hypernetwork

    folder = Path(shared.cmd_opts.hypernetwork_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "left.pt"
    undo.callback(shared.reload_hypernetworks)
    undo.callback(file.unlink)
    undo.callback(lambda: hypernetwork.load_hypernetworks([], []))
    made = hypernetwork.Hypernetwork("left", [768], layer_structure=[1, 2, 1], weight_init="XavierNormal")
    made.save(str(file))
    shared.reload_hypernetworks()
    image = proof.picture("a photo of a cat")[0]
    other = proof.picture("a photo of a cat <hypernet:left:1>")[0]
    assert shared.loaded_hypernetworks
    assert (proof.difference(image, other)["max"] > 0) == (proof.host() == "A1111")


def _leave_another_vae(undo):
    """Drawn with, and taken back."""
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp())
    undo.callback(shutil.rmtree, folder)
    backend = proof.lend().backend
    before = backend.picture_fingerprint()
    model = proof.package("nodes.webui.engine.host").loaded_model()
    holder = model.forge_objects.vae if proof.host() == "FORGE" else model
    weights = holder.first_stage_model.state_dict()
    file = folder / "other.safetensors"
    save_file({k: (v * 0.9).contiguous().clone() for k, v in weights.items()}, file)
    _with_vae(file)
    try:
        proof.picture()
        assert proof.lend().backend.picture_fingerprint() != before
    finally:
        _with_vae(None)
    assert proof.lend().backend.picture_fingerprint() == before


def _with_vae(file):
    """The host draws with this VAE from now on, or with the checkpoint's own."""
    if proof.host() == "FORGE":
        from modules_forge import main_entry

        if file is not None:
            main_entry.module_list[file.name] = str(file)
        main_entry.modules_change([str(file)] if file is not None else [], save=False)
        return
    from modules import sd_vae

    model = proof.package("nodes.webui.engine.host").loaded_model()
    sd_vae.reload_vae_weights(model, vae_file=None if file is None else str(file))


# ---- methods ---------------------------------------------------------------------------------------------------------


def samples():
    """The picture before any training beside the one the host draws, and the one after it."""
    with proof.locked():
        events, drawn = proof.package("lora_core.events"), []

        class Drawn(events.Listener):
            def on_sample(self, step, images, path):
                drawn.append((step, images[0].convert("RGB")))

        image = proof.picture("a photo of a cat")[0]
        proof.trained(proof.config_of(samples=SAMPLES, optimizer={"lr": 1e-2}), listener=Drawn())
        return {
            "steps": [step for step, _ in drawn], "before": proof.difference(drawn[0][1], image),
            "after": proof.difference(drawn[-1][1], image),
        }  # fmt: skip


def prior():
    """Class pictures: how many were drawn, how far they are from the host's own, and what they change."""
    from PIL import Image

    with proof.locked():
        root = Path(tempfile.mkdtemp(prefix="loom_prior_"))
        without = proof.trained(proof.config_of())[2]
        wanted = {"prompt": "a photo of a cat", "count": 2, "steps": 4, "cfg": 5.0}
        config = proof.config_of(prior=wanted)
        losses = proof.trained(config, root)[2]
        files = sorted((root / "class_pictures").glob("*.png"))
        package = proof.package("lora_core.rng")
        own = [proof.picture("a photo of a cat", seed=package.derive(config.seed, "class picture", "a photo of a cat", n))[0] for n in range(2)]  # fmt: skip
        made = [Image.open(file).convert("RGB") for file in files]
        apart = [min(proof.difference(image, other)["max"] for other in own) for image in made]
        again = proof.trained(config, root, resume=False)[2]
        kept = len(list((root / "class_pictures").glob("*.png")))
        return {"without": without, "losses": losses, "again": again, "drawn": len(files), "apart": apart, "kept": kept}


def masks():
    """Losses without masks, and with ones of half of each picture that leave the rest out not at all, and wholly."""
    from PIL import Image

    with proof.locked():
        losses = []
        for kind, floor in (("none", 0.0), ("file", 1.0), ("file", 0.0)):
            folder = Path(tempfile.mkdtemp(prefix="loom_masks_"))
            for file in proof.pictures_folder().iterdir():
                shutil.copy(file, folder / file.name)
                if file.suffix == ".png" and kind != "none":
                    size = Image.open(file).size
                    mask = Image.new("L", size, 255)
                    mask.paste(0, (0, 0, size[0] // 2, size[1]))
                    mask.save(folder / f"{file.stem}.mask.png")
            data = {"folder": str(folder), "masks": kind, "mask_floor": floor}
            losses.append(proof.trained(proof.config_of(data=data))[2])
        return losses


def validation():
    with proof.locked():
        events, seen = proof.package("lora_core.events"), []

        class Seen(events.Listener):
            def on_validation(self, measure, best):
                seen.append((measure.step, measure.held_out, measure.trained))

        watch = {"every": 2, "pictures": 2, "levels": 2, "share": 0.3, "restore_best": True}
        proof.trained(proof.config_of(validation=watch), listener=Seen())
        again = list(seen)
        seen.clear()
        proof.trained(proof.config_of(validation=watch), listener=Seen())
        return {"first": again, "second": seen}


def embedding_file(**config):
    """The picture with the trained token still in the model, and the one with the written files in the host's folders."""
    from modules import shared

    with proof.locked():
        events, base = proof.package("lora_core.events"), proof.package("lora_core.backends.base")
        host, sample = proof.package("nodes.webui.engine.host"), proof.package("lora_core.config").SampleConfig
        live, name = {}, f"loomtoken{secrets.token_hex(3)}"
        asked = proof.config_of(**{"steps": 6, "optimizer": {"lr": 5e-3}, **config})
        asked = proof.package("lora_core.config").parse({**_values(asked), "name": name})
        job = base.SampleJob("a photo of TOK", 64, 64, sample(seed=7, steps=4, cfg=5.0, sampler="euler"))

        class Keeper(events.Listener):
            backend = None

            def on_step(self, report):
                if report.step == asked.steps:
                    live["picture"] = self.backend.sample(job)[0]
                    live["text"] = _text(self.backend, job.prompt)[0]

        proof.picture()  # the host finishes some parts of a model with the first one
        lent = proof.lend()
        before = proof.digest(lent.backend)
        unlearned = lent.backend.sample(job)[0]
        lent, result, losses = proof.trained(asked, listener=Keeper())
        lent.settle()
        changed = sum(before[k] != v for k, v in proof.digest(lent.backend).items())
        embeddings, loras, placed = Path(shared.cmd_opts.embeddings_dir), host.loras_folder(), []
        prompt = ["a photo of"]
        for file in result.files:
            tokens = "emb_params" in _names_in(file) or "clip_l" in _names_in(file)
            folder = embeddings if tokens else loras
            folder.mkdir(parents=True, exist_ok=True)
            placed.append(Path(shutil.copy(file, folder / f"{name}{'' if tokens else 'lora'}.safetensors")))
            prompt.append(name if tokens else f"<lora:{name}lora:1>")
        try:
            host.refresh_lists()
            drawn, text = proof.picture(" ".join(prompt))[0], _text_of_host(f"a photo of {name}")[0]
            untrained = _text_of_host("a photo of TOK")[0]
        finally:
            for file in placed:
                file.unlink()
            host.refresh_lists()
            lent.settle()
        apart, moved = (float((text - other).abs().max()) for other in (live["text"], untrained))
        return {
            "live_vs_plain": proof.difference(live["picture"], unlearned), "file_vs_live": proof.difference(drawn, live["picture"]), "files": len(placed),
            "text_apart": apart, "text_moved": moved, "changed": changed,
        }  # fmt: skip


def _values(config):
    return {k: v for k, v in proof.package("lora_core.config").as_dict(config).items()}


def _names_in(file):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return set(opened.keys())


def learning_rate():
    """The points of a test of learning rates, and whether the model is what it was."""
    with proof.locked():
        job, session = proof.package("lora_core.training.job"), proof.package("lora_core.training.lr_range")
        proof.picture()  # reForge takes a LoRA of the last picture out of the weights with the next one
        lent = proof.lend()
        lent.settle()
        before, config = proof.digest(lent.backend), proof.config_of()
        dataset = proof.package("lora_core.data.folder").open_sets(config)
        found = session.lr_range(job.Job(config, lent.backend, dataset, Path(tempfile.mkdtemp())), session.Trial(1e-5, 1e-1, 8))  # fmt: skip
        after = proof.digest(lent.backend)
        return {"points": found.points, "changed": sum(after[k] != v for k, v in before.items())}


def sweep():
    """Three runs on one lent model: two that are the same, and one that differs, and a sheet of their samples."""
    with proof.locked():
        package, config = proof.package("lora_core.training.sweep"), proof.config_of(samples={**SAMPLES, "every": 4})
        values = {k: v for k, v in _values(config).items() if k != "name"}
        runs = [{"name": "a"}, {"name": "b"}, {"name": "c", "adapter": {"rank": 2}}]
        backend, columns, losses = proof.lend().backend, [], []
        root = Path(tempfile.mkdtemp(prefix="loom_sweep_"))
        for one in package.runs_of({**values, "name": "sweep", "runs": runs}, root):
            last = package.LastSamples()
            losses.append(proof.losses_of(backend, one, root, None, last)[1])
            columns.append((one.name, last.images, ["a photo of a cat"], None))
        return {"losses": losses, "sheet": package.sheet(columns).size}


def planned():
    """What the check before a run says."""
    with proof.locked():
        job, assemble = proof.package("lora_core.training.job"), proof.package("lora_core.training.assemble")
        config = proof.config_of()
        backend, dataset = proof.lend().backend, proof.package("lora_core.data.folder").open_sets(config)
        return str(assemble.dry_run(job.Job(config, backend, dataset, Path(tempfile.mkdtemp()))))
