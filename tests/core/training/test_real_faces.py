"""Training on real faces: records, stored teacher and both pipelines fit together, and a student starts to learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from adadistill.bench.real_faces import build_recipe
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import write_insightface_records


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "train"]


def _some_faces(faces: Path, folder: Path, count: int) -> Path:
    """The first of them, under the same names, with what their teacher says."""
    records = ImageRecords(faces / "train.rec")
    samples = [(encoded.label, encoded.body) for encoded in map(records.read, range(count))]
    write_insightface_records(folder, samples, image_size=(112, 112))
    np.save(folder / "teacher_embeddings.npy", np.load(faces / "teacher_embeddings.npy")[:count])
    return folder


@pytest.mark.realdata
@pytest.mark.slow
def test_a_narrow_student_learns_from_real_faces_alike_through_both_decoders(data_dir: Path, tmp_path: Path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    short = [
        "student={arch: mobilefacenet, width: 0.125}", "optim={epochs: 1, milestones: [], warmup_epochs: 0, lr: 1.6}",
        "data.global_batch_size=64", "evaluation.sets=[]", "checkpoint.every_epochs=null", "log.every=1",
    ]  # fmt: skip
    found, faces = {}, _some_faces(data_dir / "faces", tmp_path, 1024)
    for decoder in ("cpu", "dali"):
        recipe = build_recipe("distilled", faces, seed=0, decoder=decoder, overrides=short)
        run_training(recipe, tmp_path / decoder, ranks=Ranks())
        found[decoder] = _rows(tmp_path / decoder)

    losses = [row["loss"] for row in found["cpu"]]
    assert losses == [row["loss"] for row in found["dali"]], "the same pixels in the same order give the same losses"
    cosines = [row["student_teacher_cosine"] for row in found["cpu"]]
    assert sum(cosines[-4:]) / 4 > sum(cosines[:4]) / 4 + 0.01
