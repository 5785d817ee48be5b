"""An output that cannot be written is refused at the door of every verb: before the work, and without a trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from evaluated_networks import write_checkpoints, write_pairs
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.recipe import dump_recipe
from adadistill.recipes import cli, outputs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records, a recipe, a run, a verification set, and a file where a folder would have to be."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_records(folder)
    (folder / "recipe.yaml").write_text(dump_recipe(tiny_recipe(folder)))
    write_checkpoints(folder / "run", 1)
    write_pairs(folder / "set.bin")
    (folder / "file").write_text("in the way")
    return folder


def listed(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*")))


VERBS = [
    "train {p}/recipe.yaml --out {bad}",
    "ablate {p}/recipe.yaml evaluation.sets=[{p}/set.bin] --variants recipe --out {bad}",
    "demo --out {bad}",
    "evaluate {p}/run --sets {p}/set.bin --device cpu --out {bad}",
    "evaluate {p}/run --all --sets {p}/set.bin --device cpu --out {bad}",
    "evaluate {p}/run --sets {p}/set.bin --device cpu --out {p}/new --embeddings {bad}",
    "report {p}/run --out {bad}/page.html",
    "cache build {p}/recipe.yaml teacher.embeddings=null teacher.checkpoint={p}/run teacher.cache={bad}",
    "cache import {p}/teacher.npy {bad} --records {p}/train.rec",
    "centres export {p}/run --out {bad}/c.safetensors",
    "convert {p}/weights.pth --out {bad}",
    "convert {p}/run {bad}/w.pth --to adadistill",
    "recipes cp demo_teacher {bad}/r.yaml",
    "recipes import-config {p}/config.py --out {bad}/r.yaml",
    "teacher check {p}/recipe.yaml --json {bad}/t.json",
    "data convert {p}/train.rec --out {bad}",
    "data index {p}/train.rec --out {bad}/t.idx",
    "data pack {p}/train.rec --out {bad} --image-size 32",
    "data split {p}/train.rec {bad}",
    "data merge {p}/train.rec --out {bad}",
    "data pairs {p}/pairs.txt --images {p} --out {bad}/x.bin --aligned",
    "data check {p}/train.rec --report {bad}/r.jsonl",
    "data stats {p}/train.rec --histogram {bad}/h.csv",
    "data inspect {p}/train.rec --record 1 --save {bad}/i.jpg",
    "bench all --tiny --out {bad}",
]


@pytest.mark.parametrize("command", VERBS)
def test_a_file_in_the_way_is_found_at_the_door(command: str, place: Path, capsys: pytest.CaptureFixture[str]):
    before = listed(place)
    words = command.format(p=place, bad=place / "file" / "below").split()
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "cannot be written" in told, told
    assert f"{place}/file is no folder" in told
    assert listed(place) == before


@pytest.mark.parametrize(
    ("command", "way_out"),
    [
        ("evaluate {p}/run --sets {p}/set.bin --device cpu", "--out"),
        ("report {p}/run", "--out"),
        ("data check {p}/train.rec --seal", "without --seal"),
        ("data index {p}/train.rec --all --overwrite", "--out"),
    ],
)
def test_a_folder_that_this_user_may_not_write_is_found_at_the_door(
    command: str, way_out: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # whoever runs the tests may write everywhere
    monkeypatch.setattr(os, "supports_effective_ids", set())
    if command.startswith("report"):
        (place / "run" / "report").mkdir(exist_ok=True)
        (place / "run" / "metrics.jsonl").write_text('{"event": "train", "step": 1, "loss": 1.0}\n')
    before = listed(place)
    assert cli.main(command.format(p=place).split()) == 2
    told = capsys.readouterr().err
    assert "this user may not write in" in told
    assert way_out in told
    assert listed(place) == before


def test_a_folder_for_a_file_and_a_missing_parent_are_named(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        outputs.will_write(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/a"):
        outputs.will_write(tmp_path / "a" / "b")
    outputs.will_write(tmp_path / "a" / "b", makes_parents=True)
    outputs.will_write_folder(tmp_path / "a" / "b" / "c")
    with pytest.raises(OSError, match="too long"):
        outputs.will_write(tmp_path / ("n" * 300))
    assert not any(tmp_path.iterdir())


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path):
    from adadistill.loaders.atomic_file import write_whole

    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    outputs.will_write(tmp_path / "pipe")
    write_whole(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
