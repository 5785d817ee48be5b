"""Training on real faces: records, stored teacher and both pipelines fit together, and a student starts to learn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adadistill.bench.real_faces import build_recipe
from adadistill.core.distributed import Ranks
from adadistill.core.training.run import run_training


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == "train"]


@pytest.mark.realdata
@pytest.mark.slow
def test_a_narrow_student_learns_from_real_faces_alike_through_both_decoders(data_dir: Path, tmp_path: Path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    short = [
        "student={arch: mobilefacenet, width: 0.125}", "optim={epochs: 1, milestones: [], warmup_epochs: 0, lr: 0.4}",
        "data.global_batch_size=256", "evaluation.sets=[]", "checkpoint.every_epochs=null", "log.every=1",
    ]  # fmt: skip
    found = {}
    for decoder in ("cpu", "dali"):
        recipe = build_recipe("distilled", data_dir / "faces", seed=0, decoder=decoder, overrides=short)
        run_training(recipe, tmp_path / decoder, ranks=Ranks())
        found[decoder] = _rows(tmp_path / decoder)

    losses = [row["loss"] for row in found["cpu"]]
    assert losses == [row["loss"] for row in found["dali"]], "the same pixels in the same order give the same losses"
    cosines = [row["student_teacher_cosine"] for row in found["cpu"]]
    assert sum(cosines[-4:]) / 4 > sum(cosines[:4]) / 4 + 0.01
