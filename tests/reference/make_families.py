"""Writes docs/families.md: what becomes of every model class of ComfyUI, as tests/host/make_families.py measured it (families.json). Needs no ComfyUI."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from schemas import ROOT  # noqa: E402

DATA = Path(__file__).with_name("families.json")
PLACE = ROOT / "docs" / "families.md"
EXACT = 1e-5  # largest error of a gradient, of its norm, that is called exact in fp32

# Classes without a tiny model of their own, and why.
OBJECT, FRAME, FINDS = "needs a picture of the object", "needs a first frame", "answers about pictures, and draws none"
WITHOUT = {
    "LotusD": "answers with the finished picture in one step: nothing to denoise",
    "Stable_Zero123": OBJECT, "SV3D_u": OBJECT, "SV3D_p": OBJECT, "SVD_img2vid": FRAME,
    "SD_X4Upscaler": "needs a small picture", "PiD": "needs a latent to decode", "SeedVR2": "needs a small video",
    "WAN_Animate2": "needs a pose video", "WAN21_SCAIL2": "needs a pose video and a reference picture", "WAN22_WanDancer": "needs music",
    "CogVideoX_I2V": "as CogVideoX_T2V", "CogVideoX_Inpaint": "as CogVideoX_T2V",
    "RT_DETR_v4": FINDS, "SAM3": FINDS, "SAM31": FINDS, "DepthAnything3": FINDS,
    "StableAudio": "sound; not tried", "StableAudio3": "sound; not tried", "ACEStep": "sound; not tried", "MiniMaxMusic3": "sound; not tried",
    "TripoSplat": "makes 3D; not tried", "Trellis2": "makes 3D; not tried", "Hunyuan3Dv2_1": "makes 3D; not tried",
}  # fmt: skip
HEAD = """# Model families

Every model class of ComfyUI {host} (`comfy/supported_models.py`): whether it is trained here, and what was measured. {trained} of {all} classes are trained.
Gradients are those of every adapter in a tiny random model of the class, through the loss of a training step, against plain autograd on a copy whose weights are
W + the LoRA's change: the norm of the difference over the norm, in fp32, without and with checkpointing. *Layers* are those that can carry an adapter, and of them
those that **targets** *attention* chooses. *Read by*: programs whose own loader was seen to take every layer of such a file (`tests/convert/programs`); where none
is named, ComfyUI's loader reads every file back before a run begins, and no other program was run. Measured by `tests/host/make_families.py`, this page is made by
`tests/reference/make_texts.py`.

*With control pictures*: the same where the model is shown such, or the first frame of a clip.

*Beside text*: what the model reads besides noise and text. It is trained where that is given (by the nodes that make its dataset, or by conditioning that is wired
into *Dataset from Latents*), and refused in one sentence where it is not.

| class | row of the tests | gradients, plain | checkpointed | with control pictures | layers | attention | first name in a file | read by | beside text |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
REFUSED = """
## Refused, or not tried

What is said is what a run on such a model says before its first step.

| class | row of the tests | why |
| --- | --- | --- |
"""


def data() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return table


def trained_classes(table: Mapping[str, Any]) -> set[str]:
    """Those of which at least one row trains."""
    return {row["class"] for row in table["rows"].values() if row["trains"]}


def largest_error(row: Mapping[str, Any]) -> float:
    return max(row[key] for key in ("plain", "checkpointed", "controls", "controls_checkpointed") if key in row)


def text() -> str:
    """The page as it should be."""
    table = data()
    order = {cls: n for n, cls in enumerate(table["classes"])}
    rows = sorted(table["rows"].items(), key=lambda entry: order.get(entry[1]["class"], len(order)))
    out = HEAD.format(host=table["host"], trained=len(trained_classes(table)), all=len(order))
    out += "".join(_row(name, row) for name, row in rows if row["trains"])
    refused = [(row["class"], name, _why(row)) for name, row in rows if not row["trains"]]
    known = {row["class"] for _, row in rows}
    refused += [(cls, "", WITHOUT[cls]) for cls in order if cls not in known]
    return out + REFUSED + "".join(f"| `{cls}` | {name} | {why} |\n" for cls, name, why in refused)


def _row(name: str, row: Mapping[str, Any]) -> str:
    errors = [f"{row[key]:.0e}" if key in row else "" for key in ("plain", "checkpointed", "controls")]
    cells = (
        f"`{row['class']}`",
        name,
        *errors,
        row["layers"],
        row["attention"] or "none",
        f"`{row['name']}`",
        ", ".join(row["readers"]),
        row["beside"],
    )
    return f"| {' | '.join(map(str, cells))} |\n"  # fmt: skip


def _why(row: Mapping[str, Any]) -> str:
    return str(row["why"]["text"]).removeprefix("model: ")


def write() -> None:
    PLACE.write_text(text(), encoding="utf-8")
