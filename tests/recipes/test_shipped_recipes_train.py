"""Every shipped recipe trains for two steps on synthetic records, so that none can rot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.distributed import Ranks
from adadistill.core.network_checkpoint import save_network
from adadistill.core.recipe import Recipe, load_recipe, shipped_recipes
from adadistill.core.run import run_training
from adadistill.loaders.synthetic_faces import SyntheticFacesConfig, write_synthetic_pairs, write_synthetic_records


def _two_steps(recipe: Recipe, folder: Path) -> list[str]:
    """Overrides that keep networks, heads and teachers as they are and shrink data and length."""
    size = recipe.data.image_size
    faces = SyntheticFacesConfig(image_size=size, identities=4, images_per_identity=4)
    records = write_synthetic_records(folder / "faces", faces)
    overrides = [
        f"data.records={json.dumps(str(records))}", "data.global_batch_size=8", "data.workers=1",
        "data.num_classes=null", "optim.epochs=1", "optim.milestones=[]", "log.every=1",
    ]  # fmt: skip
    if recipe.evaluation.sets:
        pairs = write_synthetic_pairs(folder / "pairs.bin", faces, pairs=20)
        overrides.append(f"evaluation.sets=[{json.dumps(str(pairs))}]")
    if recipe.teacher is not None:
        narrow = BackboneConfig(arch="ir18", width=0.125, embedding_dim=recipe.student.embedding_dim)
        save_network(folder / "teacher", build_backbone(narrow, size, generator=0), narrow, size)
        overrides.append(f"teacher={{checkpoint: {json.dumps(str(folder / 'teacher'))}}}")
    return overrides


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_trains_for_two_steps(name: str, tmp_path: Path):
    overrides = _two_steps(load_recipe(name), tmp_path)
    recipe = load_recipe(name, overrides)

    result = run_training(recipe, tmp_path / "run", ranks=Ranks())

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["event"] == "train"]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert set(result.evaluations) == ({"pairs"} if recipe.evaluation.sets else set())
