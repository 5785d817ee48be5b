"""A cache of K augmented views teaches what the teacher in the loop teaches of the very same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import PlainStudent, logged, tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.distributed import Ranks
from adadistill.core.precision import resolve_precision
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.teachers import in_loop_teacher, load_source
from adadistill.core.teachers.cache_build import build_cache
from adadistill.core.teachers.cache_recompute import recompute_rows
from adadistill.core.training.run import run_training
from adadistill.core.training.stop_signal import StopSignal
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.loaders.pipelines.pipeline import build_pipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.image_records import ImageRecords

CPU = torch.device("cpu")
NETWORK = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)
RECORDS, VIEWS = 48, 3
FLOAT16_ULP = 2.0**-11  # of numbers in [0.5, 1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records, a teacher, and the cache of three AdaFace views, in blocks that do not divide the records."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_records(folder)
    network = build_backbone(NETWORK, 32, generator=3)
    # Fresh running statistics leave nearly constant embeddings; a pass over noise in training mode spreads them.
    network.train()(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    save_network(folder / "teacher", network.eval(), NETWORK, 32)
    build_cache(_recipe(folder), ranks=Ranks(), stop=StopSignal(), batch_size=7)
    return folder


def _recipe(data: Path, **overrides: object) -> Recipe:
    settings: dict[str, object] = {
        "teacher__embeddings": "null",
        "teacher__checkpoint": data / "teacher",
        "teacher__check": "false",  # it is untrained
        "teacher__cache": data / "cache",
        "augment__policy": "adaface",
        "augment__views": VIEWS,
    }
    return tiny_recipe(data, **{**settings, **overrides})


def test_rows_are_the_embeddings_of_the_images_that_training_shows(data: Path):
    recipe = _recipe(data, teacher__cache="null")
    records, cache = ImageRecords(recipe.data.records), TeacherCache(data / "cache")
    teacher = in_loop_teacher(
        load_source(recipe.teacher, image_size=32, ranks=Ranks()),  # type: ignore[arg-type]
        recipe.teacher,  # type: ignore[arg-type]
        precision=resolve_precision("float32", CPU),
        device=CPU,
        batch_size=8,
    )
    augmentation = recipe_augmentation(recipe)
    pipeline = build_pipeline(
        recipe.data,
        records,
        SampleOrder(RECORDS, 8, 1),
        rank=0,
        world_size=1,
        device=CPU,
        augmentation=augmentation,
    )
    altered = 0
    for epoch in (0, 1, 2, 4):  # the last shows view 1 again
        for batch in pipeline.epoch(epoch):
            ids = batch.record_ids.numpy()
            stored = cache.gather(ids, np.full(len(ids), epoch % VIEWS)).astype(np.float32)
            assert np.abs(stored - teacher.embed(batch.images).numpy()).max() < FLOAT16_ULP
            others = cache.gather(ids, np.full(len(ids), (epoch + 1) % VIEWS)).astype(np.float32)
            same_side = augmentation.mirrored(epoch, ids) == augmentation.mirrored(epoch + 1, ids)
            altered += int((same_side & (np.abs(stored - others).max(axis=1) > 4 * FLOAT16_ULP)).sum())
    pipeline.close()
    assert altered > RECORDS // 2, "views must differ in more than their side, or any of them would pass"


def test_training_from_the_views_is_training_with_the_teacher_in_the_loop(data: Path, tmp_path: Path):
    losses = []
    for name, cache in (("loop", "null"), ("cached", str(data / "cache"))):
        recipe = _recipe(data, teacher__cache=cache, optim__epochs=4, optim__lr=0.01, log__every=1)
        run_training(recipe, tmp_path / name, ranks=Ranks(), student=PlainStudent())
        losses.append([row["loss"] for row in logged(tmp_path / name)])
    assert len(losses[0]) == 4 * 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-4)  # the rows are float16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"augment__views": VIEWS + 1}, "this cache holds 3 views of that seed, 0 to 2"),
        ({"augment__seed": 77}, "this cache's have another seed"),
        ({"augment__crop": 0.5}, "augmented in another way"),
        ({"data__mirror_probability": 0.0}, "augmented in another way"),
        ({"augment__policy": "none", "augment__views": "null"}, "missing view plain"),
    ],
)
def test_a_recipe_that_shows_other_images_is_refused(data: Path, tmp_path: Path, change: dict, named: str):
    with pytest.raises(StoreError, match=named):
        run_training(_recipe(data, **change), tmp_path / "run", ranks=Ranks(), student=PlainStudent())


def test_fewer_views_than_the_cache_holds_will_do(data: Path, tmp_path: Path):
    recipe = _recipe(data, augment__views=2, optim__epochs=1, optim__warmup_epochs=0, optim__milestones="[]")
    run_training(recipe, tmp_path / "run", ranks=Ranks(), student=PlainStudent())


def test_one_cache_serves_several_seeds_where_the_augmentation_has_its_own(data: Path, tmp_path: Path):
    seeded = {"augment__seed": 9, "teacher__cache": tmp_path / "cache"}
    build_cache(_recipe(data, **seeded), ranks=Ranks(), stop=StopSignal(), batch_size=16)
    for seed in (1, 2):
        recipe = _recipe(data, **seeded, seed=seed, optim__epochs=1, optim__warmup_epochs=0, optim__milestones="[]")
        run_training(recipe, tmp_path / f"run-{seed}", ranks=Ranks(), student=PlainStudent())


def test_images_drawn_anew_every_epoch_are_not_taught_from_stored_embeddings(data: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match=r"set augment\.views"):
        _recipe(data, augment__views="null")
    stored = {"teacher__embeddings": data / "teacher.npy", "teacher__checkpoint": "null", "teacher__cache": "null"}
    with pytest.raises(ValueError, match="as stored and mirrored, and the recipe augments"):
        run_training(_recipe(data, **stored), tmp_path / "run", ranks=Ranks(), student=PlainStudent())


def test_stored_views_are_recomputed_and_compared(data: Path):
    found = recompute_rows(_recipe(data), TeacherCache(data / "cache"), records=20, ranks=Ranks())
    assert found.least_cosine > 0.999999
    other = _recipe(data, augment__seed=77)
    with pytest.raises(ValueError, match="views that the recipe does not show"):
        recompute_rows(other, TeacherCache(data / "cache"), records=20, ranks=Ranks())
