"""What stands around the code: workflows, forms, hooks and promises name only what is there."""

from __future__ import annotations

import re

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def parsed(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", ["ci.yml", "publish.yml"])
def test_a_workflow_says_when_where_and_with_which_rights_it_runs(root, name):
    workflow = parsed(root / ".github" / "workflows" / name)
    assert workflow[True]  # YAML reads the key `on` so
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", step["uses"]) for step in steps(workflow) if "uses" in step)


def test_the_commands_of_the_workflows_name_what_is_there(root, project):
    commands = [
        step["run"]
        for name in ("ci.yml", "publish.yml")
        for step in steps(parsed(root / ".github" / "workflows" / name))
        if "run" in step
    ]
    text = "\n".join(commands)
    assert "bash .ci/run" in text
    files = re.findall(r"(?<![\w/~])(\.ci/\w[\w.]*|pyproject\.toml|tests/\w+)", text)
    assert [file for file in files if not (root / file).is_file()] == []
    assert {extra for names in re.findall(r'"\.\[(.*?)\]"', text) for extra in names.split(",")} <= project["project"][
        "optional-dependencies"
    ].keys()
    marks = [mark.partition(":")[0] for mark in project["tool"]["pytest"]["ini_options"]["markers"]]
    assert set(re.findall(r'-m "not (\w+)"', text)) <= set(marks)


def test_the_default_tests_run_on_every_system_and_every_python_from_the_oldest_on(root, project):
    matrix = parsed(root / ".github" / "workflows" / "ci.yml")["jobs"]["default"]["strategy"]["matrix"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "windows", "macos"}
    assert f">={matrix['python'][0]}" == project["project"]["requires-python"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]


def test_what_is_published_is_the_tagged_version(root, project):
    """The line of pyproject.toml that the publish workflow looks for."""
    lines = (root / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert lines.count(f'version = "{project["project"]["version"]}"') == 1


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_an_issue_form_is_one_the_page_accepts(root, name):
    form = parsed(root / ".github" / "ISSUE_TEMPLATE" / name)
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["label"]
        assert ("options" in part["attributes"]) == (part["type"] in ("dropdown", "checkboxes"))
    assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_the_bug_form_asks_for_versions_the_card_and_the_run(root):
    labels = " ".join(
        part["attributes"]["label"] for part in parsed(root / ".github" / "ISSUE_TEMPLATE" / "bug.yml")["body"]
    )
    assert [
        word
        for word in ("ComfyUI", "A1111", "Forge", "LoRA Loom", "GPU", "torch", "run.json", "run.log")
        if word not in labels
    ] == []


def test_the_hooks_run_tools_of_the_project(root, project):
    hooks = [hook for repo in parsed(root / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert all(repo["repo"] == "local" for repo in parsed(root / ".pre-commit-config.yaml")["repos"])
    tools = {hook["entry"].split()[0] for hook in hooks} - {"python"}
    assert tools <= set(project["project"]["optional-dependencies"]["test"])
    assert [
        file for hook in hooks for file in re.findall(r"\S+\.py", hook["entry"]) if not (root / file).is_file()
    ] == []


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md", ".github/PULL_REQUEST_TEMPLATE.md"])
def test_a_text_names_files_that_are_there(root, name):
    places = re.findall(
        r"`((?:\.ci|tests|lora_core|convert|nodes|js|docs|benchmarks)/[\w./-]+)`",
        (root / name).read_text(encoding="utf-8"),
    )
    assert [place for place in places if not (root / place).exists()] == []


def test_what_the_host_does_not_need_stays_out_of_its_registry(root):
    lines = (root / ".comfyignore").read_text(encoding="utf-8").split()
    assert [line for line in lines if not (root / line).exists()] == []
    shipped = {
        "__init__.py",
        "__main__.py",
        "lora_core",
        "convert",
        "nodes",
        "js",
        "locales",
        "example_workflows",
        "README.md",
        "LICENSE",
    }
    assert not shipped & {line.rstrip("/") for line in lines}


def test_the_tests_named_beside_the_methods_are_there(root):
    text = (root / "lora_core" / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)`", text)
    assert len(named) > 90
    ours = {path.relative_to(root / "tests").as_posix() for path in (root / "tests").rglob("test_*.py")}
    assert [name for name in named if name not in ours and f"lora_core/{name}" not in ours] == []
