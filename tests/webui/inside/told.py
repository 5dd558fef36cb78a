"""Runs inside a WebUI's process: what the engine says of the host beforehand, against the host's own lists and options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402
from methods import option  # noqa: E402


def samplers():
    """The host's samplers and schedules, what a setting of each of our names is drawn with, and which names are refused."""
    from modules import sd_samplers

    drawing, prompts = proof.package("nodes.webui.engine.drawing"), proof.package("lora_core.training.prompts")
    with proof.locked():
        backend = proof.lend().backend
        names = backend.samplers()
        refused = {}
        for setting, allowed in (("sampler", names.names), ("scheduler", names.schedules)):
            for name in (*allowed, "dpm++ 2m carass"):
                try:
                    asked = proof.config_of(samples={setting: name, "every": 2, "prompt": "a cat"})
                    prompts.require_drawable(asked, backend)
                except Exception as error:  # noqa: BLE001 - the test looks at it
                    refused[f"{setting} {name}"] = getattr(
                        getattr(error, "message", None), "code", type(error).__name__
                    )
        drawn = {name: drawing.sampler_named(name) for name in names.names}
        schedules = {name: drawing.scheduler_named(name) for name in names.schedules}
        known = _schedules_of_host()
        return {
            "host": [sampler.name for sampler in sd_samplers.all_samplers], "drawn": drawn, "refused": refused,
            "host_schedules": sorted(known), "schedules": schedules, "our_default": drawing.scheduler_named("simple"),
        }  # fmt: skip


def _schedules_of_host():
    if proof.host() == "CLASSIC":
        from modules.sd_samplers_kdiffusion import k_diffusion_scheduler

        return set(k_diffusion_scheduler)
    from modules import sd_schedulers

    return {scheduler.label for scheduler in sd_schedulers.schedulers}


def clip_skip(skip):
    """What is told of the base with this *Clip skip*, what the file's header says, and the warnings of a job that names it."""
    warnings = []
    events = proof.package("lora_core.events")

    class Warned(events.Listener):
        def on_warning(self, message):
            warnings.append(message.code)

    with proof.locked(), option(CLIP_stop_at_last_layers=skip):
        config = proof.config_of(steps=1, text_encoder={"clip_skip": 2})
        lent, result, _ = proof.trained(config, listener=Warned())
        from safetensors import safe_open

        with safe_open(next(file for file in result.files if file.suffix == ".safetensors"), "pt") as file:
            header = file.metadata()
        base = lent.backend.base_model(config.objective)
        return {
            "family": lent.backend.family, "told": base.clip_skip, "facts": base.message().text(), "header": header.get("ss_clip_skip"), "warnings": warnings,
        }  # fmt: skip
