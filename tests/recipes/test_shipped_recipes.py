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


def test_the_baseline_differs_from_the_distillation_in_the_method_alone() -> None:
    """A gain of distillation is only one against the same student, records and schedule."""
    distilled, baseline = load_recipe("ms1mv2_ir50_to_mobilefacenet"), load_recipe("ms1mv2_mobilefacenet_no_teacher")

    assert baseline.teacher is None
    assert (baseline.head.kind, baseline.head.margin) == ("arcface", 0.5)
    assert {difference.split(":")[0] for difference in recipe_differences(distilled, baseline)} == {
        "name",
        "teacher",
        "head.kind",
        "head.margin",
        "centres.kind",
        "geometry_margin.mode",
    }
