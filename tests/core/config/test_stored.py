"""A stored config compared with one of now: keys that came and went, and values that changed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from adadistill.core.config.stored import stored_differences
from adadistill.core.config.text import dump_config
from adadistill.core.config.yaml_tree import YamlError


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    """A section."""

    lr: float = 0.1
    milestones: tuple[int, ...] = (7, 13)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    """A config; `fused` is newer than stored ones, which were not fused."""

    name: str
    fused: bool = field(default=True, metadata={"before": False})
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def differences(stored: str, now: Outer, **gone: object) -> list[str]:
    return stored_differences(Outer, stored, dump_config(now), source="run", gone=gone)


def test_what_this_version_wrote_is_compared_value_by_value() -> None:
    now = Outer(name="a", inner=Inner(lr=1e-5), maybe=Inner())

    assert differences(dump_config(now), now) == []
    assert differences(dump_config(Outer(name="b", fused=False)), now) == [
        "name: b != a",
        "fused: false != true",
        "inner.lr: 0.1 != 1.0e-05",
        "maybe: null != {lr: 0.1, milestones: [7, 13]}",
    ]


def test_a_key_that_was_not_stored_counts_as_what_was_done_then() -> None:
    before = "name: a\ninner: {lr: 0.1}\n"

    assert differences(before, Outer(name="a", fused=False)) == []
    assert differences(before, Outer(name="a")) == ["fused: false != true"]
    assert differences("name: a\nfused: true\n", Outer(name="a", inner=Inner(milestones=(1,)))) == [
        "inner.milestones: [7, 13] != [1]"
    ]


def test_a_stored_key_that_is_gone_must_stand_at_what_is_now_always_done() -> None:
    stored = "name: a\nfused: true\ninner: {nesterov: false}\n"

    assert differences(stored, Outer(name="a"), **{"inner.nesterov": False}) == []
    assert differences(stored, Outer(name="a"), **{"inner.nesterov": True}) == [
        "inner.nesterov: false != (no such key)"
    ]
    assert differences(stored, Outer(name="a")) == ["inner.nesterov: false != (no such key)"]


@pytest.mark.parametrize("damaged", ["", "[1]", "name: [", "fused: true\n"])
def test_what_is_no_whole_config_is_said_so(damaged: str) -> None:
    with pytest.raises(YamlError, match=r"^run"):
        differences(damaged, Outer(name="a"))
