import pytest
from lora_loom.lora_core.messages.errors import LoomError
from lora_loom.lora_core.names import check_name


@pytest.mark.parametrize("name", ["a", "my_lora", "v1.2 (final) +x-y", "Мой стиль", "猫", "3d", "console", "n" * 120])
def test_ordinary_names_pass_unchanged(name):
    assert check_name("name", name) == name


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "a\\b", "C:x", "C:\\x", "x:stream", ".." + "/"])
def test_paths_are_refused(name):
    with pytest.raises(LoomError, match="contains a path"):
        check_name("name", name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        ".hidden",
        "_x",
        "-x",
        " x",
        "x.",
        "x ",
        "a\nb",
        "a\0b",
        "a*b",
        "a?b",
        'a"b',
        "a|b",
        "a<b",
        "\u202ex",
    ],
)
def test_names_that_some_system_cannot_hold_are_refused(name):
    with pytest.raises(LoomError, match="output_name: .* cannot be a file name"):
        check_name("output_name", name)


@pytest.mark.parametrize("name", ["con", "CON", "nul.txt", "Com1", "lpt9.x", "aux .b"])
def test_names_reserved_on_windows_are_refused(name):
    with pytest.raises(LoomError, match="is reserved on Windows"):
        check_name("name", name)


@pytest.mark.parametrize("name", ["n" * 121, "猫" * 41])
def test_names_longer_than_120_bytes_are_refused_with_their_length(name):
    with pytest.raises(LoomError, match=rf"has {len(name.encode())} bytes; at most 120"):
        check_name("name", name)
