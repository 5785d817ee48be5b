"""The tables of docs/recipes.md: complete, and the committed ones equal to the generated ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from adadistill.core.recipe import load_recipe, shipped_recipes
from adadistill.recipes import recipe_catalogue
from adadistill.recipes.ablation.plan import shipped_variants
from adadistill.recipes.recipe_catalogue import BEGIN, END, main, with_tables
from adadistill.recipes.recipe_header import read_recipe_header

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"


def test_the_committed_tables_are_the_generated_ones() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert page == with_tables(page), "regenerate: python -m adadistill.recipes.recipe_catalogue docs/recipes.md"


def test_every_recipe_has_one_row_with_its_aim_and_result() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()  # which holds the generated tables

    for name, path in shipped_recipes().items():
        rows = [line for line in lines if line.startswith(f"| [`{name}`]")]
        assert len(rows) == 1, name
        header = read_recipe_header(path)
        assert header.aim.rstrip(".") in rows[0]
        assert header.result.rstrip(".") in rows[0]


def test_the_page_names_only_recipes_and_variants_that_exist() -> None:
    known = shipped_recipes().keys() | shipped_variants().keys()
    named = re.findall(r"`((?:ms1mv\d|glint360k|webface\d+m|casia|idifface|demo)_\w+)`", PAGE.read_text("utf-8"))

    assert set(named) <= known


def test_the_example_of_a_recipe_of_one_s_own_loads_over_its_base(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    base = "ms1mv2_ir50_to_mbf"
    shutil.copy(shipped_recipes()[base], tmp_path)
    (tmp_path / "mine.yaml").write_text(example)

    mine = load_recipe(tmp_path / "mine.yaml")

    assert mine.name == "mine_iresnet100_to_mbf"
    assert (mine.head, mine.geometry_margin) == (load_recipe(base).head, load_recipe(base).geometry_margin)


def test_the_recipes_that_the_page_offers_as_bases_stand_alone() -> None:
    offer = PAGE.read_text("utf-8").split("one of those that stand alone")[1].split("adadistill plan")[0]
    shipped = {name: path for name, path in shipped_recipes().items() if not name.startswith("demo_")}

    assert set(re.findall(r"`(\w+)`", offer)) == {
        name for name, path in shipped.items() if "\nbase: " not in path.read_text("utf-8")
    }


def test_a_page_is_rewritten_between_its_markers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recipe_catalogue, "catalogue", lambda: "the tables\n")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")

    assert main([str(page)]) == 0
    assert main([]) == 0

    assert capsys.readouterr().out == "the tables\n"
    assert page.read_text() == f"before\n{BEGIN}\n\nthe tables\n\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_a_page_without_a_place_for_the_tables_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)

    assert main([str(page)]) == 2
    assert main([str(tmp_path / "absent.md")]) == 2

    assert page.read_text() == text
    assert "must hold the lines" in capsys.readouterr().err
