"""The folder of a Space: everything in it, nothing that belongs elsewhere, and it runs as it is."""

import ast
import os
import re
import subprocess
import sys

import pytest
from lora_loom.__main__ import main
from lora_loom.nodes.ui import space


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("space") / "my_space"
    assert main(["ui", "--space", str(place)]) == 0
    return place


def test_a_space_has_what_the_hub_asks_for(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = dict(re.findall(r"^(\w+): (.+)$", card.split("---")[1], re.MULTILINE))
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "license"} <= front.keys()
    assert (front["sdk"], front["app_file"]) == ("gradio", "app.py")
    assert len(front["short_description"]) <= 60
    assert ast.parse((folder / front["app_file"]).read_text(encoding="utf-8"))


def test_its_requirements_are_those_of_the_project_and_gradio_is_left_to_the_card(folder, root):
    listed = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    asked = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [line for line in asked if line.strip() and not line.startswith("#")]
    assert not any("gradio" in line for line in listed)


def test_nothing_of_this_machine_is_in_it(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "app.py", "lora_loom", "requirements.txt"]
    names = {path.name for path in folder.rglob("*")}
    assert not names & {"__pycache__", ".git", "tests", ".venv"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["ui", "--space", str(tmp_path)]) == 1
    assert "--space" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_installed_package_knows_its_requirements_without_the_file(monkeypatch, tmp_path):
    lines = ["torch", 'tomli; python_version < "3.11"', 'gradio>=4.40; extra == "ui"']
    monkeypatch.setattr(space, "ROOT", tmp_path)
    monkeypatch.setattr(space.importlib.metadata, "requires", lambda name: lines)
    assert space.packages() == lines[:2]


@pytest.mark.slow
def test_the_space_runs_from_its_folder_alone_and_refuses_to_without_a_password(folder):
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LORA_LOOM_PASSWORD")}
    listed = subprocess.run([sys.executable, "-m", "lora_loom", "recipes"], cwd=folder, env=env, capture_output=True)
    assert listed.returncode == 0, listed.stderr
    done = subprocess.run([sys.executable, "app.py"], cwd=folder, env=env, capture_output=True, text=True)
    assert (done.returncode, "LORA_LOOM_PASSWORD" in done.stderr) == (1, True), done.stderr
