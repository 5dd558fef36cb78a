"""Every method of the READMEs has changes that its named test must notice; `mutations.py` carries them out, here a share of them in slow runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter

import mutations
import pytest
from mutation_rows import FAULT, FAULTS, MUTATIONS, NO_TEST, Mutation
from mutations import problem

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def said(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def methods(root):
    """Method -> the tests its row names, files and folders."""
    text = (root / "lora_core" / "README.md").read_text(encoding="utf-8").replace("\\|", "/")
    rows = re.findall(r"^\| ([^|]+?) \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {name: re.findall(r"`([\w/.]+)`", tests) for name, tests in rows if name not in ("Method", "---")}


def test_every_change_can_be_made_and_its_test_is_there():
    assert [why for mutation in MUTATIONS if (why := problem(mutation))] == []
    assert len(set(MUTATIONS)) == len(MUTATIONS)


def test_every_method_has_a_change_that_its_named_test_must_notice(methods):
    assert len(methods) > 75
    changed = {mutation.row for mutation in MUTATIONS}
    assert [name for name in methods if name not in changed and name not in NO_TEST] == []
    assert [name for name in NO_TEST if name in changed or name not in methods] == []


def test_a_change_names_a_row_and_a_test_of_that_row(root, methods):
    """A change of the engine is for a row of its table; one of the formats for words of their README; one that brings a fault back for itself."""
    promises = said((root / "convert" / "README.md").read_text(encoding="utf-8"))
    for mutation in MUTATIONS:
        if mutation in FAULTS:
            assert mutation.row.startswith(f"{FAULT}: "), mutation
        elif mutation.row in methods:
            file = mutation.test.split("::")[0]
            named = methods[mutation.row]
            assert any(file == n or n.endswith("/") and file.startswith(n) for n in named), mutation
        else:
            assert mutation.row in promises, mutation


def test_each_kind_of_fault_has_changes_that_bring_it_back():
    kinds = Counter(mutation.row.partition("; ")[0].removeprefix(f"{FAULT}: ") for mutation in FAULTS)
    assert kinds.keys() == {"trained wrong", "lost in a file", "blamed wrongly", "a stranger's file", "a run's folder"}
    assert min(kinds.values()) >= 3


@FORKS
def test_what_a_change_does_to_its_test_is_told_apart(root, tmp_path):
    """On a small program: a change that is noticed, one that is not, one whose test was red before, one whose text is gone."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n\n\ndef size(n):\n    return abs(n)\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        textwrap.dedent("""
            import sys
            from pathlib import Path
            sys.path.insert(0, str(Path(__file__).parents[1]))
            from sums import add, size

            def test_adds():
                assert add(2, 3) == 5

            def test_sizes():
                assert size(3) == 3

            def test_red():
                assert add(1, 1) == 3
        """)
    )
    program = textwrap.dedent(f"""
        import json, pathlib, sys
        sys.path.insert(0, {str(root / "tests")!r})
        import mutations
        from mutation_rows import Mutation
        mutations.load_libraries([])
        changes = [
            Mutation("noticed", "sums.py", "a + b", "a - b", "test_sums.py::test_adds"),
            Mutation("not noticed", "sums.py", "abs(n)", "n", "test_sums.py::test_sizes"),
            Mutation("red", "sums.py", "a + b", "a - b", "test_sums.py::test_red"),
            Mutation("gone", "sums.py", "a * b", "a - b", "test_sums.py::test_adds"),
            Mutation("no test", "sums.py", "a + b", "a - b", "test_sums.py::test_subtracts"),
        ]
        print(json.dumps([v.outcome for v in mutations.judged(pathlib.Path({str(tmp_path)!r}), changes)]))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert outcomes == ["killed", "survived", "red before", "could not run", "could not run"]
    assert "a + b" in (tmp_path / "sums.py").read_text()  # everything is put back


def test_the_tests_of_a_file_are_looked_at_once_and_one_that_hangs_reddens_no_other(tmp_path, monkeypatch):
    """A whole file may take long on a busy machine: no limit is one for all tests together."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "sums.py").write_text("a + b\n")
    for name in ("one", "two"):
        text = "".join(f"def test_{place}():\n    pass\n" for place in ("first", "hangs"))
        (tmp_path / "tests" / f"test_{name}.py").write_text(text)
    asked = []

    def run_tests(place, tests, limit_s, first_only=True):
        if first_only:
            return mutations.FAILED, {tests[0]: "failed"}
        asked.append((list(tests), limit_s))
        return -1, {test: "passed" for test in tests if not test.endswith("hangs")}

    monkeypatch.setattr(mutations, "run_tests", run_tests)
    rows = ["test_two.py::test_hangs", "test_one.py::test_first", "test_two.py::test_first", "test_one.py::test_first"]
    changes = [Mutation(str(n), "sums.py", "a + b", f"a - {n}", test) for n, test in enumerate(rows)]
    outcomes = [verdict.outcome for verdict in mutations.judged(tmp_path, changes)]
    assert outcomes == [mutations.RED, mutations.KILLED, mutations.KILLED, mutations.KILLED]
    two = ["tests/test_two.py::test_first", "tests/test_two.py::test_hangs"]
    assert asked == [(two, 2 * mutations.LIMIT_S), (["tests/test_one.py::test_first"], mutations.LIMIT_S)]


def test_how_a_test_ended_is_kept_at_once(tmp_path):
    class Report:
        nodeid, outcome, when, failed, skipped = "tests/test_one.py::test_first", "passed", "call", False, False

    mutations.Outcomes(tmp_path / "outcomes.json").pytest_runtest_logreport(Report)
    assert json.loads((tmp_path / "outcomes.json").read_text(encoding="utf-8")) == {Report.nodeid: "passed"}


@FORKS
def test_a_test_that_never_ends_is_ended_with_what_it_has_started(hang_guard):
    """The limit has only to pass: what is waited for takes forever."""
    reading, writing = os.pipe()
    code = f"import os, time; os.write({writing}, b'.'); time.sleep(10_000)"
    child = os.fork()
    if child == 0:
        mutations._group(0)
        subprocess.Popen([sys.executable, "-c", code], pass_fds=[writing]).wait()
        os._exit(0)
    mutations._group(child)
    os.close(writing)
    with hang_guard():
        assert os.read(reading, 1) == b"."
        assert mutations._waited(child, 0.1) == -1
        assert os.read(reading, 1) == b""  # nobody is left who could write
    os.close(reading)


@FORKS
@pytest.mark.slow
@pytest.mark.parametrize("file", sorted({mutation.file for mutation in MUTATIONS}))
def test_every_change_is_noticed_by_the_named_test(file, root):
    command = [sys.executable, str(root / "tests" / "mutations.py"), "--file", file]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
