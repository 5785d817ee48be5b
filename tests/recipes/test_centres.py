"""`adadistill centres export`: from a run, or AdaFace's checkpoint, to a file that frozen centres are taken from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import load_checkpoint, resolve_checkpoint
from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import read_centres
from adadistill.core.training.run import run_training
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.centres import main

ONE_EPOCH = {"optim__epochs": 1, "optim__milestones": "[]"}
NO_TEACHER = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    return folder


def _export(*arguments: object) -> int:
    return main(["export", *map(str, arguments)])


@pytest.mark.parametrize("centres", ["adaptive", "trainable"])
def test_the_centres_of_a_run_go_to_a_file_that_a_frozen_run_takes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], centres: str
):
    changes = NO_TEACHER if centres == "trainable" else {}
    run_training(tiny_recipe(data, **ONE_EPOCH, **changes), tmp_path / "teacher", ranks=Ranks())
    trained = load_checkpoint(resolve_checkpoint(tmp_path / "teacher")).row_sharded["class_centres"]

    assert _export(tmp_path / "teacher", tmp_path / "c.safetensors") == 0
    printed = capsys.readouterr().out
    assert "6 class centres of 16 dimensions  (teacher, step 6)" in printed
    assert "c.safetensors, 0.0 MiB, bound to the records it was trained on (" in printed
    written = read_centres(tmp_path / "c.safetensors")
    assert torch.equal(written.rows, trained)
    assert written.records == ImageRecords(data / "train.rec").fingerprint()

    frozen = {**NO_TEACHER, "centres__kind": "frozen", "centres__path": tmp_path / "c.safetensors"}
    result = run_training(tiny_recipe(data, **ONE_EPOCH, **frozen), tmp_path / "student", ranks=Ranks())
    assert np.isfinite(result.metrics["loss"])


def test_the_same_rows_go_to_an_npy_file_unbound(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_training(tiny_recipe(data, **ONE_EPOCH), tmp_path / "run", ranks=Ranks())
    checkpoint = resolve_checkpoint(tmp_path / "run")
    assert _export(checkpoint, "--format", "npy", "--out", tmp_path / "c.npy") == 0
    assert "not bound to any records" in capsys.readouterr().out
    trained = load_checkpoint(checkpoint).row_sharded["class_centres"]
    assert np.array_equal(np.load(tmp_path / "c.npy"), trained.numpy())


def test_adaface_s_centres_are_transposed_and_unbound(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kernel = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    torch.save({"state_dict": {"model.w": torch.ones(1), "head.kernel": kernel}}, tmp_path / "adaface.ckpt")
    assert _export(tmp_path / "adaface.ckpt", tmp_path / "c.safetensors") == 0
    assert "not bound to any records: that its rows are the people" in capsys.readouterr().out
    written = read_centres(tmp_path / "c.safetensors")
    assert torch.equal(written.rows, kernel.T)
    assert written.records is None


def test_what_cannot_be_exported_is_said_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "zero.npy", np.zeros((2, 4), np.float32))
    np.save(tmp_path / "good.npy", np.ones((2, 4), np.float32))
    (tmp_path / "taken.safetensors").write_text("mine")
    (tmp_path / "damaged.ckpt").write_bytes(b"no pickle")
    before = sorted(tmp_path.iterdir())
    for source, out, message in [
        ("nowhere", "c.safetensors", "nowhere: no such file or run folder"),
        ("nowhere.ckpt", "c.safetensors", "nowhere.ckpt is not a file"),
        ("damaged.ckpt", "c.safetensors", "is text ('no pickle'), not the file itself"),
        ("zero.npy", "c.safetensors", "the centre of class 0 has norm 0 and no direction"),
        ("good.npy", "taken.safetensors", "taken.safetensors exists already"),
        ("good.npy", "c.npy", "must end in .safetensors, as --format is safetensors"),
    ]:
        assert _export(tmp_path / source, tmp_path / out) == 2
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "taken.safetensors").read_text() == "mine"


def test_a_verb_is_needed(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "export RUN --out FILE" in capsys.readouterr().out
