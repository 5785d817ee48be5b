"""Shipped recipes have the schedules, margins and names of the runs that they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from adadistill.core.recipe import Recipe, load_recipe, shipped_recipes
from adadistill.core.training.optimiser import learning_rate

FOR_THE_FIELD = [name for name in shipped_recipes() if not name.startswith("demo_")]
STEPS = 10  # per epoch


_loaded = cache(load_recipe)


@dataclass(frozen=True)
class Published:
    """A schedule as its authors wrote it down."""

    batch: int
    epochs: int
    weight_decay: float
    rate: Callable[[float], float]
    """Of the epochs that are done, fractions of a step included."""
    clip_norm: float | None = 5.0
    decay: str = "all"


def _adadistill(base: float, milestones: tuple[int, ...]) -> Callable[[float], float]:
    """Counted as the published code counts: a milestone M takes effect once M - 1 epochs are done (method 1.4)."""
    return lambda done: base * 0.1 ** len([m for m in milestones if m - 1 <= int(done + 1e-9)])


def _origin(done: float) -> float:
    return 0.075 * ((done + 1) / 2) ** 2 if done < 1 else _adadistill(0.075, (8, 14, 20, 25))(done)


def _adaface(done: float) -> float:
    return 0.1 * 0.1 ** len([m for m in (12, 20, 24) if m <= int(done + 1e-9)])


def _cvlface(done: float) -> float:
    return 0.1 * (done + 1 / STEPS) if done < 1 - 1e-9 else _adaface(done)


def _line(epochs: int) -> Callable[[float], float]:
    return lambda done: 0.1 * (1 - done / epochs)


ADADISTILL = Published(512, 26, 5e-4, _adadistill(0.1, (8, 14, 20, 25)))
ADADISTILL_CASIA = Published(512, 60, 5e-4, _adadistill(0.1, (40, 48, 52)))
ORIGIN = Published(384, 26, 5e-4, _origin)
ADAFACE = Published(512, 26, 5e-4, _adaface, clip_norm=None, decay="matrices")
CVLFACE = Published(1792, 26, 5e-4, _cvlface, decay="matrices")
INSIGHTFACE = Published(1024, 20, 1e-4, _line(20))
INSIGHTFACE_DECAY_5E4 = Published(1024, 20, 5e-4, _line(20))
INSIGHTFACE_40 = Published(1024, 40, 1e-4, _line(40))

# The first pattern that fits a whole name. Decay and epochs of insightface are those of its configuration files.
SCHEDULES = [
    (r"(casia|idifface)_.*mobilefacenet.*", ADADISTILL_CASIA),
    (r"ms1mv2_iresnet50_(to_mobilefacenet.*|arcface_step_teacher)|ms1mv2_mobilefacenet_arcface_no_teacher", ADADISTILL),
    (r"webface4m_ir101_adaface_teacher", CVLFACE),
    (r".*_ir\d+_adaface_teacher", ADAFACE),
    (r"ms1mv[23]_.*mbf.*", INSIGHTFACE_40),
    (r".*mbf.*", INSIGHTFACE),
    (r"(ms1mv2_iresnet50_arcface|glint360k_iresnet\d+_cosface)_teacher", INSIGHTFACE),
    (r".*_iresnet\d+_\w+face_teacher", INSIGHTFACE_DECAY_5E4),
    (r".*_to_mobilefacenet.*|ms1mv2_(augmented|cosine|adadistill|frozen|mobilefacenet)_\w+", ORIGIN),
]


@pytest.mark.parametrize("name", FOR_THE_FIELD)
def test_a_schedule_is_the_published_one_step_for_step(name: str):
    published = next(schedule for pattern, schedule in SCHEDULES if re.fullmatch(pattern, name))
    recipe = _loaded(name)
    optim = recipe.optim

    assert (recipe.data.global_batch_size, optim.epochs) == (published.batch, published.epochs)
    assert (optim.momentum, optim.weight_decay, optim.decay) == (0.9, published.weight_decay, published.decay)
    assert optim.clip_norm == published.clip_norm
    for step in range(optim.epochs * STEPS):
        epoch, within = divmod(step, STEPS)
        rate = learning_rate(optim, global_batch_size=published.batch, epoch=epoch, step=within, steps_per_epoch=STEPS)
        assert rate == pytest.approx(published.rate(step / STEPS)), (epoch, within)


@pytest.mark.parametrize("name", FOR_THE_FIELD)
def test_margins_and_augmentation_are_the_published_ones(name: str):
    recipe = _loaded(name)
    head = recipe.head
    margins = {
        ("adaface", "adaptive"): {0.4}, ("adaface", "frozen"): {0.4}, ("adaface", "trainable"): {0.4},
        ("arcface", "adaptive"): {0.45}, ("arcface", "frozen"): {0.45}, ("arcface", "trainable"): {0.5},
        ("cosface", "adaptive"): {0.35}, ("cosface", "frozen"): {0.35}, ("cosface", "trainable"): {0.4},
        ("adaface", "none"): {0.4},
    }  # fmt: skip

    assert head.margin in margins[head.kind, recipe.centres.kind]
    assert head.logit_scale == 64.0
    assert (head.quality_concentration, head.norm_momentum) == (0.333, 0.01)
    augmented = name.endswith("adaface_teacher") or name == "ms1mv2_augmented_views"
    assert recipe.augment.policy == ("adaface" if augmented else "none")
    straight = {1024, 1792} if recipe.teacher is None else set()
    assert head.margin_grad == ("straight_through" if recipe.data.global_batch_size in straight else "exact")
    assert (recipe.data.mirror_probability, recipe.data.image_size, recipe.student.embedding_dim) == (0.5, 112, 512)


@pytest.mark.parametrize("name", FOR_THE_FIELD)
def test_a_name_says_dataset_teacher_student_and_head(name: str):
    recipe = _loaded(name)
    dataset = name.split("_")[0]

    assert Path(recipe.data.records) == Path("data", dataset, "train.rec")
    assert {Path(path).parent for path in recipe.evaluation.sets} == {Path("data", dataset)}
    if "_to_" in name:
        teacher, student = name.removeprefix(f"{dataset}_").split("_to_")
        assert recipe.student.arch == student.split("_")[0]
        if "_frozen_" not in name:
            assert _teacher_arch(recipe) == teacher
    elif name.endswith("_no_teacher"):
        assert (recipe.teacher, recipe.centres.kind) == (None, "trainable")
        assert recipe.student.arch == name.split("_")[1]
    elif name.endswith("_teacher"):
        assert (recipe.teacher, recipe.centres.kind) == (None, "trainable")
        assert (recipe.student.arch, recipe.head.kind) == tuple(name.split("_")[1:3])


def _teacher_arch(recipe: Recipe) -> str:
    assert recipe.teacher is not None
    if recipe.teacher.cvlface is not None:
        return recipe.teacher.cvlface.removeprefix("cvlface_")
    assert recipe.teacher.checkpoint is not None
    return _loaded(Path(recipe.teacher.checkpoint).name).student.arch


def test_teachers_and_centres_come_from_shipped_recipes():
    for name in FOR_THE_FIELD:
        recipe = _loaded(name)
        if recipe.teacher is not None and recipe.teacher.checkpoint is not None:
            assert Path(recipe.teacher.checkpoint).name in FOR_THE_FIELD, name
        if recipe.centres.path is not None:
            trained = _loaded(Path(recipe.centres.path).name)
            assert trained.data.records == recipe.data.records, "row and label must agree"
            assert trained.centres.kind == "trainable"


def test_trainable_centres_are_sharded_where_a_replica_takes_more_than_three_gigabytes():
    identities = {"ms1mv2": 85_742, "ms1mv3": 93_431, "glint360k": 360_232, "webface4m": 205_990, "webface12m": 617_970,
                  "casia": 10_572}  # fmt: skip
    for name in FOR_THE_FIELD:
        recipe = _loaded(name)
        if recipe.centres.kind == "trainable":
            large = 20 * identities[name.split("_")[0]] * recipe.student.embedding_dim > 3e9
            assert recipe.centres.placement == ("sharded" if large else "replicated"), name
