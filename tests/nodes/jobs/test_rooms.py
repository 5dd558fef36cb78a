"""What the jobs and the terminal may import: no host, and nothing heavy before a command runs."""

import ast
import json
import subprocess
import sys

HOST_MODULES = ["comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "nodes", "server"]


def test_the_rooms_below_nodes_that_hosts_share_import_without_one(root):
    modules = sorted(
        f"lora_loom.nodes.{room}.{p.stem}"
        for room in ("jobs", "terminal")
        for p in (root / "nodes" / room).glob("*.py")
        if p.stem != "__init__"
    )
    assert len(modules) > 20
    code = f"""
import importlib, json, sys
for name in {modules!r}:
    importlib.import_module(name)
hosts = sorted(m for m in sys.modules if m.split(".")[0] in {HOST_MODULES!r} or m.startswith("lora_loom.nodes.host"))
print(json.dumps(hosts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_no_file_of_these_rooms_names_a_host_and_no_host_names_the_terminal(root):
    def imported(path):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        return {part for node in nodes for part in (node.module or "").split(".")} | {
            a.name for node in nodes for a in node.names
        }

    for room in ("jobs", "terminal"):
        for path in (root / "nodes" / room).glob("*.py"):
            assert not imported(path) & {"host", *HOST_MODULES}, path
    for path in (root / "nodes" / "host").rglob("*.py"):
        assert "terminal" not in imported(path), path


def test_every_command_shows_its_help_without_torch(root):
    code = """
import contextlib, io, json, sys
from lora_loom.__main__ import main
from lora_loom.nodes.terminal import COMMANDS
texts = []
for name in COMMANDS:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([name, "--help"])
    texts.append(out.getvalue())
heavy = sorted({m.split(".")[0] for m in sys.modules} & {"torch", "numpy", "PIL", "diffusers", "safetensors"})
print(json.dumps([heavy, [f"usage: lora-loom {name}" in text for name, text in zip(COMMANDS, texts)]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    heavy, named = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert all(named)


def test_every_file_of_a_command_is_in_the_table_and_the_other_way_round(root):
    from lora_loom.nodes.terminal import COMMANDS, STEPPING

    files = {
        p.stem.rstrip("_")
        for p in (root / "nodes" / "terminal").glob("*.py")
        if "\ndef execute(args: argparse.Namespace) -> int:" in p.read_text(encoding="utf-8")
    }
    assert files == {name.replace("-", "_") for name in COMMANDS}
    assert set(STEPPING) <= COMMANDS.keys()


def test_a_field_in_a_sentence_is_spelled_as_the_terminal_calls_it():
    from lora_loom.lora_core.messages.message import Message, Setting
    from lora_loom.nodes.terminal import in_words

    message = Message.of("note.foreign", count=1, key="x", option=Setting("drop_unknown"))
    assert "--drop-unknown" in in_words(message)
