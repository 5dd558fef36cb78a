"""The rotating share of the tests: every test and file in every run, every row in one of the parts."""

import pytest
import share_of_tests as share

SEEDS = [f"commit {n}" for n in range(200)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 11, 40])
def test_every_row_is_in_some_part_and_each_part_has_its_fair_number_of_rows(count):
    parts = [share.chosen_rows("test_x.py test_y", count, 4, seed) for seed in SEEDS]
    assert set().union(*parts) == set(range(count))
    assert all(max(1, count // 4) <= len(part) <= -(-count // min(4, count)) for part in parts)


def test_the_same_commit_chooses_the_same_rows_and_others_choose_others():
    chosen = [share.chosen_rows("g", 12, 4, seed) for seed in SEEDS]
    assert chosen == [share.chosen_rows("g", 12, 4, seed) for seed in SEEDS]
    assert len({frozenset(rows) for rows in chosen}) == 4


FILE = """
import pytest

@pytest.mark.parametrize("n", range(8))
def test_rows(n): pass

def test_alone(): pass

@pytest.mark.always
@pytest.mark.parametrize("n", range(5))
def test_marked(n): pass

@pytest.mark.release
@pytest.mark.parametrize("n", range(3))
def test_rare(n): pass
"""
SLOW = """
import pytest
pytestmark = pytest.mark.slow

def test_a(): pass
def test_b(): pass
def test_c(): pass
def test_d(): pass
def test_e(): pass
"""
CONFTEST = """
import share_of_tests as share
pytest_addoption = share.options
def pytest_sessionstart(session): share.announce(session.config)
def pytest_collection_modifyitems(config, items): share.choose(config, items)
"""


@pytest.fixture
def project(pytester):
    pytester.makeini("[pytest]\nmarkers =\n    slow\n    always\n    release\n")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_file=FILE, test_slow=SLOW)
    return pytester


def test_a_share_leaves_out_rows_and_neither_tests_nor_files_but_for_what_is_marked_release(project):
    found = project.runpytest_inprocess("--share", "1/4", "--share-seed", "abc", "-v", "-p", "no:xdist")
    found.assert_outcomes(
        passed=2 + 1 + 5 + found.stdout.str().count("test_slow.py::"),
        deselected=16 - found.stdout.str().count("test_slow.py::") - 2,
    )
    assert found.stdout.str().count("::test_rows[") == 2
    assert "::test_rare[" not in found.stdout.str()
    assert found.stdout.str().count("test_slow.py::") in (1, 2)
    found.stdout.fnmatch_lines(["share 1/4 of the rows*'abc'*"])


def test_without_a_share_everything_runs(project):
    project.runpytest_inprocess("-p", "no:xdist").assert_outcomes(passed=22)


@pytest.mark.parametrize("given", ["2/4", "1/0", "1", "a/b"])
def test_what_is_no_share_is_refused(given, project):
    found = project.runpytest_inprocess("--share", given, "-p", "no:xdist")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    found.stderr.fnmatch_lines([f"*--share: '{given}' is no share; write one like 1/4*"])
