"""Every YAML in recipes/ loads, and the published ones hold the published hyper-parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadistill.core.optimiser import learning_rate
from adadistill.core.recipe import (
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_differences,
    recipe_hash,
    shipped_recipes,
)

SHIPPED = shipped_recipes()


def test_the_shipped_recipes_are_all_yaml_files_of_the_folder() -> None:
    folder = Path(__file__).resolve().parents[2] / "recipes"

    assert {path.resolve() for path in SHIPPED.values()} == {path.resolve() for path in folder.glob("*.yaml")}
    assert {"ms1mv2_ir50_to_mobilefacenet", "ms1mv2_mobilefacenet_no_teacher"} <= SHIPPED.keys()
    assert not list(folder.glob("*.yml")), "recipes end in .yaml, so that they are packaged and tested"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_and_reloads_to_the_same_hash(name: str) -> None:
    recipe = load_recipe(name)

    assert recipe.name == name, "a recipe is named like its file"
    assert recipe_hash(parse_recipe(dump_recipe(recipe))) == recipe_hash(recipe)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_opens_with_its_launch_line_and_result(name: str) -> None:
    comments = [line for line in SHIPPED[name].read_text(encoding="utf-8").splitlines() if line.startswith("#")]

    assert any(line.startswith("# Launch ") and name in line for line in comments)
    assert any(line.startswith("# Result ") for line in comments)


def test_the_distillation_recipe_has_the_hyper_parameters_of_the_origin() -> None:
    recipe = load_recipe("ms1mv2_ir50_to_mobilefacenet")
    rate = [
        learning_rate(recipe.optim, global_batch_size=384, epoch=epoch, step=0, steps_per_epoch=15_163)
        for epoch in range(recipe.optim.epochs)
    ]

    assert recipe.data.global_batch_size == 384
    assert rate[0] == pytest.approx(0.075 / 4)
    for epochs, expected in [
        (range(1, 7), 0.075),
        (range(7, 13), 7.5e-3),
        (range(13, 19), 7.5e-4),
        (range(19, 24), 7.5e-5),
    ]:
        assert [rate[epoch] for epoch in epochs] == pytest.approx([expected] * len(epochs))
    assert rate[24:] == pytest.approx([7.5e-6] * 2)
    assert (recipe.optim.momentum, recipe.optim.weight_decay, recipe.optim.clip_norm) == (0.9, 5e-4, 5.0)
    head = recipe.head
    assert (head.kind, head.margin, head.logit_scale) == ("adaface", 0.4, 64.0)
    assert (head.quality_concentration, head.norm_momentum, head.margin_grad) == (0.333, 0.01, "exact")
    assert (recipe.centres.kind, recipe.centres.momentum) == ("adaptive", "weighted")
    geometry = recipe.geometry_margin
    assert (geometry.mode, geometry.weight, geometry.scale, geometry.warmup_epochs) == ("adaptive", 1.0, 3.0, 1.0)
    assert (recipe.student.arch, recipe.student.embedding_dim, recipe.student.width) == ("mobilefacenet", 512, 1.0)
    assert (recipe.data.mirror_probability, recipe.data.image_size, recipe.data.decoder) == (0.5, 112, "dali")


NO_TEACHER_NO_GEOMETRY = {"teacher", "geometry_margin.mode"}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("ms1mv2_mobilefacenet_no_teacher", {"head.kind", "head.margin", "centres.kind"} | NO_TEACHER_NO_GEOMETRY),
        ("ms1mv2_frozen_centres", {"centres.kind", "centres.path"} | NO_TEACHER_NO_GEOMETRY),
        ("ms1mv2_cosine_regression", {"centres.kind", "regression.weight", "geometry_margin.mode"}),
        ("ms1mv2_adadistill_plus_regression", {"regression.weight"}),
    ],
)
def test_a_baseline_differs_from_the_distillation_in_the_method_alone(name: str, changed: set[str]) -> None:
    """A gain of distillation is only one against the same student, records and schedule."""
    distilled, baseline = load_recipe("ms1mv2_ir50_to_mobilefacenet"), load_recipe(name)

    differences = {difference.split(":")[0] for difference in recipe_differences(distilled, baseline)}
    assert differences == changed | {"name"}


def test_the_baselines_stand_for_what_they_are_called() -> None:
    alone, frozen = load_recipe("ms1mv2_mobilefacenet_no_teacher"), load_recipe("ms1mv2_frozen_centres")
    regression, both = load_recipe("ms1mv2_cosine_regression"), load_recipe("ms1mv2_adadistill_plus_regression")

    assert alone.teacher is None
    assert (alone.head.kind, alone.head.margin) == ("arcface", 0.5)
    assert frozen.teacher is None
    assert (frozen.centres.kind, frozen.centres.path) == ("frozen", "runs/ms1mv2_ir50_adaface_teacher")
    assert frozen.data.records == load_recipe("ms1mv2_ir50_adaface_teacher").data.records, "row and label must agree"
    assert regression.centres.kind == "none"
    assert regression.regression.weight == regression.head.logit_scale
    assert both.centres.kind == "adaptive"
    assert both.regression.weight > 0.0


def test_the_adaface_teacher_has_the_published_hyper_parameters() -> None:
    recipe = load_recipe("ms1mv2_ir50_adaface_teacher")
    optim, head = recipe.optim, recipe.head

    assert (recipe.student.arch, recipe.student.embedding_dim, recipe.student.dropout) == ("ir50", 512, 0.4)
    assert (recipe.teacher, recipe.centres.kind) == (None, "trainable")
    assert (head.kind, head.margin, head.logit_scale) == ("adaface", 0.4, 64.0)
    assert (head.quality_concentration, head.norm_momentum, head.margin_grad) == (0.333, 0.01, "exact")
    assert (recipe.data.global_batch_size, optim.epochs, optim.milestones) == (512, 26, (12, 20, 24))
    assert (optim.momentum, optim.weight_decay, optim.clip_norm, optim.warmup_epochs) == (0.9, 5e-4, None, 0.0)
    assert learning_rate(optim, global_batch_size=512, epoch=0, step=0, steps_per_epoch=9) == pytest.approx(0.1)


def test_the_arcface_teacher_is_trained_as_insightface_s() -> None:
    recipe = load_recipe("ms1mv2_iresnet50_arcface_teacher")
    optim, head = recipe.optim, recipe.head

    assert (recipe.student.arch, recipe.student.dropout) == ("iresnet50", 0.0)
    assert (head.kind, head.margin, head.logit_scale) == ("arcface", 0.5, 64.0)
    assert head.margin_grad == "straight_through"
    assert (recipe.data.global_batch_size, optim.epochs, optim.milestones) == (512, 26, (7, 13, 19, 24))
    assert (optim.lr, optim.lr_batch_size, optim.momentum, optim.weight_decay) == (0.1, 512, 0.9, 5e-4)
    assert optim.clip_norm == 5.0
