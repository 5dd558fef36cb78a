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
    groups = project["project"]["optional-dependencies"]
    extras = [
        group for name, group in groups.items() if name not in ("ui", "captions", "faces")
    ]  # gradio holds Pillow back, the others are asked for by one click each
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


def test_every_data_file_beside_the_code_goes_into_the_wheel(root, project):
    """What the code reads at run time must be there after `pip install`; papers for those who read the sources may stay behind."""
    tables = project["tool"]["setuptools"]["package-data"]
    folders = {"lora_core", "convert", "nodes", "js", "locales", "example_workflows"}
    files = (p for name in folders for p in (root / name).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    packed = set()
    for package, patterns in tables.items():
        folder = root.joinpath(*package.split(".")[1:])
        packed |= {p for pattern in patterns for p in folder.glob(pattern)}
    assert [str(p) for p in files if p.suffix not in (".py", ".md", ".svg") and p not in packed] == []


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


def test_the_algebra_of_adapters_imports_nothing_of_ours_but_itself_and_what_titles_are_made_of(sources):
    for path, tree in sources.items():
        if path.startswith("lora_core/algebra/"):
            for node in ast.walk(tree):
                outside = isinstance(node, ast.ImportFrom) and node.level > 1
                assert not outside or node.module == "messages.message", f"{path}:{node.lineno}"


COMPAT = "lora_core/compat.py"
NEWER = {  # than PyTorch 2.1, Pillow 9.5 and Python 3.10
    "accelerator", "CheckpointPolicy", "clip_grads_with_norm_", "create_selective_checkpoint_contexts", "custom_op", "DTensor", "fully_shard",
    "get_default_device", "get_total_norm", "GradScaler", "OutOfMemoryError", "recompile_limit", "rms_norm", "RMSNorm", "sdpa_kernel",
    "set_model_state_dict", "swap_tensors", "tomllib", "torchao", "_fused_adamw_",
}  # fmt: skip
NEWER_OPTIONS = {("exif_transpose", "in_place"), ("AdamW", "fused"), ("Adam", "fused"), ("SGD", "fused")}
STARTS = re.compile(r"(^|\.)init\.\w+_$")  # of torch.nn.init, which take no generator before 2.3
ASKS = {"version_info", "__version__"}
MAY_ASK = {  # about something else than what is lacking
    "convert/files/disk.py": "before which PyTorch its own files may run code",
    "lora_core/data/sources.py": "an option that the package datasets has dropped",
    "nodes/host/access/api.py": "what a run's card says of ComfyUI",
    "nodes/__init__.py": "whether ComfyUI is new enough to show its nodes",
    "lora_core/training/conditions.py": "what a checkpoint says it was trained with",
    "lora_core/matching/regex.py": "the grammar of Python's patterns",
}


def newer(tree):
    """(line, name) of what the oldest libraries lack, and of questions which version is there."""
    imported = {
        a.asname or a.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for a in node.names
    }
    for node in ast.walk(tree):
        names = [node.attr] if isinstance(node, ast.Attribute) else []
        names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names += [*(node.module or "").split("."), *(a.name for a in node.names)]
        ours = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported
        yield from ((node.lineno, name) for name in names if name in NEWER | ASKS and not ours)
        if isinstance(node, ast.Call):
            name, keywords = called(node), {k.arg for k in node.keywords}
            options = {(name.rpartition(".")[2], keyword) for keyword in keywords}
            yield from ((node.lineno, f"{call}({option}=)") for call, option in options & NEWER_OPTIONS)
            if STARTS.search(name) and "generator" in keywords:
                yield node.lineno, f"{name}(generator=)"
            if name.endswith("load_default") and (node.args or node.keywords):
                yield node.lineno, "load_default(size)"


def test_what_the_oldest_libraries_lack_is_used_in_one_file_only(sources):
    found = [(path, *what) for path, tree in sources.items() if path != COMPAT for what in newer(tree)]
    assert [row for row in found if not (row[0] in MAY_ASK and row[2] in ASKS)] == []
    assert {path for path, *_ in found} == set(MAY_ASK)  # none stands there in vain
    assert list(newer(sources[COMPAT]))


@pytest.mark.parametrize(
    "code",
    [
        "torch.OutOfMemoryError", "from torch.distributed.tensor import DTensor", "torch.nn.utils.get_total_norm(g)", "import tomllib",
        "torch.optim.AdamW(g, fused=True)", "ImageOps.exif_transpose(i, in_place=True)", "ImageFont.load_default(12)", "torch.__version__ >= '2.4'",
        "nn.init.normal_(p, generator=g)", "torch.nn.init.kaiming_uniform_(p, generator=g)", "sys.version_info >= (3, 11)",
    ],
)  # fmt: skip
def test_the_scan_for_newer_libraries_finds_them(code):
    assert list(newer(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "from .. import compat\ncompat.OutOfMemoryError", "from ..compat import fully_shard\nfully_shard()", "ImageOps.exif_transpose(i)",
        "ImageFont.load_default()", "p.normal_(generator=g)", "adamw(groups, fused)",
    ],
)  # fmt: skip
def test_what_every_library_has_passes_that_scan(code):
    assert not list(newer(ast.parse(code)))


HOSTS_HAVE = ("numpy", "PIL", "safetensors", "torch", "tqdm")  # every WebUI
LACKING = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "diffusers",
    "huggingface_hub",
    "peft",
    "psutil",
    "pyarrow",
    "tensorboard",
    "transformers",
)
WITHOUT = f"""
import importlib, sys
class Lacking:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {LACKING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking)
"""


def test_the_engine_and_what_hosts_share_import_with_nothing_but_what_every_webui_has(sources):
    """A WebUI's environment is left as it is: what it lacks is asked for where it is used, by name."""
    rooms = ("lora_core/", "convert/", "nodes/jobs/", "nodes/terminal/")
    modules = [path.removesuffix(".py").replace("/", ".") for path in sources if path.startswith(rooms)]
    names = [f"lora_loom.{name.removesuffix('.__init__')}" for name in modules]
    code = f"{WITHOUT}\nfor name in {names!r}:\n    importlib.import_module(name)\nprint(len(sys.modules))"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


LACKED = [
    ("from lora_loom.lora_core.backends.opening import open_backend; open_backend('toy')", "diffusers"),
    ("from lora_loom.lora_core.runs.trackers import Tracker; Tracker('tensorboard', 'x', None)", "accelerate"),
    ("from lora_loom.nodes.jobs.headless import folder_in_hub_cache; folder_in_hub_cache('x')", "huggingface_hub"),
    ("from lora_loom.lora_core.optim.optimizers import OPTIMIZERS; OPTIMIZERS['adafactor'].make([], None)", "transformers"),
    ("import os; os.environ['WORLD_SIZE'] = '2'; from lora_loom.lora_core.processes import launched; launched()", "accelerate"),
]  # fmt: skip


def test_what_a_host_lacks_is_asked_for_by_name():
    tries = """
for use in uses:
    try:
        exec(use)
    except Exception as error:
        print(error)
    else:
        print("done without it")
"""
    code = f"{WITHOUT}\nuses = {[use for use, _ in LACKED]!r}\n{tries}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    wanted = "needs the Python package {0}, which is not installed here; install it with: pip install {0}"
    said = done.stdout.splitlines()
    assert len(said) == len(LACKED)
    assert all(line.endswith(wanted.format(package)) for line, (_, package) in zip(said, LACKED, strict=True)), said


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "train" in done.stdout


def test_names_of_the_formats_are_found_however_their_modules_were_imported_before():
    code = "import lora_loom.convert.results, lora_loom.convert.readers\nfrom lora_loom.convert import __all__\nimport lora_loom.convert as c\n"
    code += (
        "assert all(getattr(c, name) is not None and type(getattr(c, name)).__name__ != 'module' for name in __all__)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=600, check=True)
