"""The tested set of versions, `.ci/constraints.txt`: `update` resolves it anew, `age` says how old it is, `differences` names what is installed instead.

`update` takes the newest of everything that pyproject.toml asks for, but for the lines of `.ci/constraints.in`, for Python 3.10 and newer and every
platform at once. It needs uv (`pip install uv`). Run the tests with the new set before it is committed.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE, LIMITS = ROOT / ".ci" / "constraints.txt", ROOT / ".ci" / "constraints.in"
OLDEST_PYTHON = "3.10"
PAGE = "ui"
BROUGHT_BY_TORCH = (
    "nvidia-",
    "cuda-",
    "triton",
)  # torch names the exact ones of its build, and builds for other CUDA versions need others


def extras() -> list[str]:
    """What is asked for besides: every extra but that of the page, since gradio holds Pillow back (6.31 asks for one below 13)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    names = re.findall(r"^([\w-]+) = \[", text.split("\n[")[0], re.MULTILINE)
    return [part for name in names if name != PAGE for part in ("--extra", name)]


def resolved() -> list[str]:
    """Lines `name==version ; marker`, sorted."""
    command = [
        "uv",
        "pip",
        "compile",
        ROOT / "pyproject.toml",
        *extras(),
        "--universal",
        "--python-version",
        OLDEST_PYTHON,
        "--constraint",
        LIMITS,
    ]
    done = subprocess.run(
        [*map(str, command), "--quiet", "--no-header", "--no-annotate"], stdout=subprocess.PIPE, text=True, check=True
    )
    return [line for line in done.stdout.splitlines() if not line.startswith(BROUGHT_BY_TORCH)]


def update() -> None:
    lines = [re.sub(r"\+\w+", "", line) for line in resolved()]  # a local version such as +cpu exists on one index only
    head = f"# The tested set of versions, made on {datetime.date.today()} by `python3 .ci/constraints.py update`."
    FILE.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def made_on() -> datetime.date:
    """The day in the first line of the file."""
    head = FILE.read_text(encoding="utf-8").splitlines()[0]
    return datetime.date.fromisoformat(re.search(r"\d{4}-\d{2}-\d{2}", head)[0])


def age() -> str:
    return f"The tested set of versions is of {made_on()}, {(datetime.date.today() - made_on()).days} days old."


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def differences() -> list[str]:
    """`name installed (tested: versions)` for each package of the set that is installed in another version; local versions such as +cpu are the same."""
    tested: dict[str, set[str]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split(";")[0].strip().split("==")
            tested.setdefault(normal(name), set()).add(version)
    installed = {normal(d.metadata["Name"]): d.version.split("+")[0] for d in metadata.distributions()}
    shared = sorted(tested.keys() & installed.keys())
    return [
        f"{name} {installed[name]} (tested: {', '.join(sorted(tested[name]))})"
        for name in shared
        if installed[name] not in tested[name]
    ]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["update"]:
            update()
            print(age())
        case ["age"]:
            print(age())
        case ["differences"]:
            print("\n".join(differences()) or "Every package is of the tested set.")
        case _:
            sys.exit("usage: python3 .ci/constraints.py update|age|differences")
