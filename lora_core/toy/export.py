"""The model as it is handed on: five folders in diffusers layout, fp16, and what its pictures are owed."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import networks
from .learn_text import latent_scale, new_text_networks
from .learn_vae import decoding, read_vae
from .stage import Stage, steps_in, write_steps

NOTICE = """\
The weights in this folder were trained on pictures of Noto Emoji, Copyright Google Inc., licensed under the Apache License, Version 2.0
(https://github.com/googlefonts/noto-emoji, https://www.apache.org/licenses/LICENSE-2.0), as the npm package emoji-datasource-google 16.0.0 has them.
The pictures were enlarged, laid over plain grounds, turned to other colours and combined. Flags, whose pictures have other owners, were left out.
Names and groups come from the same package (emoji-data, MIT License, Copyright (c) 2013 Cal Henderson) and from the Unicode Character Database.
"""


def write_model(state: Path, folder: Path) -> None:
    """From the last saves, finished or not; the averaged weights. What lay in the folder is replaced."""
    from transformers import CLIPTokenizer

    shutil.rmtree(folder, ignore_errors=True)
    vae = read_vae(state)
    vae.register_to_config(scaling_factor=latent_scale(state))
    vae.half().save_pretrained(folder / "vae")
    parts = new_text_networks(CLIPTokenizer.from_pretrained(state / "tokenizer"))
    learnt = Stage(state / "unet.state", parts, 0.0, 0)
    learnt.use_average()
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)  # type: ignore[operator]
    networks.new_schedule().save_pretrained(folder / "scheduler")
    shutil.copytree(state / "tokenizer", folder / "tokenizer")
    steps = {"vae": steps_in(state / "vae.state"), **dict.fromkeys(decoding(vae), steps_in(state / "decoder.state"))}
    write_steps(folder, {**steps, **dict.fromkeys(parts, learnt.step)})
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
