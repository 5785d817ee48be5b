"""Every shipped recipe and variant trains for two steps on synthetic records, so that none can rot."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_files import stored_centres, write_centres
from adadistill.core.recipe import Recipe, dump_recipe, load_overlaid_recipe, load_recipe, shipped_recipes
from adadistill.core.teachers.config import NETWORK_SOURCES
from adadistill.core.training.optimiser import learning_rate
from adadistill.core.training.run import run_training
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.synthetic.synthetic_faces import (
    SyntheticFacesConfig,
    write_synthetic_pairs,
    write_synthetic_records,
)
from adadistill.recipes.ablation.plan import shipped_variants

FLAGSHIP = "ms1mv2_ir50_to_mobilefacenet"
SIDE = 16
BATCH = 8  # all records: each of the two steps is an epoch, so that warm-ups end, rates drop and views change
WIDTH = 0.125


@dataclass(frozen=True)
class TinyFiles:
    """Everything a recipe may read, at 16 x 16 pixels."""

    records: Path
    pairs: Path
    folder: Path
    trained: set[str] = field(default_factory=set)
    """Recipes that were trained, but for names, seeds and rates: at these sizes and lengths some are one."""

    def teacher(self, dim: int) -> Path:
        """A narrow, untrained network with embeddings of `dim` numbers, made when first asked for."""
        folder = self.folder / f"teacher-{dim}"
        if not folder.exists():
            narrow = BackboneConfig(arch="ir18", width=WIDTH, embedding_dim=dim)
            save_network(folder, build_backbone(narrow, SIDE, generator=0), narrow, SIDE)
        return folder

    def centres(self, dim: int) -> Path:
        """What a teacher that was trained on these records would have left."""
        path = self.folder / f"centres-{dim}.safetensors"
        if not path.exists():
            records = ImageRecords(self.records)
            rows = torch.randn(records.num_classes, dim, generator=torch.Generator().manual_seed(0))
            write_centres(path, stored_centres(rows, "teacher", records.fingerprint()))
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TinyFiles:
    folder = tmp_path_factory.mktemp("tiny")
    faces = SyntheticFacesConfig(image_size=SIDE, identities=4, images_per_identity=2)
    records = write_synthetic_records(folder / "faces", faces)
    return TinyFiles(records, write_synthetic_pairs(folder / "pairs.bin", faces, pairs=20), folder)


def _two_steps(recipe: Recipe, files: TinyFiles) -> list[str]:
    """Overrides of sizes, lengths and paths alone: heads, centres, shapes of schedules and augmentation stay."""
    dim = recipe.student.embedding_dim
    overrides = [
        f"data.records={json.dumps(str(files.records))}", f"data.image_size={SIDE}", "data.num_classes=null",
        f"data.global_batch_size={BATCH}", "data.workers=1", f"student.width={WIDTH}", "log.every=1",
        "optim.epochs=2", "evaluation.every_epochs=2", "checkpoint.every_epochs=null",
    ]  # fmt: skip
    if recipe.optim.milestones:
        overrides.append("optim.milestones=[1]")
    if recipe.optim.warmup_epochs > 1.0:
        overrides.append("optim.warmup_epochs=1.0")
    if recipe.name != FLAGSHIP:  # whose two steps DALI feeds
        overrides.append("data.decoder=cpu")
    if recipe.centres.kind == "frozen":
        overrides.append(f"centres.path={json.dumps(str(files.centres(dim)))}")
    if recipe.evaluation.sets:
        overrides.append(f"evaluation.sets=[{json.dumps(str(files.pairs))}]")
    if recipe.teacher is not None:
        others = ", ".join(
            f"{name}: null" for name in (*NETWORK_SOURCES, "embeddings", "cache") if name != "checkpoint"
        )
        overrides.append(f"teacher={{checkpoint: {json.dumps(str(files.teacher(dim)))}, check: false, {others}}}")
    return overrides


def _train_two_steps(recipe: Recipe, files: TinyFiles, run: Path) -> None:
    optim = replace(recipe.optim, lr=0.1, weight_decay=0.0)
    text = dump_recipe(replace(recipe, name="any", seed=0, optim=optim))
    if text in files.trained:
        return
    files.trained.add(text)
    result = run_training(recipe, run, ranks=Ranks())

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "train"]
    expected = [
        learning_rate(recipe.optim, global_batch_size=BATCH, epoch=epoch, step=0, steps_per_epoch=1) for epoch in (0, 1)
    ]
    assert [row["lr"] for row in steps] == pytest.approx(expected)
    assert all(math.isfinite(row["loss"]) for row in steps)
    assert all(("regression" in row) == (recipe.regression.weight > 0.0) for row in steps)
    assert all(("student_teacher_cosine" in row) == (recipe.teacher is not None) for row in steps)
    assert set(result.evaluations) == ({"pairs"} if recipe.evaluation.sets else set())


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_trains_for_two_steps(name: str, files: TinyFiles, tmp_path: Path):
    recipe = load_recipe(name)
    small = load_recipe(name, _two_steps(recipe, files))

    for kept in ("seed", "augment", "head", "regression", "geometry_margin", "precision"):
        assert getattr(small, kept) == getattr(recipe, kept), kept
    assert (small.centres.kind, small.centres.placement) == (recipe.centres.kind, recipe.centres.placement)
    assert (small.student.arch, small.optim.schedule) == (recipe.student.arch, recipe.optim.schedule)
    _train_two_steps(small, files, tmp_path / "run")


@pytest.mark.parametrize("variant", shipped_variants())
def test_a_shipped_variant_of_the_demo_trains_for_two_steps(variant: str, files: TinyFiles, tmp_path: Path):
    overlay = shipped_variants()[variant]
    sizes = _two_steps(load_recipe("demo_distilled"), files)

    _train_two_steps(load_overlaid_recipe("demo_distilled", sizes, overlay=overlay), files, tmp_path / "run")
