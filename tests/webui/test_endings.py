"""However a run ends, the host is afterwards what it was: weights, modules, hooks, flags, random state, options, a picture of a fixed seed."""

import ast
from pathlib import Path

import pytest

FILE = "endings.py"
_states = {}  # of each host after the last ending


def rows():
    """The names of `ENDINGS`, with how each has to end."""
    tree = ast.parse((Path(__file__).parent / "inside" / FILE).read_text())
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "ENDINGS")
    return [(key.value, row.elts[3].value) for key, row in zip(table.keys, table.values, strict=True)]


LEAVES_FILES = ("finished", "stopped", "paused")
BEFORE_THE_FIRST_STEP = ("while pictures are encoded", "while texts are encoded", "while class pictures", "in a validation", "cannot be")  # fmt: skip


@pytest.fixture
def before(server):
    """The host's state, which an ending before this one has left or nobody has touched."""
    if server not in _states:
        _states[server] = server.inside("state", file=FILE)
    return _states[server]


@pytest.mark.parametrize(("name", "outcome"), rows(), ids=[name for name, _ in rows()])
def test_the_host_is_the_same_after(server, before, name, outcome):
    found = server.inside("end", file=FILE, name=name)
    after = _states[server] = found.pop("state")
    different = {key: (before.get(key), after.get(key)) for key in before | after if before.get(key) != after.get(key)}
    assert len(before) > 1200
    assert different == {}
    assert found["random_state"]
    if outcome == "ValueError":  # as it was thrown, or in the sentence that says where
        assert found["outcome"] in ("ValueError", "LoomError"), found
        assert "broken on purpose" in found["said"], found
    else:
        assert found["outcome"] == outcome, found
    untrained = any(words in name for words in BEFORE_THE_FIRST_STEP) or "full disk" in name
    assert bool(found["kept"]) != untrained, found


def test_there_are_as_many_endings_as_a_user_can_cause():
    assert len(rows()) >= 26
