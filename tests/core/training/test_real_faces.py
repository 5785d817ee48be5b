"""Training on real faces: records, stored teacher and both pipelines fit together, and a student starts to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_training import logged

from adadistill.bench.real_faces import build_recipe
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter


def _write_some(faces: Path, folder: Path, count: int) -> Path:
    """The first images of the records and their stored teacher, laid out as the whole set is."""
    folder.mkdir()
    records = ImageRecords(faces / "train.rec")
    with RecordWriter(folder / "train.rec") as writer:
        for record_id in range(count):
            encoded = records.read(record_id)
            writer.write(record_id, encoded.body, labels=float(encoded.label))
    np.save(folder / "teacher_embeddings.npy", np.load(faces / "teacher_embeddings.npy", mmap_mode="r")[:count])
    return folder


@pytest.mark.realdata
@pytest.mark.slow
def test_a_narrow_student_learns_from_real_faces_alike_through_both_decoders(data_dir: Path, tmp_path: Path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    faces = _write_some(data_dir / "faces", tmp_path / "faces", 1024)
    short = [
        "student={arch: mobilefacenet, width: 0.125}", "optim={epochs: 1, milestones: [], warmup_epochs: 0, lr: 1.6}",
        "data.global_batch_size=64", "evaluation.sets=[]", "checkpoint.every_epochs=null", "log.every=1",
    ]  # fmt: skip
    found = {}
    for decoder in ("cpu", "dali"):
        recipe = build_recipe("distilled", faces, seed=0, decoder=decoder, overrides=short)
        run_training(recipe, tmp_path / decoder, ranks=Ranks())
        found[decoder] = logged(tmp_path / decoder)

    losses = [row["loss"] for row in found["cpu"]]
    assert losses == [row["loss"] for row in found["dali"]], "the same pixels in the same order give the same losses"
    cosines = [row["student_teacher_cosine"] for row in found["cpu"]]
    assert sum(cosines[-4:]) / 4 > sum(cosines[:4]) / 4 + 0.01
