"""Configs as text: what is written, that other readers understand it, and what differs between two configs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import yaml

from adadistill.core.config.text import (
    canonical_json,
    config_differences,
    dump_config,
    dump_value,
    leaf_keys,
    plain_values,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A section."""

    lr: float = 0.1
    milestones: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """A config with a section that may be absent."""

    name: str
    clip_norm: float | None = None
    exact: bool = False
    maybe: Inner | None = None
    inner: Inner = field(default_factory=Inner)


def test_a_dump_has_every_value_in_the_order_of_the_fields() -> None:
    assert dump_config(Outer(name="a", inner=Inner(milestones=(7, 13), lr=1e-5))) == (
        "name: a\nclip_norm: null\nexact: false\nmaybe: null\n"
        "inner:\n  lr: 1.0e-05\n  milestones: [7, 13]\n  rates: []\n"
    )


@pytest.mark.parametrize(
    "name", ["no", "010", "1e-4", "null", "1:30", "y", "a: b", " a", "#", 'quote" and \\', "\u00e4\u2028"]
)
def test_a_dump_is_also_what_other_yaml_readers_understand(name: str) -> None:
    config = Outer(name=name, clip_norm=1e22, maybe=Inner(rates=(1e-7, 0.5)))

    assert yaml.safe_load(dump_config(config)) == plain_values(config)


def test_whole_numbers_and_negative_zero_do_not_change_the_canonical_json() -> None:
    by_hand = Outer(name="a", clip_norm=5, inner=Inner(lr=-0.0, rates=(1,)))
    as_read = Outer(name="a", clip_norm=5.0, inner=Inner(lr=0.0, rates=(1.0,)))

    assert by_hand == as_read
    assert canonical_json(by_hand) == canonical_json(as_read)
    assert dump_config(by_hand) == dump_config(as_read)


def test_the_canonical_json_holds_what_does_not_stand_at_its_default() -> None:
    assert canonical_json(Outer(name="a", inner=Inner(lr=0.2))) == '{"inner":{"lr":0.2},"name":"a"}'
    assert canonical_json(Outer(name="a", maybe=Inner())) == '{"maybe":{},"name":"a"}', "absent is something else"
    assert canonical_json(Outer(name="a", inner=Inner())) == '{"name":"a"}'


def test_differences_name_the_dotted_key_and_both_values() -> None:
    first = Outer(name="first", maybe=Inner(lr=0.5))
    second = Outer(name="no", inner=Inner(lr=1e-5, milestones=(1,)))

    assert config_differences(first, first) == []
    assert config_differences(first, second) == [
        'name: first != "no"',
        "maybe: {lr: 0.5, milestones: [], rates: []} != null",
        "inner.lr: 0.1 != 1.0e-05",
        "inner.milestones: [] != [1]",
    ]


def test_leaf_keys_reach_into_sections_that_are_there() -> None:
    keys = "name clip_norm exact maybe inner.lr inner.milestones inner.rates"
    assert list(leaf_keys(Outer(name="a"))) == keys.split()


def test_values_are_written_as_recipes_write_them() -> None:
    values = (None, True, 3, 0.1, 1e-300, "a/b.c-d", "off", [1, "x"])
    written = 'null, true, 3, 0.1, 1.0e-300, a/b.c-d, "off", [1, x]'
    assert ", ".join(map(dump_value, values)) == written
