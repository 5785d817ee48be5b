"""Every YAML in recipes/ loads, and the published ones hold the published hyper-parameters."""

from __future__ import annotations

from functools import cache
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
from adadistill.recipes.ablation.plan import shipped_variants

SHIPPED = shipped_recipes()
_loaded = cache(load_recipe)


def test_the_shipped_recipes_are_all_yaml_files_of_the_folder() -> None:
    folder = Path(__file__).resolve().parents[2] / "recipes"

    assert {path.resolve() for path in SHIPPED.values()} == {path.resolve() for path in folder.glob("*.yaml")}
    assert {"ms1mv2_ir50_to_mobilefacenet", "ms1mv2_mobilefacenet_no_teacher"} <= SHIPPED.keys()
    assert not list(folder.glob("*.yml")), "recipes end in .yaml, so that they are packaged and tested"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads_and_reloads_to_the_same_hash(name: str) -> None:
    recipe = _loaded(name)

    assert recipe.name == name, "a recipe is named like its file"
    assert recipe_hash(parse_recipe(dump_recipe(recipe))) == recipe_hash(recipe)


def test_the_distillation_recipe_has_the_hyper_parameters_of_the_origin() -> None:
    """Beside schedule, margins and augmentation, which test_published_settings.py holds of every recipe."""
    recipe = _loaded("ms1mv2_ir50_to_mobilefacenet")
    geometry = recipe.geometry_margin

    assert (recipe.centres.kind, recipe.centres.momentum) == ("adaptive", "weighted")
    assert (geometry.mode, geometry.weight, geometry.scale, geometry.warmup_epochs) == ("adaptive", 1.0, 3.0, 1.0)
    assert (recipe.student.arch, recipe.student.embedding_dim, recipe.student.width) == ("mobilefacenet", 512, 1.0)
    assert recipe.data.decoder == "dali"


ORIGIN, ADADISTILL = "ms1mv2_ir50_to_mobilefacenet", "ms1mv2_iresnet50_to_mobilefacenet"
NO_TEACHER_NO_GEOMETRY = "teacher geometry_margin.mode"
# From the whole method to a softmax whose centres are learned: the head, its gradient and the placement come with it.
NO_TEACHER_COSFACE = f"head.kind head.margin_grad centres.kind {NO_TEACHER_NO_GEOMETRY}"
BASELINES = [
    (ORIGIN, "ms1mv2_mobilefacenet_no_teacher", f"head.kind head.margin centres.kind {NO_TEACHER_NO_GEOMETRY}"),
    (ORIGIN, "ms1mv2_frozen_centres", f"centres.kind centres.path {NO_TEACHER_NO_GEOMETRY}"),
    (ORIGIN, "ms1mv2_cosine_regression", "centres.kind regression.weight geometry_margin.mode"),
    (ORIGIN, "ms1mv2_adadistill_plus_regression", "regression.weight"),
    (ORIGIN, "ms1mv2_ir101_to_mobilefacenet", "teacher.cvlface"),
    (ORIGIN, f"{ORIGIN}_no_geometry", "geometry_margin.mode"),
    (ORIGIN, f"{ORIGIN}_static_geometry", "geometry_margin.mode geometry_margin.weight geometry_margin.scale"),
    (ADADISTILL, f"{ADADISTILL}_cosface", "head.kind head.margin"),
    (ADADISTILL, f"{ADADISTILL}_unweighted", "centres.momentum"),
    (ADADISTILL, f"{ADADISTILL}_frozen_arcface", "teacher centres.kind centres.path"),
    (f"{ADADISTILL}_cosface", f"{ADADISTILL}_frozen_cosface", "teacher centres.kind centres.path"),
    (ADADISTILL, "ms1mv2_mobilefacenet_arcface_no_teacher", "teacher head.margin centres.kind"),
    ("casia_iresnet50_to_mobilefacenet", "casia_mobilefacenet_arcface_no_teacher", "teacher head.margin centres.kind"),
    ("ms1mv2_ir50_to_mbf", "ms1mv2_mbf_arcface_no_teacher", f"head.margin {NO_TEACHER_COSFACE}"),
    ("ms1mv3_iresnet50_to_mbf", "ms1mv3_mbf_arcface_no_teacher", f"head.margin {NO_TEACHER_COSFACE}"),
    ("glint360k_iresnet50_to_mbf", "glint360k_mbf_cosface_no_teacher", f"centres.placement {NO_TEACHER_COSFACE}"),
    ("webface4m_ir50_to_mbf", "webface4m_mbf_cosface_no_teacher", NO_TEACHER_COSFACE),
    ("webface12m_ir50_to_mbf", "webface12m_mbf_cosface_no_teacher", f"centres.placement {NO_TEACHER_COSFACE}"),
]


@pytest.mark.parametrize(("distilled_name", "name", "changed"), BASELINES, ids=[row[1] for row in BASELINES])
def test_a_baseline_differs_from_the_distillation_in_the_method_alone(
    distilled_name: str, name: str, changed: str
) -> None:
    """A gain of distillation is only one against the same student, records and schedule."""
    distilled, baseline = _loaded(distilled_name), _loaded(name)

    differences = {difference.split(":")[0] for difference in recipe_differences(distilled, baseline)}
    # dropout: null takes the architecture's, which mbf has none of
    assert differences - {"student.dropout"} == {"name", *changed.split()}


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

    assert {line.split(":")[0] for line in recipe_differences(varied, _loaded(name))} <= {"name"}


def test_the_baselines_stand_for_what_they_are_called() -> None:
    alone, frozen = _loaded("ms1mv2_mobilefacenet_no_teacher"), _loaded("ms1mv2_frozen_centres")
    regression, both = _loaded("ms1mv2_cosine_regression"), _loaded("ms1mv2_adadistill_plus_regression")

    assert alone.teacher is None
    assert (alone.head.kind, alone.head.margin) == ("arcface", 0.5)
    assert frozen.teacher is None
    assert (frozen.centres.kind, frozen.centres.path) == ("frozen", "runs/ms1mv2_ir50_adaface_teacher")
    assert frozen.data.records == _loaded("ms1mv2_ir50_adaface_teacher").data.records, "row and label must agree"
    assert regression.centres.kind == "none"
    assert regression.regression.weight == regression.head.logit_scale
    assert both.centres.kind == "adaptive"
    assert both.regression.weight > 0.0
