"""`adadistill recipes`: what ships is listed, shown and copied; files are checked, with lines; recipes compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from config_files import INSIGHTFACE_WF12M_R50, ORIGIN

from adadistill.core.recipe import load_recipe, shipped_recipes
from adadistill.recipes import cli

BASED = "ms1mv2_frozen_centres"
BASE = "ms1mv2_ir50_to_mobilefacenet"


def recipes(*arguments: str | Path) -> int:
    return cli.main(["recipes", *map(str, arguments)])


def test_ls_lists_every_shipped_recipe_with_its_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes("ls", "--json") == 0
    listed = {row["name"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert listed.keys() == shipped_recipes().keys()
    assert all(20 < len(about) < 400 and about.endswith(".") for about in listed.values())
    assert listed["demo_no_teacher"] == (
        "The demo's baseline: a small MobileFaceNet on 100 synthetic people, trained without a teacher."
    )
    assert recipes("ls") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(listed)


def test_show_prints_the_file_and_resolved_every_value_with_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes("show", BASED) == 0
    assert capsys.readouterr().out == shipped_recipes()[BASED].read_text()

    assert recipes("show", BASED, "optim.lr=0.2", "--resolved") == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["optim.lr"] == ["0.2", "optim.lr=0.2"]
    assert rows["centres.kind"][0] == "frozen"
    assert rows["centres.kind"][1].startswith(f"{BASED}.yaml:")
    assert rows["head.kind"][1].startswith(f"{BASE}.yaml:")
    assert rows["seed"] == ["2048", "default"]

    assert recipes("show", BASED, "optim.lr=0.2") == 2
    assert "--resolved" in capsys.readouterr().err


def test_show_of_a_strangers_file_does_not_drive_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: x # \x1b]0;title\x07 \xff\n")
    assert recipes("show", tmp_path / "r.yaml") == 0
    assert capsys.readouterr().out == "name: x # \\x1b]0;title\\x07 \ufffd\n"


def test_a_copy_loads_from_where_it_is_with_its_base_beside_it(tmp_path: Path) -> None:
    assert recipes("cp", BASED, tmp_path / "mine.yaml") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mine.yaml", f"{BASE}.yaml"])
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe(BASED)
    assert (tmp_path / "mine.yaml").read_bytes() == shipped_recipes()[BASED].read_bytes()

    assert recipes("cp", BASED, tmp_path) == 0, "a folder takes the recipe's own name; an equal base is left alone"
    assert (tmp_path / f"{BASED}.yaml").exists()


def test_a_copy_overwrites_nothing_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("mine")
    assert recipes("cp", BASE, target) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert recipes("cp", BASE, target, "--overwrite") == 0
    assert load_recipe(target) == load_recipe(BASE)

    (tmp_path / f"{BASE}.yaml").write_text("an edited base")
    assert recipes("cp", BASED, tmp_path / "other.yaml") == 2
    assert not (tmp_path / "other.yaml").exists()
    assert (tmp_path / f"{BASE}.yaml").read_text() == "an edited base"
    assert recipes("cp", BASE, tmp_path / "recipe.txt") == 2


def test_validate_places_every_problem_of_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, broken = (tmp_path / name for name in ("good.yaml", "bad.yaml", "broken.yaml"))
    assert recipes("cp", BASE, good) == 0
    capsys.readouterr()
    bad.write_text("base: good.yaml\nname: bad\nhead:\n  margin: 2.0\n  kindd: arcface\noptim: {lr: fast}\n")
    broken.write_text("name: x\ndata: [1\n")

    assert recipes("validate", good) == 0
    assert capsys.readouterr().out == f"{good}: sound\n"
    assert recipes("validate", good, bad, broken, tmp_path / "none.yaml") == 2
    said = capsys.readouterr().out
    assert f"{good}: sound\n" in said
    assert f"{bad}:4: head.margin must be in [0, 1), got 2.0\n" in said
    assert f"{bad}:5: unknown key `head.kindd`; did you mean `head.kind`?\n" in said
    assert f"{bad}:6: optim.lr must be a number, got fast" in said
    assert f"{broken}:3: " in said
    assert f"{tmp_path / 'none.yaml'}: there is no such file" in said


def test_a_problem_of_a_base_is_placed_in_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text("data: {records: a.rec}\noptim: {epochs: 0}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nname: mine\n")
    assert recipes("validate", tmp_path / "mine.yaml") == 2
    assert f"{tmp_path / 'base.yaml'}:2: optim.epochs must be positive, got 0" in capsys.readouterr().out


def test_diff_says_what_differs_and_leaves_as_diff_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes("cp", BASE, tmp_path / "copy.yaml") == 0
    capsys.readouterr()
    assert recipes("diff", BASE, tmp_path / "copy.yaml") == 0
    assert capsys.readouterr().out == "equal\n"
    assert recipes("diff", BASE, BASED) == 1
    said = capsys.readouterr().out.splitlines()
    assert f"name: {BASE} != {BASED}" in said
    assert "centres.kind: adaptive != frozen" in said
    assert recipes("diff", BASE, "no_such_recipe") == 2


def test_import_config_writes_a_recipe_that_loads_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "config.py", tmp_path / "mine.yaml"
    config.write_text(ORIGIN + "\nconfig.brand_new = 1\n")

    assert recipes("import-config", config, "--out", out) == 2, "what brand_new decides is not known"
    assert "brand_new: no key that is known" in capsys.readouterr().err
    assert not out.exists()
    assert recipes("import-config", config, "--out", out, "--drop", "brand_new") == 0
    table = capsys.readouterr().out
    assert load_recipe(out).name == "mine"
    rows = [line.split() for line in table.splitlines()]
    assert ["batch_size", "384", "taken", "data.global_batch_size"] in [row[1:5] for row in rows]
    assert ["num_classes", "85742", "harmless"] in [row[1:4] for row in rows]
    assert ["brand_new", "1", "dropped"] in [row[1:4] for row in rows]

    assert recipes("import-config", config, "--out", out, "--drop", "brand_new") == 2, "it is there"
    anew = ("--drop", "brand_new", "--overwrite", "--devices", "2", "--name", "two")
    assert recipes("import-config", config, "--out", out, *anew) == 0
    assert (load_recipe(out).name, load_recipe(out).data.global_batch_size) == ("two", 768)


def test_import_config_prints_the_recipe_alone_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "wf12m r50.py"
    config.write_text(INSIGHTFACE_WF12M_R50)
    assert recipes("import-config", config) == 0
    said = capsys.readouterr()
    (tmp_path / "it.yaml").write_text(said.out)
    assert load_recipe(tmp_path / "it.yaml").name == "wf12m_r50"
    assert "insightface, 8 GPU(s)" in said.err

    assert recipes("import-config", config, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {key["outcome"] for key in found["keys"]} == {"taken", "harmless"}


def test_import_config_that_cannot_be_says_why_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = tmp_path / "config.py", tmp_path / "mine.yaml"
    for text, said in (
        (ORIGIN + "\nconfig.loss = 'MLLoss'\n", "loss: known are"),
        ("import os\n", "ConfigImportError"),
    ):
        config.write_text(text)
        assert recipes("import-config", config, "--out", out) == 2
        assert said in capsys.readouterr().err
    assert recipes("import-config", tmp_path / "none.py") == 2
    assert recipes("import-config", tmp_path) == 2
    assert not out.exists()
