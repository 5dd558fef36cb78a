"""No English inside a message: what stands in the places of a sentence is a name, a figure, a quotation, or a message of its own."""

import ast
import builtins
import importlib
import re

import pytest

# A file and a text (places as {}) that may be a value as it stands, with the reason.
ALLOWED = {
    ("__main__.py", "lora-loom {}"): "a command as it is typed",
    ("lora_core/backends/flow.py", "guidance_embeds: false"): "a line of the model's config.json",
    ("nodes/host/engine/base_model.py", "Flux schnell"): "the name of a model",
    ("nodes/caption_pictures.py", "the model at clip"): "a choice of the node, which is called so in every language",
    # Errors about our own code, which no input of a user brings about.
    ("convert/__init__.py", "module {} has no attribute {}"): "Python's own words for an import of ours that is wrong",
    ("lora_core/adapters/base.py", "{} must say how it acts on a layer"): "a kind of adapter that is not finished",
    (
        "lora_core/adapters/set.py",
        "adapter state does not fit: {} missing, {} unknown, e.g. {}",
    ): "checkpoints are checked before",
    ("lora_core/algebra/kind.py", "{} must give its change"): "a kind of adapter that is not finished",
    ("lora_core/algebra/kind.py", "{} must say how it starts"): "a kind of adapter that is not finished",
    ("lora_core/algebra/oft.py", "{} must say how it rotates"): "a kind of adapter that is not finished",
    ("lora_core/algebra/glora.py", "glora changes a weight relative to its value, which was not given"): "the caller's",
    ("lora_core/algebra/ia3.py", "ia3 changes a weight relative to its value, which was not given"): "the caller's",
    ("lora_core/algebra/oft.py", "{} changes a weight relative to its value, which was not given"): "the caller's",
    (
        "lora_core/data/buckets.py",
        "{} x {} px is below one step of {} px",
    ): "folder.py says it before, as picture.small",
    ("lora_core/data/store.py", "{} cannot be part of a cache key"): "the caller's",
    ("lora_core/pictures/writing.py", "no table {}"): "a font that is bundled with us",
    (
        "nodes/__init__.py",
        "LoRA Loom needs ComfyUI {} or newer, this is {}; update ComfyUI.",
    ): "said before we are loaded",
    ("nodes/jobs/requests.py", "{} is not JSON"): "caught at once, and told as request.no_json",
    ("nodes/webui/page.py", "Not authenticated"): "an answer of the WebUI itself, in its words",
}
MAKERS = {"blamed"}  # functions that are given a code and values, as a message is
WRITERS = {"sys.stdout.write", "sys.stderr.write"}
UNITS = {"kB", "MB", "GB", "px", "min"}
PROGRAM = "lora-loom:"  # in front of a line of the terminal


@pytest.fixture(scope="module")
def texts(root):
    import sys

    sys.path.insert(0, str(root / "tests" / "lora_core" / "messages"))
    yield importlib.import_module("test_texts")
    sys.path.remove(str(root / "tests" / "lora_core" / "messages"))


def text_of(node):
    """What a literal says, with {} for each place; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def is_phrase(text):
    """Whether it holds a word that is no unit beside something else, and a space between: `a cat`, `{} rows`, ` and `."""
    words = set(re.findall(r"[A-Za-z]{2,}", text.replace(PROGRAM, "")))
    return " " in text.strip("\n") and bool(words - UNITS)


class File:
    """The phrases of one file that end in a message, each with its line."""

    def __init__(self, tree, is_message):
        self._is_message, self.found = is_message, []
        self._functions = {f.name: f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)}
        table = self._assigned(tree.body)
        self._tables = [{name: [v for v in values if text_of(v) is not None] for name, values in table.items()}]
        self._visit(tree)

    def _assigned(self, body):
        """Name -> what is assigned to it in a module or a function, by statements that are not another function's."""
        out, queue = {}, [*body]
        while queue:
            node = queue.pop()
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    pairs = [(target, node.value)]
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pairs = zip(target.elts, node.value.elts)
                    for name, value in pairs:
                        if isinstance(name, ast.Name):
                            out.setdefault(name.id, []).append(value)
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
                queue += ast.iter_child_nodes(node)
        return out

    def _visit(self, node):
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if inside:
            self._tables.append(self._assigned(node.body))
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            if self._is_message(node) or called in MAKERS:
                for value in node.keywords:
                    self._look(value.value, set())
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            kind = getattr(builtins, node.exc.func.id, None)
            if (isinstance(kind, type) and issubclass(kind, Exception)) or node.exc.func.id == "HTTPException":
                for value in node.exc.args:
                    self._look(value, set())
        for child in ast.iter_child_nodes(node):
            self._visit(child)
        if inside:
            self._tables.pop()

    def _look(self, node, seen):
        """What a value is made of: literals, names that stand for them here, what functions of the file give back."""
        text = text_of(node)
        if text is not None and is_phrase(text):
            self.found.append((node.lineno, text))
        if isinstance(node, ast.Name) and node.id not in seen:
            for table in self._tables:
                for value in table.get(node.id, ()):
                    self._look(value, {*seen, node.id})
        if isinstance(node, ast.Call):
            if self._is_message(node):
                return  # which is looked at by itself
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            function = self._functions.get(name)
            if function is not None and name not in seen:
                for one in ast.walk(function):
                    if isinstance(one, ast.Return) and one.value is not None:
                        self._look(one.value, {*seen, name})
            for part in ([node.func.value] if isinstance(node.func, ast.Attribute) else []) + node.args:
                self._look(part, seen)
            return
        if isinstance(node, ast.Compare | ast.JoinedStr | ast.Subscript):
            return  # what is compared and looked up is not told
        if isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.Dict):
            parts = node.values
        else:
            parts = ast.iter_child_nodes(node)
        for part in parts:
            self._look(part, seen)


def terminal_lines(tree):
    """(line, text) of what is written for people without a message."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in WRITERS:
            yield from ((call.lineno, text) for node in call.args if (text := text_of(node)) is not None)


@pytest.fixture(scope="module")
def phrases(root, texts):
    """(file, line, text) of all phrases that end in a message."""
    return [(path, *one) for path, tree in texts.trees(root) for one in File(tree, texts.is_message).found]


def test_no_value_of_a_message_is_an_english_phrase(phrases):
    told = {f"{path}:{line} {text!r}" for path, line, text in phrases if (path, text) not in ALLOWED}
    assert not told, "each needs a code with its sentence in every language: Message.of(...) as the value"


def test_what_is_allowed_is_there(phrases):
    assert ALLOWED.keys() - {(path, text) for path, _, text in phrases} == set()


def test_the_terminal_says_nothing_without_a_message(root, texts):
    told = [
        f"{path}:{line} {text!r}"
        for path, tree in texts.trees(root)
        if path.startswith("nodes/terminal/") or path == "__main__.py"
        for line, text in terminal_lines(tree)
        if is_phrase(text)
    ]
    assert told == []


@pytest.mark.parametrize(
    "code",
    [
        'LoomError("a.b", reason="is no file")',
        'LoomError("a.b", reason=f"{len(tags)} rows")',
        'FormatError("a.b", field="c", kinds=" and ".join(kinds))',
        'Message.of("a.b", what="the input" if given else name)',
        'Message.of("a.b", names=["one thing", "two"])',
        'Message.of("a.b", **{"label": "best, step"})',
        'with blamed("a.b", "c", name="a step"):\n    pass',
        'def f():\n    held = f"the parts of {x}"\n    raise LoomError("a.b", parts=held)',
        'def f():\n    values = {"size": "a number"}\n    raise LoomError("a.b", **values)',
        'def size(x):\n    return shape(x) or "a number"\nLoomError("a.b", size=size(x))',
        'def f():\n    raise ValueError("is nested too deeply")',
        'Message.of("a.b", error=Message.of("c.d", why="not this way"))',
    ],
)
def test_a_phrase_is_found_on_each_way_into_a_message(code, texts):
    assert len(File(ast.parse(code), texts.is_message).found) == 1


@pytest.mark.parametrize(
    "code",
    [
        'LoomError("a.b", file=f"{folder.name}/{part}", shape=" x ".join(map(str, shape)))',
        'LoomError("a.b", reason=Message.of("c.d"))',
        'LoomError("a.b", unit="px", found=table["a b"], same=word == "a b")',
        'print("one line")',
    ],
)
def test_names_figures_and_messages_are_none(code, texts):
    assert File(ast.parse(code), texts.is_message).found == []
