import ast
import datetime
import re
import subprocess
import sys

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

HOST_MODULES = ["comfy", "comfy_api", "comfy_extras", "execution", "folder_paths", "nodes", "server"]


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources(root):
    """Every Python file that ships, parsed."""
    files = [
        p
        for p in root.rglob("*.py")
        if not {"tests", "benchmarks", "runs", "build"} & set(p.relative_to(root).parts[:1])
        and "/." not in p.as_posix()
    ]
    assert len(files) > 30
    return {p.relative_to(root).as_posix(): ast.parse(p.read_text(encoding="utf-8")) for p in files}


def test_requirements_equal_the_dependencies_of_the_project(root, project):
    lines = [line.strip() for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line and not line.startswith("#")] == project["project"]["dependencies"]


def test_dependencies_are_static_and_never_pinned_from_above(project):
    assert "dynamic" not in project["project"]
    for requirement in project["project"]["dependencies"]:
        assert not re.search(r"==|<|~=|@|--", requirement.split(";")[0]), requirement


def test_the_tested_set_names_a_version_of_every_dependency_for_every_platform(root, project):
    lines = (root / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    datetime.date.fromisoformat(re.search(r"made on (\S+) by", lines[0])[1])
    rows = [
        re.fullmatch(r"([a-z0-9-]+)==([0-9.]+\w*)( ; .+)?", line) for line in lines[1:]
    ]  # no local version such as +cpu: one index alone has those
    assert all(rows)
    extras = project["project"]["optional-dependencies"].values()
    asked = [re.match(r"[\w-]+", r)[0] for group in (project["project"]["dependencies"], *extras) for r in group]
    assert {name.lower() for name in asked} - {"lora-loom"} <= {row[1] for row in rows}


def test_both_commands_of_the_readme_install_the_tested_set(root):
    installs = re.findall(r"^.*\bpip install .*-e.*$", (root / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(installs) == 2
    assert all(" -c .ci/constraints.txt " in command for command in installs)


def test_the_version_is_that_of_the_top_changelog_entry(root, project):
    top = re.search(r"^## \[?v?(\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert top
    assert top[1] == project["project"]["version"]


def test_every_package_with_python_files_is_listed_for_the_wheel(root, project, sources):
    folders = {path.rpartition("/")[0].replace("/", ".") for path in sources}
    folders.discard("scripts")  # the WebUIs' door, which they run by its path
    expected = {"lora_loom", *(f"lora_loom.{name}" for name in folders if name)}
    assert set(project["tool"]["setuptools"]["packages"]) == expected


def test_the_wheel_says_that_its_types_may_be_checked(root, project):
    assert (root / "py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["lora_loom"]


def test_types_are_checked_in_every_room_that_ships(project, sources):
    rooms = {path.split("/")[0] for path in sources} - {"__init__.py"}
    assert set(project["tool"]["mypy"]["files"]) == rooms


def test_the_engine_and_the_formats_import_without_the_host_and_without_heavy_libraries(root, sources):
    modules = sorted(
        path.removesuffix(".py").replace("/", ".") for path in sources if path.startswith(("lora_core/", "convert/"))
    )
    names = [f"lora_loom.{name.removesuffix('.__init__')}" for name in modules]
    script = f"""
import importlib, importlib.util, json, pathlib, sys
root = pathlib.Path({str(root)!r})
sys.path[:] = [p for p in sys.path if p and pathlib.Path(p).resolve() != root]
spec = importlib.util.spec_from_file_location("lora_loom", root / "__init__.py", submodule_search_locations=[str(root)])
package = importlib.util.module_from_spec(spec)
sys.modules["lora_loom"] = package
spec.loader.exec_module(package)
early = sorted(m for m in sys.modules if m.split(".")[0] == "torch")
for name in {names!r}:
    importlib.import_module(name)
host = sorted(m for m in sys.modules if m.split(".")[0] in {HOST_MODULES!r})
heavy = sorted(m for m in ("diffusers", "transformers", "accelerate", "peft") if m in sys.modules)
print(json.dumps([early, host, heavy, any(m.startswith("lora_loom.nodes") for m in sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[[], [], [], false]"


def test_the_algebra_of_adapters_imports_nothing_of_ours_but_itself(sources):
    for path, tree in sources.items():
        if path.startswith("lora_core/algebra/"):
            for node in ast.walk(tree):
                assert not isinstance(node, ast.ImportFrom) or node.level < 2, f"{path}:{node.lineno}"


def called(node):
    """`torch.load` for the call torch.load(...)."""
    parts, target = [], node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return ".".join(reversed([*parts, target.id if isinstance(target, ast.Name) else "?"]))


def dangerous(tree):
    """(line, what) of everything that runs code from data or a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            found = {name.split(".")[0] for name in names} & {
                "pickle",
                "cPickle",
                "dill",
                "marshal",
                "shelve",
                "joblib",
            }
            yield from ((node.lineno, name) for name in found)
        elif isinstance(node, ast.Call):
            name, keywords = called(node), {k.arg: k.value for k in node.keywords}
            if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"):
                yield node.lineno, name
            if name.endswith("torch.load") and not (
                isinstance(keywords.get("weights_only"), ast.Constant) and keywords["weights_only"].value is True
            ):
                yield node.lineno, "torch.load without weights_only=True"
            if "shell" in keywords and not (
                isinstance(keywords["shell"], ast.Constant) and keywords["shell"].value is False
            ):
                yield node.lineno, "shell"
            if "allow_pickle" in keywords or "trust_remote_code" in keywords:
                yield node.lineno, "allow_pickle or trust_remote_code"


def test_no_source_file_runs_code_from_data_or_a_shell(sources):
    assert [(path, *what) for path, tree in sources.items() for what in dangerous(tree)] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec(x)", "import pickle", "from pickle import loads", "torch.load(p)", "torch.load(p, weights_only=False)", "os.system('x')",
        "subprocess.run('x', shell=True)", "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(p, trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_scan_for_dangerous_calls_finds_them(code):
    assert list(dangerous(ast.parse(code)))


def test_harmless_calls_pass_the_scan():
    assert not list(
        dangerous(
            ast.parse(
                "model.eval()\nre.compile('x')\ntorch.load(p, weights_only=True)\nsubprocess.run(['x'], shell=False)"
            )
        )
    )


def test_no_file_of_the_engine_reaches_the_network(sources):
    network = {"requests", "urllib", "http", "socket", "huggingface_hub", "aiohttp", "httpx"}
    for path, tree in sources.items():
        if path.startswith(("lora_core/", "convert/")):
            for node in ast.walk(tree):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                assert not {n.split(".")[0] for n in names} & network, f"{path}:{node.lineno}"


def test_help_comes_at_once_for_it_imports_no_torch():
    code = "import sys\ntry:\n    from lora_loom.__main__ import main; main(['--help'])\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "train" in done.stdout


def test_names_of_the_formats_are_found_however_their_modules_were_imported_before():
    code = "import lora_loom.convert.results, lora_loom.convert.readers\nfrom lora_loom.convert import __all__\nimport lora_loom.convert as c\n"
    code += (
        "assert all(getattr(c, name) is not None and type(getattr(c, name)).__name__ != 'module' for name in __all__)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
