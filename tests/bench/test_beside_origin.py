"""Ours and the origin's step take the same trajectory in float64, and the bench that times them says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_rows import assert_made_here
from tiny_training import write_tiny_records

from adadistill.bench import beside_origin
from adadistill.bench.rows import read_rows


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    write_tiny_records(folder, identities=12, images=3)
    (folder / "teacher.npy").rename(folder / "teacher_embeddings.npy")
    return folder


OPTIONS = ["--width", "0.125", "--embedding-dim", "16", "--batch-size", "8", "--device", "cpu", "--rounds", "2"]


def test_it_times_both_and_writes_how_far_their_losses_are_apart(faces: Path, tmp_path: Path, capsys):
    rows = tmp_path / "rows.jsonl"
    variants = ["--variants", "eager bfloat16"]
    assert beside_origin.main([str(faces), *OPTIONS, *variants, "--rows", str(rows)]) == 0
    written = read_rows(rows)
    assert_made_here(written)
    assert [row["variant"] for row in written] == [*beside_origin.ORIGINS, "eager bfloat16"]
    assert all(row["float64_loss_difference"] < 1e-8 for row in written)
    assert all(row["times_the_origin"]["median"] > 0 for row in written)
    assert "losses off by" in capsys.readouterr().out


def test_a_step_that_computes_something_else_is_not_timed(faces: Path, monkeypatch, capsys):
    constants = beside_origin.OriginStep.__init__

    def other(self, student, class_centres, *, device):
        constants(self, student, class_centres, device=device)
        self.head.norm_std += 1.0

    monkeypatch.setattr(beside_origin.OriginStep, "__init__", other)
    assert beside_origin.main([str(faces), *OPTIONS, "--variants", "eager float32"]) == 1
    assert "nothing was timed" in capsys.readouterr().err


def test_batches_hold_each_identity_once(faces: Path):
    read = beside_origin.read_faces(faces, batch_size=12, batches=3, embedding_dim=16, device=torch.device("cpu"))
    assert all(len(set(labels.tolist())) == 12 for labels in read.labels)
    assert len({tuple(ids.tolist()) for ids in read.record_ids}) == 3


def test_more_samples_than_identities_are_refused(faces: Path):
    with pytest.raises(ValueError, match=r"has 12; lower --batch-size"):
        beside_origin.read_faces(faces, batch_size=13, batches=1, embedding_dim=16, device=torch.device("cpu"))
