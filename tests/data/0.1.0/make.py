"""Wrote files/ and nodes.json of this folder with a checkout of version 0.1.0: python make.py CHECKOUT

workflows/ are the templates of that version as they were. nodes.json says which widgets and wires each of its nodes had, in their order. In files/
each kind of adapter was trained for a few steps on the toy and written in every form there was for it; so were the embeddings. numbers.json holds, for
every file, what 0.1.0 itself read out of it.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT, OUT = Path(sys.argv[1]).resolve(), HERE / "files"
spec = importlib.util.spec_from_file_location(
    "lora_loom", CHECKOUT / "__init__.py", submodule_search_locations=[str(CHECKOUT)]
)
package = importlib.util.module_from_spec(spec)
sys.modules["lora_loom"] = package
spec.loader.exec_module(package)

import torch  # noqa: E402
from lora_loom.__main__ import main  # noqa: E402
from lora_loom.convert import jobs  # noqa: E402
from lora_loom.convert.embedding import Embedding  # noqa: E402
from lora_loom.convert.lora import Module, delta  # noqa: E402
from lora_loom.lora_core.toy.model import set_folder  # noqa: E402

torch.set_num_threads(1)
JOB = """
name = "{name}"
base = "toy"
steps = 3
batch_size = 2
seed = 5
{top}
[data]
folder = "{folder}"
resolution = 32
[optimizer]
lr = 0.01
[samples]
every = 0
[adapter]
rank = {rank}
include = "mid_block|up_blocks.1"
{adapter}
{more}
"""
RUNS = {
    "lora": {"more": "[text_encoder]\ntrain = true"},
    "locon": {"adapter": 'targets = "conv"\nconv_rank = 1'},
    "dora": {"adapter": 'algorithm = "dora"\ndora_axis = "output"'},
    "loha": {"adapter": 'algorithm = "loha"'},
    "lokr": {"adapter": 'algorithm = "lokr"'},
    "pivotal": {"top": 'method = "pivotal"', "more": '[embedding]\ntokens = "TOK*2 = red"'},
    "embedding": {"top": 'method = "embedding"', "more": '[embedding]\ntokens = "dax*2"'},
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
FORMS = {
    "lora": ("universal", "kohya", "comfyui", "diffusers", "peft"),
    "locon": ("universal", "diffusers"), "dora": ("universal", "peft"), "loha": ("universal",), "lokr": ("universal",),
}  # fmt: skip


def trained(place: Path) -> dict[str, list[Path]]:
    """Kind -> the files its run wrote."""
    out = {}
    for name, parts in RUNS.items():
        job = place / f"{name}.toml"
        text = JOB.format(
            name=name, rank=2, folder=set_folder("object"), **{"top": "", "adapter": "", "more": "", **parts}
        )
        job.write_text(text, encoding="utf-8")
        assert main(["train", str(job), "--out", str(place / "runs")]) == 0, name
        (folder,) = (place / "runs").glob(f"{name}*")
        out[name] = sorted(folder.glob("*.safetensors"))
    return out


def numbers(path: Path) -> dict[str, list[float]]:
    """What is read of a file: of each module's change of weights, of each vector table, its sum, its norm and three values."""
    opened = jobs.open_file(path)
    if isinstance(opened, Embedding):
        return {encoder: few(vectors) for encoder, vectors in opened.vectors.items()}
    out = {name: few(change(module)) for name, module in opened.modules.items()}
    out |= {
        f"{name} magnitude": few(module.parts["dora"])
        for name, module in opened.modules.items()
        if "dora" in module.parts
    }
    out |= {
        f"bundled {token}/{encoder}": few(v)
        for token, table in opened.embeddings.items()
        for encoder, v in table.items()
    }
    return out


def change(module: Module) -> torch.Tensor:
    """Its change of weights; with magnitudes, what it would be without them, since they also depend on the base."""
    return delta(Module(module.kind, {k: v for k, v in module.parts.items() if k != "dora"}, module.alpha))


def few(values: torch.Tensor) -> list[float]:
    flat = values.double().reshape(-1)
    return [float(f"{float(x):.9g}") for x in (flat.sum(), flat.norm(), flat[0], flat[len(flat) // 2], flat[-1])]


def write(place: Path) -> None:
    results = trained(place)
    for name, forms in FORMS.items():
        (source,) = results[name]
        for form in forms:
            jobs.convert(
                source, OUT / (f"{name}_{form}" + ("" if form == "peft" else ".safetensors")), jobs.Options(target=form)
            )
    for path in results["pivotal"] + results["embedding"]:
        shutil.copyfile(path, OUT / path.name)
    (embedding,) = results["embedding"]
    for form in ("webui", "diffusers"):
        jobs.write_embedding_file(jobs.open_embedding(embedding), OUT / f"dax_{form}.safetensors", form)
    main_file, token = sorted(results["pivotal"], key=lambda path: "_emb" in path.stem)
    jobs.convert(main_file, OUT / "pivotal_bundled.safetensors", jobs.Options(target="kohya"), embed=[token])
    places = sorted(path for path in OUT.iterdir() if path.suffix == ".safetensors" or path.is_dir())
    table = {path.name: numbers(path) for path in places}
    (OUT / "numbers.json").write_text(
        json.dumps(table, indent=1).replace(",\n   ", ", ").replace("[\n   ", "[").replace("\n  ]", "]") + "\n",
        encoding="utf-8",
    )


def nodes() -> dict[str, dict[str, list[list[str]]]]:
    """Node id -> (name, type) of its widgets, wires and outputs, in their order."""
    sys.path.insert(0, str(HERE.parents[1] / "reference"))
    from schemas import schemas

    inspect.getsource = lambda of: ""  # 0.1.0 looks into a class of the host, which is stood in for here
    out = {}
    for name, schema in sorted(schemas().items()):
        widgets = [[i.id, i.kind] for i in schema.inputs if i.kind in WIDGETS]
        wires = [[i.id, i.kind] for i in schema.inputs if i.kind not in WIDGETS]
        out[name] = {"widgets": widgets, "wires": wires, "outputs": [[o.display_name, o.kind] for o in schema.outputs]}
    return out


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        write(Path(place))
    lines = [f" {json.dumps(name)}: {json.dumps(parts)}" for name, parts in nodes().items()]
    (HERE / "nodes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
