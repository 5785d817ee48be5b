"""Every YAML in recipes/ loads, and the published ones hold the published hyper-parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadistill.core.recipe import (
    dump_recipe,
    load_overlaid_recipe,
    load_recipe,
    parse_recipe,
    recipe_differences,
    recipe_hash,
    shipped_recipes,
)
from adadistill.core.training.optimiser import learning_rate
from adadistill.recipes.ablation.plan import shipped_variants

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
ORIGIN, ADADISTILL = "ms1mv2_ir50_to_mobilefacenet", "ms1mv2_iresnet50_to_mobilefacenet"
# From the whole method to a softmax whose centres are learned: the head, its gradient and the placement come with it.
NO_TEACHER_COSFACE = {"head.kind", "head.margin_grad", "centres.kind"} | NO_TEACHER_NO_GEOMETRY
NO_TEACHER_ARCFACE = NO_TEACHER_COSFACE | {"head.margin"}


@pytest.mark.parametrize(
    ("distilled_name", "name", "changed"),
    [
        (
            ORIGIN,
            "ms1mv2_mobilefacenet_no_teacher",
            {"head.kind", "head.margin", "centres.kind"} | NO_TEACHER_NO_GEOMETRY,
        ),
        (ORIGIN, "ms1mv2_frozen_centres", {"centres.kind", "centres.path"} | NO_TEACHER_NO_GEOMETRY),
        (ORIGIN, "ms1mv2_cosine_regression", {"centres.kind", "regression.weight", "geometry_margin.mode"}),
        (ORIGIN, "ms1mv2_adadistill_plus_regression", {"regression.weight"}),
        (ORIGIN, "ms1mv2_ir101_to_mobilefacenet", {"teacher.cvlface"}),
        (ORIGIN, f"{ORIGIN}_no_geometry", {"geometry_margin.mode"}),
        (
            ORIGIN,
            f"{ORIGIN}_static_geometry",
            {"geometry_margin.mode", "geometry_margin.weight", "geometry_margin.scale"},
        ),
        (ADADISTILL, f"{ADADISTILL}_cosface", {"head.kind", "head.margin"}),
        (ADADISTILL, f"{ADADISTILL}_unweighted", {"centres.momentum"}),
        (ADADISTILL, f"{ADADISTILL}_frozen_arcface", {"teacher", "centres.kind", "centres.path"}),
        (
            f"{ADADISTILL}_cosface",
            f"{ADADISTILL}_frozen_cosface",
            {"teacher", "centres.kind", "centres.path"},
        ),
        (ADADISTILL, "ms1mv2_mobilefacenet_arcface_no_teacher", {"teacher", "head.margin", "centres.kind"}),
        (
            "casia_iresnet50_to_mobilefacenet",
            "casia_mobilefacenet_arcface_no_teacher",
            {"teacher", "head.margin", "centres.kind"},
        ),
        ("ms1mv2_ir50_to_mbf", "ms1mv2_mbf_arcface_no_teacher", NO_TEACHER_ARCFACE),
        ("ms1mv3_iresnet50_to_mbf", "ms1mv3_mbf_arcface_no_teacher", NO_TEACHER_ARCFACE),
        (
            "glint360k_iresnet50_to_mbf",
            "glint360k_mbf_cosface_no_teacher",
            NO_TEACHER_COSFACE | {"centres.placement"},
        ),
        ("webface4m_ir50_to_mbf", "webface4m_mbf_cosface_no_teacher", NO_TEACHER_COSFACE),
        (
            "webface12m_ir50_to_mbf",
            "webface12m_mbf_cosface_no_teacher",
            NO_TEACHER_COSFACE | {"centres.placement"},
        ),
    ],
)
def test_a_baseline_differs_from_the_distillation_in_the_method_alone(
    distilled_name: str, name: str, changed: set[str]
) -> None:
    """A gain of distillation is only one against the same student, records and schedule."""
    distilled, baseline = load_recipe(distilled_name), load_recipe(name)

    differences = {difference.split(":")[0] for difference in recipe_differences(distilled, baseline)}
    # dropout: null takes the architecture's, which mbf has none of
    assert differences - {"student.dropout"} == changed | {"name"}


@pytest.mark.parametrize(
    ("base", "variant", "name"),
    [
        (ORIGIN, "geometry_adaptive", ORIGIN),
        (ORIGIN, "adadistill_adaface", f"{ORIGIN}_no_geometry"),
        (ORIGIN, "geometry_static", f"{ORIGIN}_static_geometry"),
        (ORIGIN, "cosine_regression", "ms1mv2_cosine_regression"),
        (ORIGIN, "no_teacher", "ms1mv2_mobilefacenet_no_teacher"),
        (ADADISTILL, "adadistill_arcface", ADADISTILL),
        (ADADISTILL, "adadistill_cosface", f"{ADADISTILL}_cosface"),
        (ADADISTILL, "no_teacher", "ms1mv2_mobilefacenet_arcface_no_teacher"),
    ],
)
def test_a_variant_over_its_recipe_is_the_shipped_recipe_of_that_kind(base: str, variant: str, name: str) -> None:
    """`adadistill ablate` and a recipe of its own must not mean two things by one name."""
    varied = load_overlaid_recipe(base, overlay=shipped_variants()[variant])

    assert {line.split(":")[0] for line in recipe_differences(varied, load_recipe(name))} <= {"name"}


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
    assert optim.decay == "matrices", "AdaFace does not decay batch norm"
    assert learning_rate(optim, global_batch_size=512, epoch=0, step=0, steps_per_epoch=9) == pytest.approx(0.1)


def test_the_arcface_teachers_are_trained_as_insightface_s_and_as_adadistill_s() -> None:
    insightface = load_recipe("ms1mv2_iresnet50_arcface_teacher")
    adadistill = load_recipe("ms1mv2_iresnet50_arcface_step_teacher")

    for recipe in (insightface, adadistill):
        assert (recipe.student.arch, recipe.student.dropout) == ("iresnet50", 0.0)
        assert (recipe.head.kind, recipe.head.margin, recipe.head.logit_scale) == ("arcface", 0.5, 64.0)
        assert not recipe.augment.alters_pixels
    assert insightface.head.margin_grad == "straight_through"
    assert adadistill.head.margin_grad == "exact"
