"""Writes example_workflows/*.jpg: what a template makes, or where its weights cannot be had a drawing of its graph that can be read.

    python tests/reference/make_thumbnails.py                    draws those of graphs anew, and leaves what was made by running a template
    COMFYUI_DIR=… ~/comfy/venv/bin/python tests/reference/make_thumbnails.py --run OUT [NUMBER …]    runs templates of the toy in a real ComfyUI first

Own pictures cannot be shown before they are there: those templates show the course of the graph. The other templates of the toy show the samples of the
help pages, which are of a run of "20 Try it".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "example_workflows"
WIDTH, HEIGHT, MARGIN = 640, 480, 24  # px
GROUND, NODE, INK, FAINT = "#20242c", "#39404d", "#f2f2f2", "#8a93a3"
RUN_FIRST = {  # number -> where its sheet is, below the host's output
    "21": "lora_loom/*/before-after.png", "24": "lora_loom_compared*.png",  # of the run before
    "23": "lora_loom/*/before-after.png", "26": "lora_loom/*/before-after.png",
}  # fmt: skip
NOT_DRAWN = ("MarkdownNote", "CLIPTextEncode", "EmptyLatentImage", "VAEDecode")
SHORT = {
    "CheckpointLoaderSimple": "Checkpoint", "UNETLoader": "Model", "CLIPLoader": "Text encoder", "DualCLIPLoader": "Text encoders", "VAELoader": "VAE",
    "LoraLoomLoadFolder": "Pictures", "LoraLoomTrainLora": "Train LoRA", "LoraLoomTrainEmbedding": "Train word", "LoraLoomTrainBothExperts": "Train both",
    "LoraLoomTrainSlider": "Train slider", "LoraLoomLoadToyModel": "Toy model", "LoraLoomCaptionPictures": "Captions", "LoraLoomDatasetEditor": "Editor",
    "KSampler": "Try it", "SaveImage": "Picture", "PreviewAny": "Report",
    "LoraLoomSaveLora": "File", "LoraLoomConvertLora": "Convert", "LoraLoomCompareCheckpoints": "Compare", "LoraLoomRunCheckpoints": "Saves",
    "LoraLoomPriorSettings": "Class", "LoraLoomValidationSettings": "Validation", "LoraLoomPivotalSettings": "New word", "LoraLoomLossNoiseSettings": "Noise",
}  # fmt: skip


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def titled(name: str) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """(picture with the template's title, its pen, where the rest begins)."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    pen = ImageDraw.Draw(picture)
    number, _, title = name.partition(" ")
    main, _, needs = title.partition(" (")
    size = 38
    while pen.textlength(main, font(size)) > WIDTH - 2 * MARGIN and size > 20:
        size -= 2
    pen.text((MARGIN, MARGIN - 4), main, INK, font(size))
    if needs:
        pen.text((MARGIN, MARGIN + size + 8), needs.rstrip(")"), FAINT, font(26))
    return picture, pen, MARGIN + size + (52 if needs else 24)


def drawn(name: str, workflow: dict) -> Image.Image:
    """The graph as boxes large enough to be read, in their columns, with what leads to what."""
    picture, pen, top = titled(name)
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOT_DRAWN]
    if any(node["type"] == "KSampler" for node in nodes):
        nodes = [node for node in nodes if node["type"] != "SaveImage"]
    columns: dict[int, list[dict]] = {}
    for node in sorted(nodes, key=lambda one: (one["pos"][0], one["pos"][1])):
        key = next((x for x in columns if abs(x - node["pos"][0]) < 120), node["pos"][0])
        columns.setdefault(key, []).append(node)
    width = (WIDTH - 2 * MARGIN - 26 * (len(columns) - 1)) / len(columns)
    boxes = {}
    for place, column in enumerate(columns.values()):
        height = min(96, (HEIGHT - top - MARGIN - 14 * (len(column) - 1)) / len(column))
        for row, node in enumerate(column):
            left, upper = MARGIN + place * (width + 26), top + row * (height + 14)
            boxes[node["id"]] = (left, upper, left + width, upper + height)
    for _, source, _, target, _, _ in workflow["links"]:
        if source in boxes and target in boxes:
            one, other = boxes[source], boxes[target]
            pen.line([(one[2], (one[1] + one[3]) / 2), (other[0], (other[1] + other[3]) / 2)], FAINT, 3)
    for node in nodes:
        box, text = boxes[node["id"]], SHORT.get(node["type"], node["type"])
        pen.rounded_rectangle(box, 9, NODE, "#5b8db8" if "Train" in node["type"] else FAINT, 3)
        size = 26
        while pen.textlength(text, font(size)) > box[2] - box[0] - 12 and size > 11:
            size -= 1
        pen.text(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), text, INK, font(size), anchor="mm")
    return picture


def before_and_after(name: str, sheet: Path) -> Image.Image:
    """The samples of a run before and after it, under the template's title."""
    picture, _, top = titled(name)
    with Image.open(sheet) as opened:
        samples = opened.convert("RGB")
    samples.thumbnail((WIDTH - 2 * MARGIN, HEIGHT - top - MARGIN))
    picture.paste(samples, ((WIDTH - samples.width) // 2, top + (HEIGHT - top - MARGIN - samples.height) // 2))
    return picture


def sheets_of_runs(out: Path, numbers: list[str]) -> dict[str, Path]:
    """Runs the templates as they are, in their order since later ones look at the runs of earlier ones. Number -> what each made."""
    sys.path.insert(0, str(ROOT / "tests" / "host"))
    from live_server import running

    sheets = {}
    with running(out / "base") as server:
        for number in numbers:
            (path,) = PLACE.glob(f"{number} *.json")
            entry = server.execute(server.api_prompt(json.loads(path.read_text(encoding="utf-8"))), 3600)
            if entry["status"]["status_str"] != "success":
                raise SystemExit(f"{path.stem}: {entry['status']}")
            files = (out / "base" / "output").glob(RUN_FIRST[number])
            sheets[number] = max(files, key=lambda file: file.stat().st_mtime)
            sys.stdout.write(f"{number}: {sheets[number]}\n")
    return sheets


def main() -> None:
    run, out, *numbers = (sys.argv[1:] + [""] * 2)[:2] + sys.argv[3:]
    sheets = sheets_of_runs(Path(out).resolve(), numbers or list(RUN_FIRST)) if run == "--run" else {}
    help_sheet = ROOT / "js" / "docs" / "img" / "before-after.jpg"
    names = sorted(path.stem for path in PLACE.glob("*.json"))
    for old in PLACE.glob("*.jpg"):
        if old.stem not in names:
            old.unlink()
    for name in names:
        number, file = name.partition(" ")[0], PLACE / f"{name}.jpg"
        if number in RUN_FIRST and number not in sheets and file.exists():
            continue
        workflow = json.loads((PLACE / f"{name}.json").read_text(encoding="utf-8"))
        kinds = {node["type"] for node in workflow["nodes"]}
        real = "LoraLoomLoadToyModel" in kinds and "LoraLoomTrainLora" in kinds
        sheet = sheets.get(number) or (help_sheet if real else None)
        (drawn(name, workflow) if sheet is None else before_and_after(name, sheet)).save(file, quality=88)


if __name__ == "__main__":
    main()
