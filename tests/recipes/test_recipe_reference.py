"""The reference page: complete, and the committed one equal to the generated one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from adadistill.core.config.schema import dotted_keys, section_class
from adadistill.core.recipe import Recipe
from adadistill.recipes.recipe_reference import field_documentation, main, recipe_reference

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "recipe_reference.md"


@dataclass(frozen=True, kw_only=True)
class HalfDocumented:
    """Has a field that nobody explained."""

    explained: int = 1
    """One line,
    and another."""
    forgotten: int = 2


def test_the_committed_page_is_the_generated_one() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == recipe_reference(), (
        "regenerate it: python -m adadistill.recipes.recipe_reference docs/recipe_reference.md"
    )


def test_the_page_has_every_key_once() -> None:
    page = recipe_reference()
    sections = {name for name in dotted_keys(Recipe) if f"## `{name}`" in page}

    for key in dotted_keys(Recipe):
        rows = [line for line in page.splitlines() if line.startswith(f"| `{key}` |")]
        assert len(rows) == (0 if key in sections else 1), key
    assert {"data", "teacher", "head", "optim"} <= sections
    assert section_class(int) is None


def test_the_page_can_be_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert main([]) == 0

    assert (tmp_path / "page.md").read_text(encoding="utf-8") == capsys.readouterr().out == recipe_reference()


def test_a_field_without_a_docstring_is_refused() -> None:
    with pytest.raises(ValueError, match="HalfDocumented has fields without a docstring: forgotten"):
        field_documentation(HalfDocumented)
