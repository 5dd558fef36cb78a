"""Runs inside a WebUI's process: what was there before and after, and exact gradients to compare with."""

import contextlib
import hashlib
import secrets
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F


def package(name):
    import importlib

    return importlib.import_module(f"lora_loom.{name}")


def host():
    return package("nodes.webui.engine.host").webui_here().name


def lend():
    return package("nodes.webui.engine.lent").lent_model()


def first_checkpoint():
    """Waits for the one that A1111 loads in a thread at its start; another one loaded meanwhile would leave it without weights."""
    if host() == "A1111":
        package("nodes.webui.engine.host").wanted_model()


def parts(backend):
    """Everything of the host's model that a run could touch."""
    if host() == "A1111":
        return {"model": backend.model}
    objects = package("nodes.webui.engine.host").loaded_model().forge_objects
    return {"unet": objects.unet.model, "clip": objects.clip.cond_stage_model, "vae": objects.vae.first_stage_model}


def digest(backend):
    """{name: hash of the bytes} of every parameter and buffer."""
    out = {}
    with torch.inference_mode():
        for part, module in parts(backend).items():
            for name, value in [*module.named_parameters(), *module.named_buffers()]:
                value = value.detach().cpu().contiguous()
                data = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
                out[f"{part}.{name}"] = hashlib.sha256(data).hexdigest()
    return out


def tree(backend):
    """Beside weights: classes, own attributes, hooks, flags."""
    out = {}
    for part, module in parts(backend).items():
        for name, m in module.named_modules():
            flags = tuple((k, p.requires_grad, p.is_inference()) for k, p in m._parameters.items() if p is not None)
            hooks = len(m._forward_pre_hooks), len(m._forward_hooks)
            out[f"{part}.{name}"] = (type(m).__name__, tuple(sorted(m.__dict__)), hooks, m.training, flags)
    return out


def picture(prompt="a photo of a cat", size=64, seed=7, **more):
    from modules import processing, shared

    request = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, prompt=prompt, negative_prompt="", seed=seed, steps=4, cfg_scale=5, width=size, height=size,
        sampler_name="Euler", do_not_save_samples=True, do_not_save_grid=True, **more,
    )  # fmt: skip
    request.scripts = None
    if type(shared.sd_model).__name__ == "Flux":
        request.scheduler = "Simple"
    if host() == "REFORGE":
        from modules.scripts import ScriptRunner

        request.scripts, request.script_args = ScriptRunner(), ()
    with contextlib.closing(request):
        image = processing.process_images(request).images[0].convert("RGB")
    return image, hashlib.sha256(image.tobytes()).hexdigest()[:16]


def difference(a, b):
    import numpy as np

    d = np.abs(np.asarray(a, dtype=np.int16) - np.asarray(b, dtype=np.int16))
    return {"max": int(d.max()), "mean": round(float(d.mean()), 5)}


def pictures_folder(count=6, size=64):
    """A few pictures with captions."""
    from PIL import Image

    folder = Path(tempfile.gettempdir()) / f"loom_pictures_{count}_{size}"
    folder.mkdir(exist_ok=True)
    rng = torch.Generator().manual_seed(3)
    for n in range(count):
        small = torch.randint(0, 255, (6, 6, 3), generator=rng, dtype=torch.uint8).numpy()
        Image.fromarray(small).resize((size, size + 16 * (n % 2)), Image.BICUBIC).save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"a (photo) of [sks] dog number {n}")
    return folder


def config_of(**more):
    values = {
        "name": "proof", "base": "webui", "steps": 4, "batch_size": 2, "cache": {"disk": False},
        "data": {"folder": str(pictures_folder()), "resolution": 64, "bucket_step_px": 16},
        "adapter": {"rank": 4, "targets": "attention"}, "optimizer": {"lr": 1e-3}, "save": {"every": 1000}, "samples": {"every": 0},
    }  # fmt: skip
    for key, value in more.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    return package("lora_core.config").parse(values)


@contextlib.contextmanager
def locked():
    from modules.call_queue import queue_lock

    with queue_lock:
        yield


def _sample_job(prompt="a photo of a cat"):
    """What `picture` asks for, as the engine asks."""
    base, config = package("lora_core.backends.base"), package("lora_core.config")
    return base.SampleJob(prompt, 64, 64, config.SampleConfig(seed=7, steps=4, cfg=5.0, sampler="euler"))


def trained(config, folder=None, control=None, listener=None, resume=False):
    """(the lent model, result, losses) of one run on it."""
    lent = lend()
    if listener is not None and hasattr(listener, "backend"):
        listener.backend = lent.backend
    return (lent, *losses_of(lent.backend, config, folder, control, listener, resume))


def losses_of(backend, config, folder=None, control=None, listener=None, resume=False):
    """(result, losses) of one run on a backend of any door, or of what was left of the run in `folder`."""
    job, session = package("lora_core.training.job"), package("lora_core.training.session")
    formats, events = package("nodes.jobs.formats"), package("lora_core.events")
    root = Path(folder or tempfile.mkdtemp(prefix="loom_proof_"))
    dataset = package("lora_core.data.folder").open_sets(config)
    place = session.run_folder(root, config.name, resume, package("lora_core.processes").ALONE)
    losses = []

    class Losses(events.Listener):
        def on_step(self, report):
            losses.append(round(report.loss, 6))

    members = [Losses(), *([listener] if listener else [])]
    a_job = job.Job(config, backend, dataset, root, events.Listeners(members), control or events.Control())
    result = session.Session(a_job, place, formats.exporter(place.name, backend.family), resume).train()
    return result, losses


def integrity(**config):
    """A run, and what of the host differs after it."""
    with locked():
        lent = lend()
        backend = lent.backend
        image, name = picture()
        _, again = picture()
        lent.settle()
        before, shape = digest(backend), tree(backend)
        began = time.time()
        lent, result, losses = trained(config_of(**config))
        took = time.time() - began
        after, now = digest(backend), tree(backend)
        _, last = picture()
        return {
            "family": backend.family, "settled": [str(m) for m in lent.settled], "losses": losses, "seconds": round(took, 2), "tensors": len(result.tensors),
            "picture_repeats": name == again, "changed": sum(before[k] != after.get(k) for k in before), "weights": len(before),
            "tree": [(k, str(shape[k]), str(now.get(k))) for k in shape if shape[k] != now.get(k)][:3], "picture_same": last == name, "file": str(result.file),
        }  # fmt: skip


def losses(**config):
    with locked():
        return trained(config_of(**config))[2]


def _norm(grads):
    return torch.stack([g.float().norm() for g in grads]).norm()


def _layers_and_adapters(backend, config):
    layers, adapters = package("lora_core.training.build").make_adapters(config, backend, "", None)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, p in adapters.named_parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.02)
    return layers, adapters


def _loss_at(backend, objective, word="dog"):
    batches, buckets = package("lora_core.data.batches"), package("lora_core.data.buckets")
    rng = torch.Generator().manual_seed(1)
    channels = backend._channels() if hasattr(backend, "_channels") else 4
    latents, noise = (torch.randn(2, channels, 8, 8, generator=rng).to(backend.device) for _ in range(2))
    size = buckets.Fit((64, 64), (64, 64), (0, 0), (64, 64))
    captions, shown = [f"a (photo) of [sks] {word}", f"sks {word}, sitting"], _shown(backend, latents)
    batch = batches.Batch(latents, captions, [size] * 2, ["a", "b"], torch.ones(2), shown=shown)
    sigma = objective.levels(torch.tensor([0.3, 0.7], dtype=torch.float64)).to(backend.device)
    x_t, target = objective.corrupt(latents, noise, sigma), objective.target(latents, noise, sigma)
    return lambda: F.mse_loss(backend.predict(x_t, sigma, batch).float(), target)


def _shown(backend, latents):
    """What a model that is shown pictures is shown of these latents."""
    showing, rng = getattr(backend, "showing", lambda: None)(), torch.Generator().manual_seed(2)
    if showing is None:
        return ()
    kind, out = package("lora_core.data.shown").Shown, []
    for n in range(len(latents)):
        mask = (torch.rand(1, 1, 64, 64, generator=rng) > 0.5).float() if showing.filled else None
        other = torch.randn(1, *latents.shape[1:], generator=rng)
        out.append(kind((other,), (), f"proof {n}", mask))
    return out


def _merged(backend, layer, adapter):
    """The layer with the adapter's change in its weight: another way to the same function."""
    with backend.weight(layer) as (weight, bias):
        weight, bias = weight.clone(), None if bias is None else bias.clone()

    def forward(x, *args, **kwargs):
        change = (adapter.lora_up.flatten(1) @ adapter.lora_down.flatten(1)) * adapter.scale
        return F.linear(x, (weight + change).to(x.dtype), None if bias is None else bias.to(x.dtype))

    return forward


def gradients(attentions=(), **config):
    """Relative error of all adapter gradients together against plain autograd through merged weights, for each way of attention."""
    with locked(), torch.inference_mode(False), torch.enable_grad():
        backend = lend().backend
        asked = config_of(**config)
        objective = backend.objective(asked.objective)
        layers, adapters = _layers_and_adapters(backend, asked)
        members = dict(adapters)
        params = [p for _, p in adapters.named_parameters()]
        loss = _loss_at(backend, objective)
        override = package("lora_core.adapters.attach").override_forward
        empty, errors, reference = package("lora_core.adapters").AdapterSet({}), {}, None
        for attention in ["plain", *attentions]:
            with _attention(attention):
                if reference is None:
                    with backend.training({}, empty), contextlib.ExitStack() as undo:
                        with torch.no_grad():
                            loss()  # everything is encoded and loaded before the layers are replaced
                        for name, layer in layers.items():
                            undo.enter_context(override(layer, _merged(backend, layer, members[name])))
                        reference = torch.autograd.grad(loss(), params)
                with backend.training(layers, adapters):
                    adapters.prepare()
                    grads = torch.autograd.grad(loss(), params)
            errors[attention] = float(_norm([a - b for a, b in zip(grads, reference)]) / _norm(reference))
        return errors


@contextlib.contextmanager
def _attention(name):
    """The host's attention of this name, `plain` meaning the original one."""
    if host() == "A1111":
        from modules import sd_hijack

        if name == "plain":
            sd_hijack.undo_optimizations()
        else:
            chosen = next(o for o in sd_hijack.optimizers if o.name == name)
            with contextlib.redirect_stdout(sys.stderr):
                sd_hijack.apply_optimizations(chosen.title())
        try:
            yield
        finally:
            sd_hijack.apply_optimizations()
        return
    if host() == "FORGE":
        import backend.nn.unet as unet
        from backend import attention

        before = unet.attention_function
        unet.attention_function = getattr(attention, "attention_basic" if name == "plain" else name)
        try:
            yield
        finally:
            unet.attention_function = before
        return
    if host() == "CLASSIC":
        from ldm_patched.ldm.modules import attention

        before = attention.optimized_attention
        attention.optimized_attention = getattr(attention, "attention_basic" if name == "plain" else name)
        is_absent = not hasattr(attention, "sageattn")
        if is_absent:
            attention.sageattn = _without_gradients
        try:
            yield
        finally:
            attention.optimized_attention = before
            if is_absent:
                del attention.sageattn
        return
    yield


def _without_gradients(q, k, v, tensor_layout, **more):
    """What SageAttention is to autograd, on any device."""
    assert tensor_layout == "NHD"
    q, k, v = (x.detach().transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def file_against_live(**config):
    """The picture with adapters still attached, and the one with the written file in the prompt; how many modules the host matched."""
    import shutil

    with locked():
        live = {}
        events = package("lora_core.events")
        lent = lend()
        backend = lent.backend
        picture()  # the host finishes some parts of a model with the first one
        lent.settle()
        before = digest(backend)
        asked = config_of(**{"steps": 6, "optimizer": {"lr": 5e-3}, **config})

        class Keeper(events.Listener):
            """The last step's listener: the trained branches are still on."""

            backend = None

            def on_step(self, report):
                if report.step == asked.steps:
                    live["picture"] = self.backend.sample(_sample_job())[0]

        keeper = Keeper()
        lent, result, losses = trained(asked, listener=keeper)
        name = f"loom_file_{secrets.token_hex(4)}"  # the host keeps texts by prompt, whatever the file held then
        folder = package("nodes.webui.engine.host").loras_folder()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(result.file, folder / f"{name}.safetensors")
        try:
            networks = package("nodes.webui.engine.host").lora_extension()
            networks.list_available_networks()
            plain = backend.sample(_sample_job())[0]
            drawn = picture(f"a photo of a cat <lora:{name}:1>")[0]
            matched = _matched(networks)
            if host() == "REFORGE":  # whose own sampler is not the one that live pictures come from
                objects = package("nodes.webui.engine.host").loaded_model().forge_objects
                other = type(backend)(objects.unet, objects.clip, objects.vae)
                other.texts.reading = backend.texts.reading
                drawn = other.sample(_sample_job())[0]
                _unloaded()
            lent.settle()
            changed = sum(before[k] != v for k, v in digest(backend).items())
        finally:
            (folder / f"{name}.safetensors").unlink()
        return {
            "file_vs_live": difference(drawn, live["picture"]), "live_vs_plain": difference(live["picture"], plain),
            "matched": matched, "adapters": _layers_in(result), "changed": changed, "losses": losses,
        }  # fmt: skip


def _layers_in(result):
    """How many layers a file speaks of; in diffusers' names parts of a fused layer stand for themselves, so the run is asked."""
    written = {name.partition(".lora_down")[0] for name in result.tensors if ".lora_down" in name}
    return len(written) or result.facts["layers"]


def _matched(networks):
    if host() == "A1111":
        return sum(len(n.modules) for n in networks.loaded_networks)
    objects = package("nodes.webui.engine.host").loaded_model().forge_objects
    patches = lambda patcher: getattr(patcher, "lora_patches", None) or {"": getattr(patcher, "patches", {})}
    return sum(len(p) for patcher in (objects.unet, objects.clip.patcher) for p in patches(patcher).values())


def _unloaded():
    """reForge takes patches off its weights when it unloads a model."""
    import ldm_patched.modules.model_management as management

    management.unload_all_models()


def direction(**config):
    """The derivative of the loss along a random direction of all trained values: by gradients, and by central differences."""
    with locked(), torch.inference_mode(False), torch.enable_grad():
        backend = lend().backend
        asked = config_of(**config)
        objective = backend.objective(asked.objective)
        layers, adapters = _layers_and_adapters(backend, asked)
        params = [p for _, p in adapters.named_parameters()]
        loss = _loss_at(backend, objective, "TOK" if len(adapters.tokens) else "dog")
        rng = torch.Generator().manual_seed(9)
        along = [torch.randn(p.shape, generator=rng).to(p) * float(p.detach().std().clamp_min(1e-3)) for p in params]
        with backend.training(layers, adapters):
            adapters.prepare()
            grads = torch.autograd.grad(loss(), params, allow_unused=True)
            by_gradient = sum(float((g * d).sum()) for g, d in zip(grads, along) if g is not None)
            values, step = [], 2e-2
            with torch.no_grad():
                for sign in (1, -2):
                    for p, d in zip(params, along):
                        p.add_(d, alpha=sign * step)
                    adapters.weights_changed()
                    values.append(float(loss()))
        by_difference = (values[0] - values[1]) / (2 * step)
        names = [name for name, _ in adapters.named_parameters()]
        without = sorted({n.split(".")[0] for n, g in zip(names, grads) if g is None or not g.any()})
        return {"by_gradient": by_gradient, "by_difference": by_difference, "without": without, "of": len({n.split(".")[0] for n in names})}  # fmt: skip


def pictures():
    return str(pictures_folder())


def packages():
    """Name and version of everything installed."""
    from importlib import metadata

    return sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())


def whose_modules():
    """Where our package comes from, though a neighbour has taken the names of its folders."""
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in ("nodes", "convert", "lora_core")}
    return {"package": package("nodes.webui.page").__name__, **files}


def after_leftovers(leftovers, **config):
    return after(*leftovers, **config)


def after(*leftovers, **config):
    """Losses of a run that follows a picture with these leftovers, and what it said it took out."""
    import shutil

    with locked():
        folder = package("nodes.webui.engine.host").loras_folder()
        lora, made = f"loom_left_{secrets.token_hex(4)}", None
        if "lora" in leftovers:
            _, result, _ = trained(config_of(steps=2, optimizer={"lr": 1e-2}))
            folder.mkdir(parents=True, exist_ok=True)
            made = shutil.copy(result.file, folder / f"{lora}.safetensors")
            package("nodes.webui.engine.host").lora_extension().list_available_networks()
        more = {"tiling": True} if "tiling" in leftovers else {}
        prompt = f"a cat <lora:{lora}:1>" if made else "a cat"
        for _ in leftovers[:1]:
            picture(prompt, **more)
        try:
            lent, result, losses = trained(config_of(**config))
        finally:
            if made:
                Path(made).unlink()
        said = [m.code for m in lent.settled]
        return {"losses": losses, "said": said, "tensors": _tensors(result.file)}


def _tensors(file):
    """Hash of the weights in a file, whatever its header says."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, value in sorted(load_file(file).items()):
        digest.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def ending(how):
    """What of the host differs after a run that ended in this way; whether its work was kept."""
    with locked():
        events = package("lora_core.events")
        lent = lend()
        backend = lent.backend
        _, name = picture()
        lent.settle()
        before, shape = digest(backend), tree(backend)
        control = events.Control()

        class Ends(events.Listener):
            def on_step(self, report):
                if report.step == 2:
                    {"cancel": self.cancel, "stop": control.stop_and_keep, "pause": control.pause}.get(how, self.fail)()

            def cancel(self):
                raise KeyboardInterrupt("cancelled on purpose")

            def fail(self):
                if how == "error":
                    raise RuntimeError("broken on purpose")

        root = Path(tempfile.mkdtemp(prefix="loom_ending_"))
        error = ""
        try:
            trained(config_of(checkpointing=True, steps=3), root, control, Ends())
        except BaseException as caught:  # noqa: BLE001 - the test looks at it
            error = type(caught).__name__
        after, now = digest(backend), tree(backend)
        return {
            "error": error, "changed": sum(before[k] != after.get(k) for k in before), "picture_same": picture()[1] == name,
            "tree": [(k, str(shape[k]), str(now.get(k))) for k in shape if shape[k] != now.get(k)][:3],
            "kept": [p.name for p in sorted(root.glob("proof/*.safetensors"))],
        }  # fmt: skip


def size_matters():
    """Whether the network's answer follows the picture's size and the place of its crop, and the same ones give the same."""
    buckets = package("lora_core.data.buckets")
    with locked():
        backend = lend().backend
        objective = backend.objective(config_of().objective)
        rng = torch.Generator().manual_seed(1)
        x_t, sigma = torch.randn(1, 4, 8, 8, generator=rng), objective.levels(torch.tensor([0.5], dtype=torch.float64))
        texts = backend.captions.of("a dog")

        def answer(original, crop):
            fit = buckets.Fit(original, (64, 64), crop, (64, 64))
            with torch.no_grad():
                return backend.ask(x_t, sigma, texts, [fit], None).clone()

        plain = answer((64, 64), (0, 0))
        others = [
            answer((512, 64), (0, 0)),
            answer((64, 512), (0, 0)),
            answer((64, 64), (16, 0)),
            answer((64, 64), (0, 16)),
        ]
        different = len({tuple(o.flatten()[:8].tolist()) for o in [plain, *others]}) == 5
        return different and torch.equal(plain, answer((64, 64), (0, 0)))


def reload_page():
    """What the button Reload UI does."""
    from modules import shared

    shared.state.request_restart()


def fp8(proof, **arguments):
    """Another proof with the weights of the network stored in eight bits."""
    from modules import sd_models, shared

    with locked():
        lend()  # the first checkpoint may still be loading
    shared.opts.data["fp8_storage"] = "Enable"
    try:
        with locked():
            sd_models.reload_model_weights(forced_reload=True)
        stored = {str(p.dtype) for p in lend().backend.network.parameters()}
        return {"stored": sorted(stored), **globals()[proof](**arguments)}
    finally:
        shared.opts.data["fp8_storage"] = "Disable"
        with locked():
            sd_models.reload_model_weights(forced_reload=True)
