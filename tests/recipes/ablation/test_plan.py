"""What an ablation is to train: shipped variants, overlays, varied values, seeds, and every mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adadistill.core.recipe import RecipeError, load_recipe
from adadistill.recipes.ablation.plan import (
    AblationError,
    AblationPlan,
    plan_ablation,
    shipped_variants,
    variant_description,
)

SHIPPED = shipped_variants()
MS1MV2, DEMO = "ms1mv2_ir50_to_mobilefacenet", "demo_distilled"


def plan(recipe: str = DEMO, overrides: tuple[str, ...] = (), **asked: object) -> AblationPlan:
    return plan_ablation(recipe, overrides, folder=Path("out"), **asked)  # type: ignore[arg-type]


def problems_of(*overrides: str, **asked: object) -> str:
    with pytest.raises(AblationError) as refused:
        plan(DEMO, overrides, **asked)
    return str(refused.value)


def test_the_shipped_variants_are_the_files_of_the_folder_and_say_what_they_are():
    folder = Path(__file__).resolve().parents[3] / "recipes" / "variants"
    assert {path.resolve() for path in SHIPPED.values()} == {path.resolve() for path in folder.iterdir()}
    assert set(SHIPPED) == {
        "no_teacher", "cosine_regression", "adadistill_arcface", "adadistill_cosface", "adadistill_adaface",
        "geometry_static", "geometry_adaptive", "geometry_headroom",
    }  # fmt: skip
    for path in SHIPPED.values():
        assert variant_description(path).endswith("."), path


@pytest.mark.parametrize("recipe", [MS1MV2, DEMO])
def test_every_shipped_variant_is_valid_over_the_shipped_recipes_and_changes_the_method_alone(recipe: str):
    planned = plan(recipe, variants=list(SHIPPED), seeds="1")
    base = load_recipe(recipe)
    assert [variant.label for variant in planned.variants] == list(SHIPPED)
    for variant in planned.variants:
        changed = {line.split(":")[0].split(".")[0] for line in variant.differences(base)}
        assert changed <= {"teacher", "head", "centres", "geometry_margin", "regression"}
        assert variant.recipe.head.logit_scale == base.head.logit_scale


def test_the_variants_stand_for_what_they_are_called():
    of = {variant.label: variant.recipe for variant in plan(MS1MV2, variants=list(SHIPPED), seeds="1").variants}
    assert of["geometry_adaptive"] == load_recipe(MS1MV2), "the published method is the published recipe"
    assert of["no_teacher"].teacher is None
    assert (of["no_teacher"].head.kind, of["no_teacher"].head.margin) == ("arcface", 0.5)
    assert of["no_teacher"].centres.kind == "trainable"
    assert (of["cosine_regression"].centres.kind, of["cosine_regression"].regression.weight) == ("none", 64.0)
    for name, head, margin in (("arcface", "arcface", 0.45), ("cosface", "cosface", 0.35), ("adaface", "adaface", 0.4)):
        recipe = of[f"adadistill_{name}"]
        assert (recipe.head.kind, recipe.head.margin, recipe.centres.kind) == (head, margin, "adaptive")
        assert recipe.geometry_margin.mode == "off"
    for mode in ("static", "adaptive", "headroom"):
        assert of[f"geometry_{mode}"].geometry_margin.mode == mode
        assert of[f"geometry_{mode}"].head == of["adadistill_adaface"].head
    static = of["geometry_static"].geometry_margin
    assert (static.weight, static.scale, static.mask, static.baseline) == (0.2, 1.0, 0.8, 0.25)


def test_variants_are_laid_over_the_overrides_of_the_recipe():
    planned = plan(
        DEMO, ("teacher.checkpoint=elsewhere", "optim.epochs=20", "seed=9"), variants=["recipe", "no_teacher"]
    )
    given, alone = (variant.recipe for variant in planned.variants)
    assert given.teacher is not None
    assert given.teacher.checkpoint == "elsewhere"
    assert alone.teacher is None, "an override of the recipe does not undo a variant"
    assert alone.optim.epochs == given.optim.epochs == 20
    assert planned.seeds == (9, 10, 11)


def test_runs_go_seed_by_seed_each_in_a_folder_of_its_own():
    planned = plan(variants=["recipe", "geometry_headroom"], seeds="4,0")
    runs = list(planned.runs())
    assert [(run.variant, run.seed) for run in runs] == [
        ("recipe", 4), ("geometry_headroom", 4), ("recipe", 0), ("geometry_headroom", 0),
    ]  # fmt: skip
    assert runs[1].folder == Path("out/runs/geometry_headroom/seed-4")
    assert [run.recipe.seed for run in runs] == [4, 4, 0, 0]
    assert planned.baseline == "recipe"
    assert plan(variants=["recipe", "no_teacher"], baseline="no_teacher").baseline == "no_teacher"


def test_varied_keys_multiply_every_variant():
    planned = plan(
        variants=["geometry_adaptive", "geometry_headroom"],
        vary=["geometry_margin.scale=1,9", "optim.milestones=[8,12],[]"],
        seeds="1",
    )
    found = {v.label: (v.recipe.geometry_margin.scale, v.recipe.optim.milestones) for v in planned.variants}
    assert len(found) == 8
    assert found["geometry_headroom,geometry_margin.scale=9,optim.milestones=[8,12]"] == (9.0, (8, 12))
    assert found["geometry_adaptive,geometry_margin.scale=1,optim.milestones=[]"] == (1.0, ())


def test_values_alone_are_varied_over_the_recipe_as_it_is():
    planned = plan(vary=["geometry_margin.scale=1,2"], seeds="1")
    assert [variant.label for variant in planned.variants] == ["geometry_margin.scale=1", "geometry_margin.scale=2"]


def test_folders_of_odd_labels_are_plain_names_that_differ():
    planned = plan(vary=["teacher.checkpoint=../../a b,'../../a/b',runs/" + "x" * 200], seeds="1")
    names = [variant.folder_name for variant in planned.variants]
    assert len(set(names)) == 3
    for name in names:
        assert "/" not in name
        assert len(name) < 140
        assert name.isprintable()


def test_a_file_is_a_variant_named_by_its_stem(tmp_path: Path):
    (tmp_path / "wide.yaml").write_text("# Twice the width.\nstudent: {width: 0.5}\n")
    (variant, _) = plan(variants=[str(tmp_path / "wide.yaml"), "recipe"]).variants
    assert (variant.label, variant.description, variant.recipe.student.width) == ("wide", "Twice the width.", 0.5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"variants": ["geometry_adaptve"]}, "there is no variant geometry_adaptve; did you mean geometry_adaptive?"),
        ({"variants": ["zzz"]}, "there is no variant zzz; there are adadistill_adaface, "),
        ({"variants": ["no_teacher", "no_teacher"]}, "variant no_teacher is named twice"),
        ({"variants": ["recipe", "optim.lr=1"]}, "variant optim.lr=1 is an override; overrides stand before"),
        ({"variants": ["recipe"], "seeds": "0"}, "--seeds must be at least 1 and at most 10,000, got 0"),
        ({"variants": ["recipe"], "seeds": "-1"}, "--seeds must be a number of seeds or a list"),
        ({"variants": ["recipe"], "seeds": "1,1"}, "--seeds names 1 twice"),
        ({"variants": ["recipe"], "seeds": "0,9223372036854775808"}, "--seeds must be in [0, 2^63)"),
        ({"vary": ["optim.lrr=1,2"]}, "unknown key `optim.lrr`; did you mean `optim.lr`?"),
        ({"vary": ["optim.lr=1,1"]}, "--vary optim.lr has the value 1 twice"),
        ({"vary": ["optim.lr=1,,2"]}, "has an empty value"),
        ({"vary": ["optim.lr"]}, "--vary must be written key.path=value,value, got optim.lr"),
        ({"vary": ["optim.lr=1,2", "optim.lr=3"]}, "--vary names optim.lr twice"),
        ({"vary": ["seed=1,2"]}, "seeds are chosen with --seeds"),
        ({"vary": ["evaluation.sets=[a.bin]"]}, "sets evaluation.sets; all variants are scored on the same pairs"),
        ({}, "there is nothing to compare; give --variants or --vary"),
        ({"variants": ["recipe", "no_teacher"], "baseline": "no_techer"}, "is none of the variants; did you mean no_t"),
        (
            {"variants": ["adadistill_adaface"], "vary": ["geometry_margin.mode=off,static"], "baseline": "x"},
            "--baselin",
        ),
        ({"vary": [f"optim.weight_decay={','.join(map(str, range(99)))}"], "seeds": "999"}, "98,901 runs; 10,000 at m"),
        ({"variants": ["nowhere.yaml"]}, "variant nowhere: cannot be read: No such file"),
        ({"variants": ["a b.yaml"]}, "variant file a b.yaml must be named with letters"),
        ({"variants": ["recipe.yaml"]}, "must have another name"),
        (
            {"vary": ["geometry_margin.mode=adaptive", "head.kind=arcface"]},
            "geometry_margin.mode adaptive needs head.kind adaface, got arcface",
        ),
    ],
)
def test_what_is_wrong_is_named_at_the_door(asked: dict[str, object], message: str):
    assert message in problems_of(**asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head: {kindd: arcface}", "unknown key `head.kindd`; did you mean `head.kind`?"),
        ("base: demo_teacher.yaml", "has a `base`; an overlay has none"),
        ("seed: 4", "sets the seed; seeds are chosen with --seeds"),
        ("!!python/object:os.system {}", "line 1"),
        ("- 1", "must be a mapping of keys to values"),
        ("teacher: null", "centres.kind adaptive averages the embeddings of a teacher, and there is no teacher"),
    ],
)
def test_a_wrong_overlay_is_named_with_its_problem(tmp_path: Path, text: str, message: str):
    (tmp_path / "mine.yaml").write_text(text + "\n")
    told = problems_of(variants=[str(tmp_path / "mine.yaml")])
    assert "variant mine" in told
    assert message in told


def test_everything_wrong_is_said_at_once():
    told = problems_of(variants=["no_techer", "geometry"], seeds="none", vary=["x"])
    assert told.startswith("4 problems:")
    for part in ("no_techer; did you mean no_teacher?", "geometry", "--seeds must be", "--vary must be"):
        assert part in told


def test_two_names_for_one_recipe_are_refused():
    assert "variants recipe and adadistill_adaface give the same recipe; leave one out" in problems_of(
        "regression.weight=0", variants=["recipe", "adadistill_adaface"]
    )


def test_a_recipe_without_verification_sets_has_nothing_to_compare():
    assert "evaluation.sets is empty" in problems_of("evaluation.sets=[]", variants=["recipe"])


def test_a_wrong_recipe_is_refused_as_everywhere():
    with pytest.raises(RecipeError, match=r"unknown key `optim\.lrr`"):
        plan(DEMO, ("optim.lrr=1",), variants=["recipe"])
