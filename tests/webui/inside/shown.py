"""Runs inside a WebUI's process: models that are shown a picture beside their noise, against what the host itself shows them."""

import contextlib
import importlib
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

PX, LATENT = 64, 4


def folder_of(filled):
    """One picture with its caption, and a mask whose white is filled, or the picture that it is an edit of."""
    folder = Path(tempfile.mkdtemp(prefix="loom_shown_"))
    rng = torch.Generator().manual_seed(5)
    target, source = (
        Image.fromarray(torch.randint(0, 255, (6, 6, 3), generator=rng, dtype=torch.uint8).numpy()).resize((PX, PX), Image.BICUBIC)
        for _ in range(2)
    )  # fmt: skip
    target.save(folder / "a.png")
    (folder / "a.txt").write_text("a photo of a cat")
    if filled:
        mask = Image.new("L", (PX, PX))
        ImageDraw.Draw(mask).rectangle((8, 16, 39, 47), fill=255)
        mask.save(folder / "a.mask.png")
        return folder, {"input_mask": "file"}
    (folder / "control").mkdir()
    source.save(folder / "control" / "a.png")
    return folder, {"controls": "auto"}


def job_on(filled, **more):
    folder, how = folder_of(filled)
    return folder, proof.config_of(batch_size=1, data={"folder": str(folder), **how}, **more)


@contextlib.contextmanager
def further_channels():
    """A list of what the network reads behind the noise, of each call."""
    seen, network = [], proof.lend().backend.network
    plain = network.forward

    def forward(x, *arguments, **more):
        seen.append(x.detach()[:, LATENT:].float().cpu().clone())
        return plain(x, *arguments, **more)

    with proof.package("lora_core.adapters.attach").override(network, "forward", forward):
        yield seen


@contextlib.contextmanager
def without_chance():
    """The VAE of the host gives the mean of its distribution; the host's img2img draws from it."""
    with contextlib.ExitStack() as undo:
        if proof.host() != "FORGE":
            place = "ldm_patched.ldm" if proof.host() in ("REFORGE", "CLASSIC") else "ldm"
            distributions = importlib.import_module(f"{place}.modules.distributions.distributions")
            spread = distributions.DiagonalGaussianDistribution
            undo.callback(setattr, spread, "sample", spread.sample)
            spread.sample = spread.mode
        else:
            network = proof.package("nodes.webui.engine.host").loaded_model().forge_objects.vae.first_stage_model
            encode = network.encode
            override = proof.package("lora_core.adapters.attach").override
            undo.enter_context(
                override(network, "encode", lambda x, regulation=None: encode(x, lambda spread: spread.mode()))
            )
        yield


def by_the_host(folder, filled):
    """What the host itself shows the network of the picture in `folder`: by its img2img, or an edit model in reForge by the node for those."""
    if proof.host() == "REFORGE" and not filled:
        return by_node(folder)
    return by_img2img(folder, filled)


def by_node(folder):
    """Of an edit model, by reForge's copy of ComfyUI's node and sampler: as its source reads, its img2img asks latents for the mode of a distribution."""
    import numpy as np
    from ldm_patched.contrib.nodes_ip2p import InstructPixToPixConditioning
    from ldm_patched.modules import sample
    from modules import shared

    objects = shared.sd_model.forge_objects
    pixels = torch.from_numpy(np.asarray(Image.open(folder / "control" / "a.png"), dtype="float32") / 255)[None]
    text = [[torch.zeros(1, 77, 768), {}]]
    with further_channels() as seen, without_chance():
        positive, negative, latent = InstructPixToPixConditioning().encode(text, text, pixels, objects.vae)
        noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(7))
        sample.sample(objects.unet, noise, 1, 5.0, "euler", "normal", positive, negative, latent["samples"], seed=7)
    return seen[0][:1]


def by_img2img(folder, filled):
    """As whoever uses the host has it drawn."""
    from modules import processing, shared

    mask = Image.open(folder / "a.mask.png") if filled else None
    request = processing.StableDiffusionProcessingImg2Img(
        sd_model=shared.sd_model, prompt="a photo of a cat", seed=7, steps=1, cfg_scale=5, width=PX, height=PX, sampler_name="Euler",
        init_images=[Image.open(folder / ("a.png" if filled else "control/a.png")).convert("RGB")], mask=mask, mask_blur=0, inpainting_fill=1,
        inpaint_full_res=False, denoising_strength=1.0, do_not_save_samples=True, do_not_save_grid=True,
    )  # fmt: skip
    request.scripts, request.image_cfg_scale = None, 1.0
    if proof.host() == "REFORGE":
        from modules.scripts import ScriptRunner

        request.scripts, request.script_args = ScriptRunner(), ()
    with further_channels() as seen, without_chance(), contextlib.closing(request):
        processing.process_images(request)
    return seen[0][:1]


def against_the_host(filled):
    """Largest differences between the further channels as the host gives them, and as they are in training and in a sample; how large they are."""
    events = proof.package("lora_core.events")
    with proof.locked():
        drawn = []

        class Seen(events.Listener):
            def on_sample(self, step, images, path):
                drawn.append(images[0].size)

        folder, config = job_on(filled, steps=1, samples={"every": 1, "steps": 1, "cfg": 5.0})
        with torch.inference_mode():
            of_host = by_the_host(folder, filled)
        with further_channels() as seen:
            losses = proof.trained(config, listener=Seen())[2]
        apart = [float((one[:1] - of_host).abs().max()) if one.shape[1:] == of_host.shape[1:] else -1.0 for one in seen]
        return {
            "apart": apart, "channels": of_host.shape[1], "size": float(of_host[:, -LATENT:].abs().max()), "samples": len(drawn), "losses": losses,
            "mask": sorted(set(of_host[:, 0].flatten().tolist())) if filled else [],
        }  # fmt: skip


def given_back(filled, **more):
    """What of the host differs after a run with samples."""
    with proof.locked():
        folder, config = job_on(filled, samples={"every": 2, "steps": 1}, optimizer={"lr": 1e-2}, **more)
        with torch.inference_mode():
            by_the_host(folder, filled)  # the host finishes some parts of a model with the first picture
        lent = proof.lend()
        before, shape = proof.digest(lent.backend), proof.tree(lent.backend)
        lent, _, losses = proof.trained(config)
        lent.settle()
        after, now = proof.digest(lent.backend), proof.tree(lent.backend)
        tree = [(k, str(shape[k]), str(now.get(k))) for k in shape if shape[k] != now.get(k)]
        return {"changed": sum(before[k] != after.get(k) for k in before), "tree": tree[:3], "losses": losses}


def refused(**config):
    """Code, field and sentence of what a job is refused by before its first step."""
    steps = []
    events = proof.package("lora_core.events")

    class Counts(events.Listener):
        def on_step(self, report):
            steps.append(report.step)

    with proof.locked():
        try:
            proof.trained(proof.config_of(**config), listener=Counts())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            message = getattr(error, "message", None)
            return {
                "code": getattr(message, "code", type(error).__name__), "field": getattr(message, "field", ""), "text": str(error), "steps": len(steps),
            }  # fmt: skip
        return {"code": "", "field": "", "text": "", "steps": len(steps)}


def films_refused():
    folder = Path(tempfile.mkdtemp(prefix="loom_film_"))
    frames = [Image.new("RGB", (PX, PX), (30 * n, 90, 200 - 20 * n)) for n in range(8)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=60)
    (folder / "a.txt").write_text("a film")
    return refused(data={"folder": str(folder), "frames": "5"})


def pairs_refused():
    folder, how = folder_of(False)
    return refused(data={"folder": str(folder), **how})


def masks_refused():
    folder, how = folder_of(True)
    return refused(data={"folder": str(folder), **how})


def alone_refused():
    """Of a model that is shown pictures, on pictures with nothing beside them."""
    return refused()


def slider_file():
    """A slider without pictures, and its file at both strengths in the host's prompt."""
    import shutil

    host = proof.package("nodes.webui.engine.host")
    with proof.locked():
        proof.picture()
        before = proof.digest(proof.lend().backend)
        config = proof.config_of(
            name="slid", steps=4, method="slider", data={"folder": ""}, optimizer={"lr": 5e-3}, text_encoder={"train": False},
            slider={"target": "a cat", "positive": "an old cat", "negative": "a young cat", "sampler_steps": 3, "strengths": "-1, 0, 1"},
            samples={"every": 2, "steps": 1},
        )  # fmt: skip
        drawn = []
        events = proof.package("lora_core.events")

        class Seen(events.Listener):
            def on_sample(self, step, images, path):
                drawn.append((step, images[0].size))

        lent, result, losses = proof.trained(config, listener=Seen())
        lent.settle()
        changed = sum(before[k] != v for k, v in proof.digest(lent.backend).items())
        file = host.loras_folder() / "loom_slid.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(result.file, file)
        try:
            host.refresh_lists()
            plain = proof.picture("a cat")[0]
            sides = [proof.picture(f"a cat <lora:loom_slid:{s}>")[0] for s in (-1, 1)]
            proof.lend().settle()
        finally:
            file.unlink()
            host.refresh_lists()
        return {
            "losses": losses, "changed": changed, "samples": drawn, "moved": [proof.difference(side, plain)["mean"] for side in sides],
            "apart": proof.difference(*sides)["mean"],
        }  # fmt: skip
