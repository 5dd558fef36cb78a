import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.runs.folders import last_run, new_run


def test_a_new_run_never_takes_a_folder_that_exists(tmp_path):
    root = tmp_path / "runs"
    assert [new_run(root, "a").name for _ in range(3)] == ["a", "a_2", "a_3"]
    (root / "b").write_text("a file in the way")
    assert new_run(root, "b").name == "b_2"


def test_the_last_run_is_the_highest_number_with_checkpoints(tmp_path):
    assert last_run(tmp_path / "nowhere", "a") is None
    for name in ("a", "a_2", "a_10", "a_11", "ab", "a_x", "a_3_4"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    (tmp_path / "a_11" / "checkpoints").rmdir()
    assert last_run(tmp_path, "a").name == "a_10"


def test_special_characters_of_a_name_are_not_a_pattern(tmp_path):
    for name in ("v1.0", "v1x0_2"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    assert last_run(tmp_path, "v1.0").name == "v1.0"


def test_a_name_with_a_path_never_reaches_the_disk(tmp_path):
    for call in (new_run, last_run):
        with pytest.raises(LoomError, match="contains a path"):
            call(tmp_path / "runs", "../x")
    assert not (tmp_path / "x").exists()
