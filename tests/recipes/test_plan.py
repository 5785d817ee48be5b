"""`adadistill plan` prints a table or JSON, counts what it is not told, and exits 2 with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.device_kinds import DEVICES
from adadistill.core.memory import Setting
from adadistill.core.recipe import dump_recipe, load_recipe, shipped_recipes
from adadistill.recipes import cli, plan

MS1MV2 = ("ms1mv2_ir50_to_mobilefacenet", "--images", "5822653", "--identities", "85742")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_can_be_planned(name: str):
    for kind in ("h200", "cpu"):
        setting = Setting(kind=DEVICES[kind], memory_gb=400.0, images=5_822_653, identities=85_742)
        found = plan.make_plan(load_recipe(name), setting)
        assert found.memory.fits
        assert found.reasons


def test_the_table_says_memory_and_what_was_measured_and_predicts_no_time(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plan", *MS1MV2, "--gpu", "h200", "--gpus", "16"]) == 0
    said = capsys.readouterr().out
    spread, measured = "16 x h200 on 2 nodes", "measured on h200\n  nothing of this recipe"
    for expected in (spread, "384 over 16", "memory of a device", measured):
        assert expected in said
    assert said.endswith("not a measurement. Times are not predicted; `adadistill bench step` measures them.\n")
    rests_on = said.split("rests on\n")[1].split("\n\n")[0].splitlines()
    assert len(rests_on) > 3
    assert all(line.split()[0] == "assumed" and "(" in line for line in rests_on)


def test_trainable_centres_are_sharded_only_where_they_do_not_fit(capsys: pytest.CaptureFixture[str]):
    teacher = ("ms1mv2_ir50_adaface_teacher", "--gpu", "h200", "--gpus", "8", "--images", "5822653", "--json")
    found = []
    for identities in ("85742", "20000000"):
        assert plan.main([*teacher, "--identities", identities]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [one["placement"] for one in found] == ["replicated", "sharded"]
    assert "do not fit" in found[1]["reasons"][-1]
    assert "sharded centres" in found[1]["bytes_by_part"]
    assert found[1]["memory_gb"]["centres"] == pytest.approx(20 * 20e6 * 512 / 8 / 1e9)


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]):
    assert plan.main([*MS1MV2, "data.global_batch_size=512", "--gpu", "h100", "--gpus", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["device"], found["devices"], found["nodes"], found["global_batch_size"]) == ("h100", 2, 1, 512)
    assert found["needed_memory_gb"] == pytest.approx(sum(found["memory_gb"].values()))
    assert found["bytes_by_part"]["student gradient"] == 4 * 1_199_488
    assert {entry["basis"] for entry in found["inputs"]} <= {"measured", "assumed"}
    assert found["is_measurement"] is False


def test_the_cpu_of_the_shipped_rows_is_measured(capsys: pytest.CaptureFixture[str]):
    assert plan.main([*MS1MV2, "--gpu", "cpu", "--memory-gb", "64", "--cores", "2", "--json"]) == 0
    inputs = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["inputs"]}
    assert inputs["student"]["basis"] == inputs["softmax"]["basis"] == "measured"
    assert "step.jsonl, 20" in inputs["student"]["source"]


def test_rows_can_be_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "none.jsonl").write_text("")
    arguments = [*MS1MV2, "--gpu", "cpu", "--memory-gb", "64", "--json", "--rows", str(tmp_path / "none.jsonl")]
    assert plan.main(arguments) == 0
    assert {entry["basis"] for entry in json.loads(capsys.readouterr().out)["inputs"]} == {"assumed"}


def test_images_and_identities_are_counted_in_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_tiny_records(tmp_path)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(tiny_recipe(tmp_path)))
    assert plan.main([str(tmp_path / "recipe.yaml"), "--gpu", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["identities"]) == (48, 6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ms1mv2_ir50_to_mobilefacenet", "--gpu", "h200"), "give --images and --identities"),
        (("ms1mv2_ir50_to_mobilefacenet", "--gpu", "h200", "--images", "9"), "give --identities"),
        ((*MS1MV2, "--gpu", "h200", "--gpus", "0"), "--gpus must be positive"),
        ((*MS1MV2, "--gpu", "h200", "--gpus", "3", "--nodes", "2"), "cannot be spread evenly"),
        ((*MS1MV2, "--gpu", "h200", "--rows", "missing.jsonl"), "missing.jsonl"),
        ((*MS1MV2, "--gpu", "a100", "--memory-gb", "4"), "images a device need"),
        ((*MS1MV2, "heat=1", "--gpu", "h200"), "unknown key"),
        ((*MS1MV2, "--gpu", "h200", "--network-gbit", "100"), "Times are not predicted"),
        (("ms1mv2_ir50_to_mobilefacenet", "--gpu", "h200", "--images", "9", "--identities", "3"), "than the 9 images"),
        ((*MS1MV2, "data.micro_batch_size=300", "--gpu", "h200"), "300 does not divide"),
        ((*MS1MV2, "--gpu", "h200", "--memory-gb", "nan"), "memory_gb must be positive"),
    ],
)
def test_what_is_wrong_is_said_and_exits_2(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]):
    assert plan.main(arguments) == 2
    assert said in capsys.readouterr().err
