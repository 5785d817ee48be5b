"""Every shipped recipe trains for two steps on synthetic records, so that none can rot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.centre_files import stored_centres, write_centres
from adadistill.core.distributed import Ranks
from adadistill.core.network_checkpoint import save_network
from adadistill.core.recipe import Recipe, load_recipe, shipped_recipes
from adadistill.core.run import run_training
from adadistill.core.teachers.config import NETWORK_SOURCES
from adadistill.loaders.image_records import ImageRecords
from adadistill.loaders.synthetic_faces import SyntheticFacesConfig, write_synthetic_pairs, write_synthetic_records


def _two_steps(recipe: Recipe, folder: Path) -> list[str]:
    """Overrides that keep heads, centres and regression as they are and shrink data, length and residual networks."""
    size = recipe.data.image_size
    faces = SyntheticFacesConfig(image_size=size, identities=4, images_per_identity=4)
    records = write_synthetic_records(folder / "faces", faces)
    overrides = [
        f"data.records={json.dumps(str(records))}", "data.global_batch_size=8", "data.workers=1",
        "data.num_classes=null", "optim.epochs=1", "optim.milestones=[]", "log.every=1",
    ]  # fmt: skip
    if recipe.student.arch.startswith("ir") and recipe.student.width == 1.0:
        overrides.append("student.width=0.25")  # a sixteenth of the time
    if recipe.centres.kind == "frozen":
        centres = folder / "centres.safetensors"
        _write_trained_centres(centres, ImageRecords(records), recipe.student.embedding_dim)
        overrides.append(f"centres.path={json.dumps(str(centres))}")
    if recipe.evaluation.sets:
        pairs = write_synthetic_pairs(folder / "pairs.bin", faces, pairs=20)
        overrides.append(f"evaluation.sets=[{json.dumps(str(pairs))}]")
    if recipe.teacher is not None:
        narrow = BackboneConfig(arch="ir18", width=0.125, embedding_dim=recipe.student.embedding_dim)
        save_network(folder / "teacher", build_backbone(narrow, size, generator=0), narrow, size)
        others = ", ".join(
            f"{name}: null" for name in (*NETWORK_SOURCES, "embeddings", "cache") if name != "checkpoint"
        )
        overrides.append(f"teacher={{checkpoint: {json.dumps(str(folder / 'teacher'))}, {others}}}")
    return overrides


def _write_trained_centres(path: Path, records: ImageRecords, dim: int) -> None:
    """What a teacher that was trained on these records would have left."""
    rows = torch.randn(records.num_classes, dim, generator=torch.Generator().manual_seed(0))
    write_centres(path, stored_centres(rows, "teacher", records.fingerprint()))


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_trains_for_two_steps(name: str, tmp_path: Path):
    overrides = _two_steps(load_recipe(name), tmp_path)
    recipe = load_recipe(name, overrides)

    result = run_training(recipe, tmp_path / "run", ranks=Ranks())

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "train"]
    assert len(steps) == 2
    assert all(math.isfinite(row["loss"]) for row in steps)
    assert all(("regression" in row) == (recipe.regression.weight > 0.0) for row in steps)
    assert all(("student_teacher_cosine" in row) == (recipe.teacher is not None) for row in steps)
    assert set(result.evaluations) == ({"pairs"} if recipe.evaluation.sets else set())
