"""Runs inside a WebUI's process: runs that end in every way there is, and everything of the host that must be the same afterwards."""

import contextlib
import errno
import functools
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.modules.pop("proof", None)  # the file may have changed since the host was asked last

import proof  # noqa: E402

TEXT = {"train": True, "lr": 0.001, "stop": 0.9}
EVERYTHING = {
    "method": "pivotal", "embedding": {"tokens": "TOK*2", "stop": 0.9, "keep_norm": True}, "text_encoder": TEXT, "ema_decay": 0.9,
    "prior": {"prompt": "a dog", "count": 2, "steps": 1}, "adapter": {"algorithm": "dora", "max_norm": 1.0},
}  # fmt: skip
WATCH = {"every": 1, "pictures": 2, "levels": 1, "share": 0.3, "restore_best": True}
CLASS = {"prompt": "a dog", "count": 2, "steps": 1}
DRAWN = {"every": 1, "steps": 1}


# ---- what must be the same ---------------------------------------------------------------------------------------


def state():
    """Weights, module tree, random state, modes and options of the host, and a picture of a fixed seed."""
    with proof.locked():
        lent = proof.lend()
        image = proof.picture()[1]
        lent.settle()  # of what this picture leaves
        facts = {**proof.digest(lent.backend), **{f"{k} (module)": str(v) for k, v in proof.tree(lent.backend).items()}}
        return {**facts, **{f"host: {k}": str(v) for k, v in _of_host().items()}, "picture": image}


def _of_host():
    from modules import progress, shared
    from modules.call_queue import queue_lock

    kept = ("job", "job_count", "interrupted", "skipped", "textinfo", "sampling_steps")
    facts = {
        "options": sorted(map(str, shared.opts.data.items())), "task": progress.current_task, "pending": list(progress.pending_tasks),
        "waiting": len(getattr(queue_lock, "_pending_threads", ())),
        "modes": (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(), torch.get_default_dtype(),
            torch.is_autocast_cpu_enabled(), torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(),
        ),
        **{name: getattr(shared.state, name, None) for name in kept},
    }  # fmt: skip
    with contextlib.suppress(ImportError, AttributeError):
        from modules import sd_hijack

        database = sd_hijack.model_hijack.embedding_db
        facts["embeddings"] = (sorted(database.word_embeddings), sorted(database.ids_lookup))
        facts["circular"] = sd_hijack.model_hijack.circular_enabled
    networks = proof.package("nodes.webui.engine.host").lora_extension()
    facts["networks"] = [network.name for network in getattr(networks, "loaded_networks", ())]
    return facts


def _random_state():
    numpy = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[0], numpy[1].tobytes(), *numpy[2:]


# ---- how a run can be ended --------------------------------------------------------------------------------------


def cancel(*_):
    raise KeyboardInterrupt("cancelled on purpose")


def fail(*_):
    raise ValueError("broken on purpose")


def exhaust(*_):
    raise proof.package("lora_core.compat").OutOfMemoryError("CUDA out of memory, on purpose")


def interrupt(*_):
    from modules import shared

    shared.state.interrupted = True


def at(event, count, action):
    """A listener that does something at an event, when it comes for the count-th time."""

    def made(control):
        calls = []

        def called(self, *arguments):
            calls.append(None)
            if len(calls) == count:
                action()

        return type("Ends", (proof.package("lora_core.events").Listener,), {event: called})()

    return made


def asks(event, count, name):
    """A listener that asks for what the page's buttons ask for."""

    def made(control):
        return at(event, count, getattr(control, name))(control)

    return made


def courteous(event, count, action):
    """The same beside the listener that hears the host."""

    def made(control):
        turns, events = proof.package("nodes.webui.turns"), proof.package("lora_core.events")
        courtesy = turns.Courtesy(contextlib.nullcontext, control)
        return events.Listeners([at(event, count, action)(control), courtesy])

    return made


def broken(method, count, action):
    """Does something when the backend is asked for this the count-th time, before it answers."""

    def change(backend):
        plain, calls = getattr(backend, method), []

        @functools.wraps(plain)
        def called(*arguments, **more):
            calls.append(None)
            if len(calls) == count:
                action()
            return plain(*arguments, **more)

        setattr(backend, method, called)

    return change


def in_backward(count, action):
    """Does something when the gradient of the count-th prediction arrives."""

    def change(backend):
        plain, calls = backend.predict, []

        def predict(*arguments):
            answer = plain(*arguments)
            calls.append(None)
            if len(calls) >= count and answer.requires_grad:
                answer.register_hook(lambda gradient: action())
            return answer

        backend.predict = predict

    return change


def not_a_number(backend):
    plain, calls = backend.predict, []

    def predict(*arguments):
        calls.append(None)
        return plain(*arguments) * (float("nan") if len(calls) > 2 else 1.0)

    backend.predict = predict


@contextlib.contextmanager
def full_disk(ending):
    """No file of that name can be put into its place."""
    plain = os.replace

    def replace(source, target, **more):
        if str(target).endswith(ending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(source, target, **more)

    os.replace = replace
    try:
        yield
    finally:
        os.replace = plain


def unload():
    from modules import sd_models

    sd_models.unload_model_weights()


def reload():
    from modules import sd_models, shared

    unload()
    sd_models.send_model_to_device(shared.sd_model)


def draw_between():
    """A picture in the middle of a run, as the queue lets it through."""
    proof.picture("a cat (very:1.2) [old]", tiling=True)


# name -> (settings, change of the backend, maker of a listener, how it ends: an outcome or the name of an error)
ENDINGS = {
    "finish": ({}, None, None, "finished"),
    "finish with checkpointing": ({"checkpointing": True, "adapter": {"targets": "conv"}}, None, None, "finished"),
    "finish with text encoder, samples and validation": ({"text_encoder": TEXT, "samples": DRAWN, "validation": WATCH}, None, None, "finished"),
    "finish with an embedding": ({"method": "embedding", "embedding": {"tokens": "TOK*2"}}, None, None, "finished"),
    "finish with everything": (EVERYTHING, None, None, "finished"),
    "stop": ({}, None, asks("on_step", 2, "stop_and_keep"), "stopped"),
    "pause": ({"text_encoder": TEXT}, None, asks("on_step", 2, "pause"), "paused"),
    "save and sample on request": ({"samples": {"steps": 1}}, None, asks("on_step", 1, "sample_now"), "finished"),
    "the host's interrupt in a step": ({}, None, courteous("on_step", 2, interrupt), "stopped"),
    "the host's interrupt while pictures are encoded": ({}, None, courteous("on_progress", 2, interrupt), "LoomError"),
    "cancel while pictures are encoded": ({}, broken("encode_picture", 2, cancel), None, "KeyboardInterrupt"),
    "cancel while texts are encoded": ({}, broken("encode_texts", 1, cancel), None, "KeyboardInterrupt"),
    "cancel while class pictures are drawn": ({"prior": {**CLASS, "prompt": "a bird"}}, broken("sample", 1, cancel), None, "KeyboardInterrupt"),
    "cancel in a forward": ({}, broken("predict", 3, cancel), None, "KeyboardInterrupt"),
    "cancel in a backward of a text encoder": ({"text_encoder": TEXT}, in_backward(2, cancel), None, "KeyboardInterrupt"),
    "cancel in a checkpointed backward": ({"checkpointing": True}, in_backward(3, cancel), None, "KeyboardInterrupt"),
    "cancel in a sample": ({"samples": DRAWN}, broken("sample", 2, cancel), None, "KeyboardInterrupt"),
    "cancel in a validation": ({"validation": WATCH}, broken("predict", 2, cancel), None, "KeyboardInterrupt"),
    "cancel while saving": ({"save": {"every": 1}}, None, at("on_save", 2, cancel), "KeyboardInterrupt"),
    "error in a listener": ({}, None, at("on_step", 2, fail), "ValueError"),
    "error while pictures are encoded": ({}, broken("encode_picture", 2, fail), None, "ValueError"),
    "error while texts are encoded": ({}, broken("encode_texts", 1, fail), None, "ValueError"),
    "error in a forward": ({"text_encoder": TEXT}, broken("predict", 3, fail), None, "ValueError"),
    "error in a backward": ({}, in_backward(3, fail), None, "ValueError"),
    "error in a sample": ({"samples": DRAWN, "text_encoder": TEXT}, broken("sample", 2, fail), None, "finished"),
    "out of memory in a forward": ({}, broken("predict", 3, exhaust), None, "OutOfMemoryError"),
    "out of memory in a backward": ({"checkpointing": True}, in_backward(3, exhaust), None, "OutOfMemoryError"),
    "out of memory in a sample": ({"samples": DRAWN}, broken("sample", 2, exhaust), None, "finished"),
    "numbers that are none": ({}, not_a_number, None, "NonFiniteError"),
    "a setting that cannot be": ({"adapter": {"include": "no layer has this name"}}, None, None, "LoomError"),
    "a model unloaded under the run": ({}, None, at("on_step", 2, unload), "finished"),
    "a model unloaded and reloaded under the run": ({"text_encoder": TEXT}, None, at("on_step", 2, reload), "finished"),
    "a run folder that is gone": ({}, None, None, "finished"),
    "a full disk": ({}, None, None, "LoomError"),
    "a full disk from the first save": ({"save": {"every": 1}}, None, None, "LoomError"),
}  # fmt: skip
TOKENS_TRAINED = [name for name, row in ENDINGS.items() if row[0].get("method") in ("pivotal", "embedding")]


def names():
    return list(ENDINGS)


def end(name):
    """How the run ended, what is left of it, whether the random state is the same, and the host's state afterwards."""
    config, change, listener, _ = ENDINGS[name]
    events = proof.package("lora_core.events")
    control, root = events.Control(), Path(tempfile.mkdtemp(prefix="loom_ending_"))
    config = proof.config_of(**{"steps": 4, "optimizer": {"lr": 1e-3}, **config})
    heard = listener(control) if listener else None
    if name == "a run folder that is gone":
        heard = at("on_step", 2, lambda: shutil.rmtree(root / "proof"))(control)
    torch.manual_seed(11)
    before, outcome = _random_state(), ""
    disk = {"a full disk": "proof.safetensors", "a full disk from the first save": "adapter.safetensors"}.get(name, "")
    with proof.package("nodes.webui.turns").turn("task(proof)"), full_disk(disk) if disk else contextlib.nullcontext():
        lent = proof.lend()
        if change:
            change(lent.backend)
        if hasattr(heard, "members"):
            heard.members[-1]._given_back = lent.given_back
        try:
            outcome = proof.losses_of(lent.backend, config, root, control, heard)[0].outcome
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            outcome = type(error).__name__
            said = f"{getattr(getattr(error, 'message', None), 'code', '')} {error}"
        else:
            said = ""
    same = _random_state() == before
    kept = sorted(file.name for file in root.glob("proof/*.safetensors"))
    saves = sorted(file.name for file in root.glob("proof/checkpoints/step-*"))
    return {"outcome": outcome, "said": said[:300], "random_state": same, "kept": kept, "saves": saves, "state": state()}  # fmt: skip
