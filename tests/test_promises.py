"""What CONTRIBUTING.md promises about a new thing, carried out on a copy of the repository: the files it names, no other, and the tests there pass.

A new promise is one function below and one entry of PROMISES, under the words that are bold in CONTRIBUTING.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

LANGUAGES = ("zh", "ko", "ja")
MADE = (
    "locales/",
    "js/docs/",
    "js/widget_names.js",
    "example_workflows/",
    "nodes/host/access/places.json",
)  # what make_texts.py writes


class Copy:
    """A copy of the repository's own files; remembers which were written by hand."""

    def __init__(self, root: Path, place: Path) -> None:
        self.place, self.touched = place, set()
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (root / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / name, place / name)
        self.before = self.state()

    def state(self) -> dict[str, str]:
        """Path -> hash of every file."""
        files = [path for path in self.place.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {
            path.relative_to(self.place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    def write(self, name: str, content: str | bytes) -> None:
        path = self.place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.touched.add(name)

    def read(self, name: str) -> str:
        return (self.place / name).read_text(encoding="utf-8")

    def behind(self, name: str, anchor: str, text: str) -> None:
        """Puts `text` directly behind the first `anchor` of a file."""
        before, found, after = self.read(name).partition(anchor)
        assert found, f"{name} has no {anchor!r}"
        self.write(name, before + found + text + after)

    def end(self, name: str, text: str) -> None:
        self.write(name, self.read(name) + text)

    def say(self, name: str, texts: dict[str, str]) -> None:
        """Adds texts to a table of texts."""
        self.write(name, json.dumps({**json.loads(self.read(name)), **texts}, ensure_ascii=False, indent=1) + "\n")

    def translate(self, *texts: str) -> None:
        for language in LANGUAGES:
            self.say(f"tests/reference/translations/{language}.json", {text: f"{language}: {text}" for text in texts})

    def python(self, *arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.place, env=environment, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-6000:]}{done.stderr[-3000:]}"
        return done.stdout

    def make_texts(self) -> set[str]:
        """Runs the command that makes texts; the files it changed."""
        hand = self.state()
        self.python("tests/reference/make_texts.py")
        return {name for name, mark in self.state().items() if hand.get(name) != mark}


def promised(contributing: str, thing: str) -> list[str]:
    """The files that the line of a thing names, as patterns."""
    line = re.search(rf"^- \*\*{re.escape(thing)}\*\* ✓: (.*)$", contributing, re.MULTILINE)
    assert line, f"CONTRIBUTING.md has no marked line for {thing}"
    return re.findall(r"`((?:lora_core|convert|nodes|js|tests|example_workflows)/[\w./<>*-]+\w)`", line[1])


def matches(pattern: str, name: str) -> bool:
    """<name> and * stand for one part of a path."""
    return bool(re.fullmatch(re.sub(r"<\w+>|\\\*", "[^/]+", re.escape(pattern)), name))


def optimizer(copy: Copy) -> list[str]:
    copy.behind("lora_core/optim/optimizers.py", "    return config.beta1, config.beta2\n", '''

def _radam(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Liu et al. 2019 (arXiv 1908.03265)."""
    return torch.optim.RAdam(groups, betas=_betas(config), eps=config.eps, decoupled_weight_decay=True)
''')  # fmt: skip
    copy.behind("lora_core/optim/optimizers.py", "OPTIMIZERS: dict[str, Row] = {\n", '    "radam": Row(_radam),\n')
    copy.behind("lora_core/config/learning.py", 'choices=("adamw",', ' "radam",')
    copy.end("tests/lora_core/optim/test_optimizers.py", '''

def test_radam_is_torchs():
    ours, theirs = parameters(), parameters()
    config = config_of("radam", lr=1e-2, weight_decay=0.1)
    reference = torch.optim.RAdam(groups_of(theirs, config), betas=(0.9, 0.999), eps=1e-8, decoupled_weight_decay=True)
    advance(make("radam", ours, lr=1e-2, weight_decay=0.1), ours, 9)
    advance(reference, theirs, 9)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
''')  # fmt: skip
    return ["tests/lora_core/optim/test_optimizers.py", "-k", "radam or exists"]


def loss(copy: Copy) -> list[str]:
    copy.behind("lora_core/losses.py", "    return (pred.float() - target.float()).abs()\n", '''

def log_cosh(pred: torch.Tensor, target: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
    """log cosh e = |e| + log((1 + exp(-2 |e|)) / 2)."""
    error = (pred.float() - target.float()).abs()
    return error + torch.log1p(torch.exp(-2 * error)) - math.log(2)
''')  # fmt: skip
    copy.behind("lora_core/losses.py", "from __future__ import annotations\n", "\nimport math")
    copy.behind("lora_core/losses.py", "LOSSES: dict[str, Loss] = {", '"log_cosh": log_cosh, ')
    copy.behind("lora_core/config/job.py", 'choices=("mse",', ' "log_cosh",')
    copy.end("tests/lora_core/test_losses.py", '''

def test_log_cosh_is_the_logarithm_of_cosh():
    pred, target = pair()
    expected = (pred - target).double().cosh().log()
    torch.testing.assert_close(LOSSES["log_cosh"](pred, target, None).double(), expected, rtol=1e-4, atol=1e-6)
''')  # fmt: skip
    return ["tests/lora_core/test_losses.py", "tests/lora_core/test_config.py"]


def flow_family(copy: Copy) -> list[str]:
    copy.behind("lora_core/backends/flow.py", "# ---- the families", '''


def _lumina_text(pipe: Any, texts: list[str], device: torch.device) -> Text:
    hidden, mask, _, _ = pipe.encode_prompt(texts, do_classifier_free_guidance=False, device=device)
    return Text(hidden, None, mask.bool())


def _lumina(backend: FlowBackend, x: torch.Tensor, sigma: torch.Tensor, text: Text) -> torch.Tensor:
    return -backend.network(x, timestep=1 - sigma, encoder_hidden_states=text.hidden, encoder_attention_mask=text.mask).sample


def _lumina_drawing(text: Text, negative: Text, cfg: float) -> dict[str, Any]:
    return {
        "prompt_embeds": text.hidden, "prompt_attention_mask": text.mask, "negative_prompt_embeds": negative.hidden,
        "negative_prompt_attention_mask": negative.mask, "guidance_scale": cfg,
    }


#''')  # fmt: skip
    row = (
        'FlowFamily("lumina2", "Lumina2Transformer2DModel", _lumina_text, _lumina, _lumina_drawing, ("tokenizer", 256))'
    )
    copy.behind("lora_core/backends/flow.py", "\nFLOW_FAMILIES = {\n", f'    "Lumina2Pipeline": {row},\n')
    copy.behind("tests/lora_core/backends/tiny_flow.py", "scaling_factor=0.36, shift_factor=0.12, **settings,\n    )  # fmt: skip\n", '''

def lumina(folder: Path):
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    transformer = Lumina2Transformer2DModel(
        sample_size=32, in_channels=4, hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=2, multiple_of=16,
        axes_dim_rope=(8, 8, 8), axes_lens=(512, 64, 64), cap_feat_dim=32,
    )
    words = Gemma2Model(Gemma2Config(**{**QWEN, "query_pre_attn_scalar": 8}))
    return Lumina2Pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=6.0), _vae(), words, _byte_tokenizer(512))
''')  # fmt: skip
    copy.behind("tests/lora_core/backends/tiny_flow.py", "MAKERS = {", '"lumina2": lumina, ')
    return ["tests/lora_core/backends/test_flow.py", "-k", "(lumina2 and not checkpoint and not True) or shifts"]


def setting(copy: Copy) -> list[str]:
    copy.behind(
        "lora_core/config/learning.py",
        "class OptimizerConfig:\n",
        '    nesterov: bool = setting(False, "Look ahead along the momentum.")\n',
    )
    copy.write("trial.py", '''
import pytest
from lora_loom.lora_core.config import parse
from lora_loom.lora_core.messages.errors import LoomError


def test_the_key_is_read_and_checked():
    assert parse({"optimizer": {"nesterov": True}}).optimizer.nesterov
    assert not parse({}).optimizer.nesterov
    with pytest.raises(LoomError, match="optimizer.nesterov"):
        parse({"optimizer": {"nesterov": "perhaps"}})
''')  # fmt: skip
    shutil.move(copy.place / "trial.py", copy.place / "tests" / "test_trial.py")
    copy.touched.discard("trial.py")
    return ["tests/test_trial.py", "tests/lora_core/test_config.py", "tests/test_made_texts.py"]


def setting_on_a_node(copy: Copy) -> list[str]:
    copy.behind(
        "lora_core/config/learning.py",
        "class OptimizerConfig:\n",
        '    nesterov: bool = setting(False, "Look ahead along the momentum.")\n',
    )
    copy.behind(
        "nodes/settings.py",
        '        row("schedule.power", advanced=True),\n',
        '        row("optimizer.nesterov", advanced=True),\n',
    )
    copy.translate("nesterov", "Look ahead along the momentum.")
    return ["tests/test_made_texts.py", "tests/nodes", "tests/test_locales.py"]


PAGE = """# {title}

{description}

## {example}

Count.

## {mistakes}

- Counting twice.
- Not counting.
"""


def node(copy: Copy) -> list[str]:
    description, tooltip = "Says how many pictures a dataset has.", "The dataset to count."
    copy.write("nodes/count.py", f'''"""Count Pictures: how many there are."""

from __future__ import annotations

from .host.access.api import io, schema
from .jobs.datasets import PictureSets
from .sockets import CATEGORY, count_output, dataset_input


class CountPictures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LoraLoomCountPictures", display_name="Count Pictures", category=CATEGORY, description="{description}",
            inputs=[dataset_input(tooltip="{tooltip}")], outputs=[count_output()],
        )

    @classmethod
    def execute(cls, dataset: PictureSets) -> io.NodeOutput:
        return io.NodeOutput(len(dataset.opened().pictures))
''')  # fmt: skip
    copy.behind(
        "nodes/extension.py",
        "from .convert_format import ConvertEmbedding, ConvertLora, Inspect\n",
        "from .count import CountPictures\n",
    )
    copy.behind("nodes/extension.py", "    for node in (\n", "        CountPictures,\n")
    copy.translate("Count Pictures", description, tooltip)
    words = {
        "en": ("Example", "Common mistakes"),
        "zh": ("示例", "常见错误"),
        "ko": ("예시", "흔한 실수"),
        "ja": ("例", "よくある間違い"),
    }
    for language, (example, mistakes) in words.items():
        known = "" if language == "en" else f"{language}: "
        page = PAGE.format(
            title=f"{known}Count Pictures", description=known + description, example=example, mistakes=mistakes
        )
        copy.write(f"js/docs/LoraLoomCountPictures{'' if language == 'en' else f'/{language}'}.md", page)
    copy.write("tests/host/test_count.py", '''"""Count Pictures in a running server."""

from live_server import Graph, running


def test_the_toy_set_has_sixteen_pictures_of_each_kind(tmp_path):
    with running(tmp_path / "base") as server:
        graph = Graph(server)
        folder = graph.add("LoraLoomLoadFolder", folder="toy: object")
        graph.add("PreviewAny", source=[graph.add("LoraLoomCountPictures", dataset=[folder, 0]), 0])
        assert graph.run()["status"]["status_str"] == "success"
''')  # fmt: skip
    return ["tests/test_made_texts.py", "tests/nodes", "tests/test_rooms.py"]


def text_of_the_page(copy: Copy) -> list[str]:
    script = copy.read("js/dataset_editor.js")
    assert 't("editor.undo")' in script
    copy.write(
        "js/dataset_editor.js",
        script.replace('t("editor.undo")', 't("editor.undo_all")', 1)
        + '\nexport const undo = () => t("editor.undo");\n',
    )
    for language in ("en", *LANGUAGES):
        copy.say(f"js/locales/{language}.json", {"editor.undo_all": f"Undo all ({language})"})
    return ["tests/test_locales.py"]


def template(copy: Copy) -> list[str]:
    script = copy.read("tests/reference/make_workflows.py")
    assert script.count("\n\nWORKFLOWS = (") == 1
    script = script.replace("\n\nWORKFLOWS = (", '''

def open_the_toy(schemas: Mapping[str, Any]) -> None:
    graph = Graph(schemas)
    graph.loom("LoraLoomLoadToyModel", (40, 60), (260, 80), {})
    graph.note("Opens the toy model.", 90)
    graph.write("open_the_toy")


WORKFLOWS = (open_the_toy, ''')  # fmt: skip
    copy.write("tests/reference/make_workflows.py", script)
    copy.write(
        "example_workflows/open_the_toy.jpg",
        (copy.place / "example_workflows" / "20 Try it - the bundled toy, no download.jpg").read_bytes(),
    )
    return ["tests/test_made_texts.py"]


def adapter(copy: Copy) -> list[str]:
    """A kind that is there is taken out, everything holds without it, and it is put back as the line says."""
    names, rows, headers = (
        "lora_core/algebra/__init__.py",
        "tests/lora_core/algebra/test_kinds.py",
        "tests/lora_core/adapters/test_matrix.py",
    )
    place, row = "lora_core/algebra/ia3.py", re.compile(r'    "ia3(?: on inputs)?": \(lambda layer: [^\n]*\n')
    kind, original = copy.read(place), {name: copy.read(name) for name in (names, rows, headers)}
    (copy.place / place).unlink()
    bare = {
        names: original[names].replace(' "ia3",', ""),
        rows: row.sub("", original[rows]),
        headers: original[headers].replace('"ia3": (LYCORIS, {"algo": "ia3"}, None), ', ""),
    }
    for name, text in bare.items():
        assert text != original[name]
        (copy.place / name).write_text(text, encoding="utf-8")
    copy.python(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/convert/test_lora.py",
        "tests/lora_core/adapters/test_lora.py",
    )
    copy.write(place, kind)
    for name, text in original.items():
        copy.write(name, text)
    tests = ["tests/lora_core/algebra/test_kinds.py", "tests/lora_core/adapters/test_matrix.py"]
    return [*tests, "tests/test_kinds_by_name.py", "-k", "ia3 or chooses_by_the_name"]


PROMISES: dict[str, Callable[[Copy], list[str]]] = {
    "An optimizer": optimizer,
    "A loss": loss,
    "A flow-matching model headless": flow_family,
    "A setting": setting,
    "A setting on a node": setting_on_a_node,
    "A node": node,
    "A text of the page": text_of_the_page,
    "A template": template,
    "An adapter": adapter,
}


@pytest.fixture
def copy(root, tmp_path):
    place = tmp_path / "copy"
    yield Copy(root, place)
    shutil.rmtree(place)


def keeps_its_promise(copy: Copy, contributing: str, thing: str) -> None:
    tests = PROMISES[thing](copy)
    patterns = promised(contributing, thing)
    assert {name for name in copy.touched if not any(matches(pattern, name) for pattern in patterns)} == set()
    assert [pattern for pattern in patterns if not any(matches(pattern, name) for name in copy.touched)] == []
    made = copy.make_texts()
    assert {name for name in made if not name.startswith(MADE)} == set()
    out = copy.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert re.search(r"\d+ passed", out)
    print(f"{thing}: {len(copy.touched)} files by hand, {len(made)} made")


@pytest.fixture(scope="module")
def contributing(root):
    return (root / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("thing", PROMISES)
def test_a_new_thing_takes_the_files_that_are_promised(copy, contributing, thing):
    keeps_its_promise(copy, contributing, thing)


def test_every_marked_line_is_carried_out_here(contributing):
    assert re.findall(r"^- \*\*(.+?)\*\* ✓:", contributing, re.MULTILINE) == list(PROMISES)


def test_a_file_that_is_not_named_is_noticed():
    text = "- **A hat** ✓: a row in `lora_core/hats.py`; a page `js/docs/<NodeId>/<language>.md`, and `js/locales/*.json`.\n"
    patterns = promised(text, "A hat")
    assert patterns == ["lora_core/hats.py", "js/docs/<NodeId>/<language>.md", "js/locales/*.json"]
    assert matches(patterns[1], "js/docs/LoraLoomHat/ja.md")
    assert not matches(patterns[1], "js/docs/LoraLoomHat/ja/more.md")
    assert matches(patterns[2], "js/locales/ja.json")
    assert not any(matches(pattern, "lora_core/losses.py") for pattern in patterns)
