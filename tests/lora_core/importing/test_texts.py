import contextlib
import json

import pytest
from lora_loom.lora_core.importing.programs import Text, imported
from lora_loom.lora_core.importing.texts import MAX_TEXT, as_yaml, options_of, words_of
from lora_loom.lora_core.messages.errors import LoomError


def command(text):
    words, _ = words_of(text, "text")
    return options_of(words)


SAME = ("train_network.py", {"a": "1", "b": "x y", "c": True})


@pytest.mark.parametrize(
    "text",
    [
        "python train_network.py --a 1 --b 'x y' --c",
        'python train_network.py --a=1 --b="x y" --c',
        "A=1\nexport B='x y'\naccelerate launch train_network.py --a $A --b \"${B}\" --c",
        "python train_network.py \\\n  --a=1 \\\n  --b='x y' \\\n  --c \\\n",
        'python train_network.py ^\r\n  --a=1 ^\r\n  --b="x y" ^\r\n  --c',
        "python train_network.py `\n  --a=1 `\n  --b='x y' `\n  --c",
        "Some words, don't read them.\n```bash\npip install x\n$ python scripts/train_network.py --a 1 --b 'x y' --c  # comment\n```",
        "!python train_network.py --a 1 --b 'x y' --c",
        "set A=1\npython C:/train/train_network.py --a $A --b 'x y' --c",
    ],
)
def test_a_command_is_read_however_it_is_written(text):
    assert command(text) == SAME


def test_options_of_the_launcher_lists_and_negative_numbers():
    script, options = command(
        'accelerate launch --mixed_precision="fp16" --multi_gpu train.py --r -1 --list a b c --d=-2 --r 3'
    )
    assert script == "train.py"
    assert options == {
        "accelerate.mixed_precision": "fp16",
        "accelerate.multi_gpu": True,
        "r": "3",
        "list": ["a", "b", "c"],
        "d": "-2",
    }


def test_a_variable_that_is_not_set_stays_as_it_is():
    assert command("python train.py --a $NOWHERE/x")[1] == {"a": "$NOWHERE/x"}


HOSTILE = {
    "aliases": "a: &a [x]\n" + "\n".join(f"b{n}: *a" for n in range(50)),
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]" for n in range(9)),
    "merges": "a: &a {x: 1}\n" + "\n".join(f"b{n}: &b{n} {{<<: [{', '.join(['*a'] * 9)}]}}" for n in range(9)),
    "deep": "[" * 5000 + "]" * 5000,
    "deep json": '{"training_method":' * 3000 + "1" + "}" * 3000,
    "long": "x" * (MAX_TEXT + 1),
    "python": "job: !!python/object/apply:os.system ['true']\nconfig: {}",
    "variables": "A="
    + "x" * 5000
    + "\n"
    + "\n".join(f"{chr(66 + n)}=${chr(65 + n)}${chr(65 + n)}" for n in range(20))
    + "\npython train_network.py --a $U$U$U",
    "many": '{"training_method": "LORA", "x": [' + ",".join(["1"] * 30_000) + "]}",
    "control": "job: \x00\x01\nconfig: {}",
    "spaces": "python train_network.py " + " " * 200_000 + "--a 1",
    "word": "python " + "a" * 250_000,
    "backslashes": "python train_network.py " + "\\\n" * 60_000,
    "inner dots": "x = {" + ".".join("a" for _ in range(50_000)) + " = 1}",
    "keys": "".join(f"k{n} = 1\n" for n in range(20_000)),
    "dots": ".".join("a" * 1 for _ in range(50_000)) + " = 1",
    "nested yaml": "a:\n" + "".join(" " * n + "- x:\n" for n in range(1, 400)),
    "wide yaml": "job: [" + "x, " * 30_000 + "x]\nconfig: {}",
    "huge number": '{"training_method": "LORA", "epochs": 1' + "0" * 5000 + "}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_refused_or_read_within_bounds(name):
    with contextlib.suppress(LoomError):
        assert len(imported([Text("config", HOSTILE[name])]).toml()) < 100_000


def test_yaml_gives_plain_values_alone():
    assert as_yaml("a: 2020-01-01\nb: {1: [x, null]}", "x") == {"a": "2020-01-01", "b": {"1": ["x", None]}}
    with pytest.raises(LoomError, match="x refers back more than 20 times; write the values out"):
        as_yaml(HOSTILE["aliases"], "x")


@pytest.mark.parametrize(
    "value", ["1e999", "nan", "", " ", "[]", "{}", "-1", "1e-400", "\U0001f600", "a" * 70_000, "../../etc", "'", "NULL"]
)
@pytest.mark.parametrize(
    "key",
    [
        "network_dim",
        "learning_rate",
        "output_name",
        "resolution",
        "text_encoder_lr",
        "lr_warmup_steps",
        "mixed_precision",
    ],
)
def test_no_value_of_a_known_key_is_more_than_a_sentence(key, value):
    result = imported(
        [Text("config", f"max_train_steps = 5\nkeep_tokens = 1\n{key} = {json.dumps(value, ensure_ascii=False)}\n")]
    )
    assert result.messages()
    result.toml()
