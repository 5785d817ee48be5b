"""YAML text as a tree: the core schema's scalars, one line for text that is none, and limits that hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest

from adadistill.core.config import yaml_tree
from adadistill.core.config.yaml_tree import (
    ListNode,
    MapNode,
    ScalarNode,
    YamlError,
    merge,
    parse_document,
    parse_value,
    resolve_plain,
    show_text,
)


def test_plain_scalars_mean_what_the_core_schema_says() -> None:
    values: dict[str, object] = dict.fromkeys(("", "~", "null", "NULL")) | {"true": True, "False": False, "TRUE": True}
    values |= {"0": 0, "-17": -17, "+3": 3, "0x1F": 31, "0o17": 15}
    values |= {"1e-4": 1e-4, "1.": 1.0, ".5": 0.5, "-0.0": -0.0, "6.02E+23": 6.02e23, ".inf": math.inf}
    texts = ("nULL", "yes", "off", "N", "010", "-01", "00", "01.5", "0b11", "1_000", "1:30", "1e", ".", "+", "nan", "=")
    for text, value in (values | dict(zip(texts, texts, strict=True))).items():
        assert (resolve_plain(text), type(resolve_plain(text))) == (value, type(value)), text


def test_quoted_scalars_are_text_and_nodes_know_their_line() -> None:
    root = parse_document(b"a: '1'\nb:\n  - 2\n  - \"x\"\n", "f").root

    assert root == MapNode(
        {
            "a": ScalarNode("1", "1", True, "f", 1),
            "b": ListNode((ScalarNode(2, "2", False, "f", 3), ScalarNode("x", "x", True, "f", 4)), "f", 3),
        },
        "f",
        1,
    )


def test_the_first_of_two_equal_keys_is_kept_and_reported() -> None:
    parsed = parse_document(b"a: {b: 1, b: 2}\na: 3", "f")

    assert parsed.problems == ("duplicate key `a.b` (again in line 1)", "duplicate key `a` (again in line 2)")


def test_merging_replaces_all_but_mappings() -> None:
    below = parse_value("{a: {x: 1, y: 2}, b: [1, 2], c: {z: 1}}", "below").root
    above = parse_value("{a: {y: 3}, b: [4], c: null}", "above").root

    merged = merge(below, above)
    assert isinstance(merged, MapNode)
    inner = merged.entries["a"]
    assert isinstance(inner, MapNode)
    assert [(key, node.text, node.origin) for key, node in inner.entries.items() if isinstance(node, ScalarNode)] == [
        ("x", "1", "below"),
        ("y", "3", "above"),
    ]
    assert isinstance(merged.entries["b"], ListNode)
    assert len(merged.entries["b"].items) == 1
    assert isinstance(merged.entries["c"], ScalarNode)


def test_foreign_text_is_shown_short_and_printable() -> None:
    assert show_text("a\x1b[31m\ud800") == "a\\x1b[31m\\ud800"
    assert len(show_text("x" * 10_000)) < 80


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("name: a".encode("utf-16"), "line 1: not UTF-8 text (byte 0xff)"),
        ("name: a\nhead:\n\tmargin: 0.3", "line 3: found character '\\t' that cannot start any token; indent with"),
        ("name: a\nseed: 1\n  x: 2", "line 3: mapping values are not allowed here"),
        ("name: a\x00b", "line 1: has a character that YAML does not allow"),
        ("name: a\n---\nname: b", "line 2: a second document (---) is not allowed"),
        ("%YAML 1.1\n---\nname: a", "line 1: directives (%YAML, %TAG) are not allowed"),
        ("name: &a b\nseed: 1", "line 1: anchors and aliases (& and *) are not allowed"),
        ("name: a\n<<: {seed: 3}", "line 2: merge keys (<<) are not allowed"),
        ("name: !!python/object/apply:os.system [x]", "line 1: tags (tag:yaml.org,2002:python/object/apply:os.system)"),
        ("? [a, b]\n: c", "line 1: a key must be a name, not a list or a mapping"),
        ('name: "\\UFFFFFFFF"', "has an escape or number out of range"),
        ("seed: " + "9" * 5000, "line 1: a number of 5000 characters"),
        ("[" * 100_000, "line 1: is nested deeper than 64 levels"),
        ("\n".join(" " * i + "a:" for i in range(200)), "line 64: is nested deeper than 64 levels"),
        ("#" * 1_000_001, "is larger than 1,000,000 bytes, too large for a recipe"),
    ],
)
def test_text_that_is_no_recipe_gets_one_line(text: str | bytes, problem: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse_document(text if isinstance(text, bytes) else text.encode(), "f")

    error = caught.value
    reported = error.reason if error.line is None else f"line {error.line}: {error.reason}"
    assert reported.startswith(problem)
    assert reported.isprintable()


def test_a_text_of_too_many_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_tree, "MAX_NODES", 100)
    with pytest.raises(YamlError, match="line 1: has more than 100 values, too many for a recipe"):
        parse_document(b"sets: [" + b"a," * 101 + b"]", "f")


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: "k: '" + "'" * 900_000,
        lambda: "sets: [" + "{" * 60 + "a: " * 200_000,
        lambda: 'a: "' + "\\\\" * 400_000,
        lambda: "- " * 400_000,
        lambda: "a:\n" + " b\n" * 200_000 + "c",
    ],
)
def test_a_hostile_megabyte_is_refused_within_seconds(make: Callable[[], str]) -> None:
    text = make().encode()
    started = time.perf_counter()
    with pytest.raises(YamlError):
        parse_document(text, "f")

    assert time.perf_counter() - started < 30.0
