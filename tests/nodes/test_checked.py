"""Values that come to a widget by a wire are held to what the widget itself allows, for every widget of every node."""

from __future__ import annotations

import importlib
import math
import sys

import pytest


@pytest.fixture(scope="module")
def nodes(root):
    """`nodes("checked")`: a module of our nodes, imported with the host stood in for."""
    sys.path.insert(0, str(root / "tests" / "reference"))
    schemas = importlib.import_module("schemas")
    schemas.load_package()
    with schemas.without_host():
        yield lambda name: importlib.import_module(f"lora_loom.nodes.{name}")
    sys.path.remove(str(root / "tests" / "reference"))


def test_every_number_of_every_node_has_bounds_that_mean_something(nodes):
    count = 0
    for node in nodes("extension").NODES:
        described = node.define_schema()
        for entry in described.inputs:
            if entry.kind not in ("INT", "FLOAT"):
                continue
            count += 1
            name = f"{described.node_id}.{entry.id}"
            assert entry.min is not None, name
            assert entry.max is not None, name
            assert math.isfinite(entry.min), name
            assert entry.min <= entry.default <= entry.max, name
            assert entry.min < entry.max <= (2**53 - 1 if entry.id == "seed" else 10**7), name
    assert count > 120


def widget(nodes, kind, **more):
    return nodes("host.access.api").Widget("it", kind, **more)


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        ("FLOAT", math.nan, "setting.not_finite"), ("FLOAT", -math.inf, "setting.not_finite"), ("FLOAT", 11.0, "setting.range"),
        ("FLOAT", "1", "setting.type"), ("FLOAT", 10**400, "setting.range"), ("INT", 2**63, "setting.range"), ("INT", -1, "setting.range"),
        ("INT", 1.5, "setting.type"), ("INT", math.nan, "setting.not_finite"), ("INT", [1], "setting.type"), ("BOOLEAN", "yes", "setting.type"),
        ("STRING", 5, "setting.type"), ("STRING", "a" * 20_001, "setting.long"), ("STRING", "a\ud800", "setting.half_character"),
        ("COMBO", "c", "setting.choice"), ("COMBO", ["a"], "setting.type"),
    ],
)  # fmt: skip
def test_what_a_widget_does_not_allow_is_refused_by_its_name(nodes, kind, value, code):
    from lora_loom.lora_core.messages.errors import LoomError

    one = widget(nodes, kind, low=0, high=10, options=("a", "b"))
    with pytest.raises(LoomError) as raised:
        nodes("checked").allowed([one], {"it": value}, {})
    assert (raised.value.message.code, raised.value.message.field) == (code, "it")


def test_what_a_widget_allows_comes_in_its_own_type_and_long_texts_where_a_node_takes_them(nodes):
    allowed, api = nodes("checked").allowed, nodes("host.access.api")
    widgets = [
        api.Widget("i", "INT", 0, 10),
        api.Widget("f", "FLOAT", 0, 10),
        api.Widget("t", "STRING"),
        api.Widget("l", "STRING", listed=True),
    ]
    out = allowed(widgets, {"i": 3.0, "f": 4, "t": "x" * 30_000, "l": ["a", "b"], "wire": object}, {"t": 40_000})
    assert (out["i"], out["f"], out["l"], len(out["t"])) == (3, 4.0, ["a", "b"], 30_000)
    assert (type(out["i"]), type(out["f"]), out["wire"]) == (int, float, object)
    assert allowed(widgets, {"i": None}, {}) == {"i": None}


def test_every_node_that_the_host_is_given_is_checked(nodes):
    assert all(
        "checked" in str(node.execute.__func__.__wrapped__.__code__.co_filename) for node in nodes("extension").NODES
    )
