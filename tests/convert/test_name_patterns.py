"""Patterns of layer names give what PEFT's own search gives, and names are looked up instead of searched."""

from __future__ import annotations

import random
import re

import pytest
from lora_loom.convert import name_patterns
from lora_loom.convert.name_patterns import NamePatterns
from lora_loom.lora_core.messages.errors import Problem
from since import since


def peft_answer(name, patterns, default):
    """`peft.utils.other.get_pattern_key` and what its callers do with it."""
    key = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), name)
    return patterns.get(key, default)


def random_name(rng, letters):
    return "".join(rng.choice(letters) for _ in range(rng.randint(1, 6)))


@pytest.mark.parametrize("seed", range(20))
def test_the_value_is_that_of_pefts_own_search(seed):
    rng = random.Random(seed)
    for _ in range(200):
        patterns = {random_name(rng, ["a", "b", ".", ".", r"\.", "_"]): n for n in range(rng.randint(0, 6))}
        if rng.random() < 0.3:
            patterns[rng.choice([r"a\d", "a|b", "[ab]", "a+", "b?a"])] = "searched"
            patterns = dict(rng.sample(list(patterns.items()), len(patterns)))
        name = random_name(rng, ["a", "b", ".", "_"])
        assert NamePatterns(patterns).value(name, "none") == peft_answer(name, patterns, "none"), (name, patterns)


@since("peft", "0.14", "get_pattern_key")
def test_peft_itself_answers_alike():
    peft = pytest.importorskip("peft.utils.other")
    patterns = {"down_blocks.0.to_q": 8, r"to_q": 4, r"blocks\.\d+\.ff": 2}
    for name in ("unet.down_blocks.0.to_q", "unet.down_blocks.1.to_q", "x.blocks.12.ff", "to_k"):
        key = peft.get_pattern_key(patterns, name)
        assert NamePatterns(patterns).value(name, 0) == patterns.get(key, 0)


def test_a_pattern_for_each_of_many_layers_costs_no_search(monkeypatch):
    def refuse(pattern):
        raise AssertionError(f"{pattern} was searched")

    monkeypatch.setattr(name_patterns, "_compiled", refuse)
    names = [f"unet.down_blocks.{n % 4}.attentions.{n // 4}.to_q" for n in range(3000)]
    patterns = NamePatterns({name.partition(".")[2]: n for n, name in enumerate(names)})
    assert [patterns.value(name, None) for name in names] == list(range(3000))


@pytest.mark.parametrize("pattern", ["(a*)*", "(a+){9}", "a*b*c*", "x" * 401 + "|y", "(", "a{2}{3}{4}"])
def test_what_could_take_long_or_is_none_is_refused(pattern):
    with pytest.raises(Problem):
        NamePatterns({pattern: 1}).value("aaaa", 0)
