"""Recipes: what sections may not say together, where a recipe is found, and that a saved one is the same recipe."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adadistill.core.method.class_centres import CentresConfig
from adadistill.core.recipe import (
    Recipe,
    RecipeError,
    dump_recipe,
    find_recipe,
    load_recipe,
    parse_recipe,
    recipe_differences,
    recipe_hash,
    resolve_recipe,
    shipped_recipes,
)
from adadistill.core.training.optimiser import OptimConfig
from adadistill.loaders.pipelines.pipeline import DataConfig

DISTILLED = """\
name: distilled
data: {records: train.rec, global_batch_size: 8, decoder: cpu}
teacher: {embeddings: teacher.npy}
optim: {epochs: 4, milestones: [2, 3]}
"""
ALONE = """\
name: alone
data: {records: train.rec, global_batch_size: 8, decoder: cpu}
centres: {kind: trainable}
optim: {epochs: 4}
"""


def problems_of(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides=overrides)
    return caught.value.problems


def test_the_least_recipes_with_and_without_a_teacher_are_accepted() -> None:
    assert parse_recipe(DISTILLED).centres.kind == "adaptive"
    assert parse_recipe(ALONE).teacher is None


@pytest.mark.parametrize(
    ("text", "override", "problem"),
    [
        (
            DISTILLED,
            "teacher=null",
            "centres.kind adaptive averages the embeddings of a teacher, and there is no teacher",
        ),
        (ALONE, "teacher.checkpoint=t", "teacher would not be used, since centres.kind is trainable"),
        (DISTILLED, "geometry_margin={mode: adaptive}", None),
        (DISTILLED, "head={kind: arcface}", None),
        (
            ALONE,
            "geometry_margin.mode=static",
            "geometry_margin.mode static needs a teacher and centres.kind adaptive or",
        ),
        (DISTILLED, "optim.milestones=[3, 2]", "optim.milestones must ascend"),
        (DISTILLED, "optim.milestones=[2, 4]", "optim.milestones must ascend inside (0, 4), got [2, 4]"),
        (DISTILLED, "optim.warmup_epochs=4.5", "optim.warmup_epochs must not exceed optim.epochs, got 4.5 and 4"),
        (DISTILLED, "data.image_size=100", "data.image_size must be "),
        (DISTILLED, "data.global_batch_size=1", "data.global_batch_size must be at least 2"),
        (DISTILLED, "evaluation.every_epochs=0", "evaluation.every_epochs must be positive, got 0"),
        (DISTILLED, "evaluation.sets=[a/lfw.bin, b/lfw.bin]", "evaluation.sets must have different file names"),
        (DISTILLED, "seed=-1", "seed must be in [0, 2^63), got -1"),
        (DISTILLED, "name=../elsewhere", "name must be letters, digits, '.', '_' and '-'"),
        (DISTILLED, "name=.hidden", "name must be letters"),
    ],
)
def test_what_sections_may_not_say_together_is_refused(text: str, override: str, problem: str | None) -> None:
    if problem is None:
        parse_recipe(text, overrides=[override])
        return
    (reported,) = problems_of(text, override)

    assert reported.startswith(problem)


NO_TEACHER, TEACHER = "teacher: null", "teacher: {embeddings: teacher.npy}"
TRAINABLE, FROZEN, NONE = "{kind: trainable}", "{kind: frozen, path: c.npy}", "{kind: none}"
UNUSED = "teacher would not be used, since centres.kind is"


@pytest.mark.parametrize("regression", [0.0, 2.5])
@pytest.mark.parametrize("geometry", ["off", "adaptive"])
@pytest.mark.parametrize("teacher", [NO_TEACHER, TEACHER])
@pytest.mark.parametrize("centres", ["{kind: adaptive}", TRAINABLE, FROZEN, NONE])
def test_every_combination_of_centres_teacher_geometry_and_regression(
    centres: str, teacher: str, geometry: str, regression: float
) -> None:
    """The table in one piece: which combinations train something that uses all its parts, and what the others lack."""
    kind = centres.strip("{}").split(",")[0].split()[1]
    taught, on, used = teacher == TEACHER, geometry != "off", regression > 0.0
    expected = {
        "averages the embeddings of a teacher, and there is no teacher": kind == "adaptive" and not taught,
        "leaves regression alone to train by, and regression.weight is 0": kind == "none" and not used,
        "learns from a teacher alone, and there is no teacher": kind == "none" and not taught,
        "asks for a teacher's embeddings, and there is no teacher": kind in ("trainable", "frozen")
        and used
        and not taught,
        "needs a teacher and centres.kind adaptive or frozen": on and kind in ("trainable", "none"),
        "compares the student with a teacher, and there is no teacher": on and kind == "frozen" and not taught,
        f"{UNUSED} {kind}": taught and not used and (kind == "trainable" or (kind == "frozen" and not on)),
    }
    text = f"""
name: combined
data: {{records: train.rec, global_batch_size: 8, decoder: cpu}}
{teacher}
centres: {centres}
geometry_margin: {{mode: {geometry}}}
regression: {{weight: {regression}}}
optim: {{epochs: 4}}
"""
    if not any(expected.values()):
        recipe = parse_recipe(text)
        assert parse_recipe(dump_recipe(recipe)) == recipe
        return
    problems = problems_of(text)

    assert len(problems) == sum(expected.values())
    for part, is_wrong in expected.items():
        assert is_wrong == any(part in problem for problem in problems), part


def test_the_combinations_that_the_shipped_recipes_stand_for_are_all_accepted() -> None:
    """Counted, so that the table above cannot be right by refusing everything."""
    alone = parse_recipe(DISTILLED, overrides=["centres={kind: none}", "regression.weight=1"])
    frozen = parse_recipe(ALONE, overrides=["centres={kind: frozen, path: runs/teacher}"])
    both = parse_recipe(DISTILLED, overrides=["regression.weight=1", "geometry_margin.mode=adaptive"])

    assert (alone.centres.kind, alone.regression.weight) == ("none", 1.0)
    assert (frozen.centres.kind, frozen.centres.path, frozen.teacher) == ("frozen", "runs/teacher", None)
    assert (both.centres.kind, both.regression.weight) == ("adaptive", 1.0)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("centres={kind: frozen}", "centres.path must name the file or run folder that kind frozen takes"),
        ("centres.path=c.npy", "centres.path is for kind frozen, got 'c.npy' with kind adaptive"),
        ("regression.weight=-1", "regression.weight must be at least 0 and finite, got -1.0"),
        ("regression.wieght=1", "unknown key `regression.wieght`; did you mean `regression.weight`?"),
    ],
)
def test_centres_and_regression_are_checked_by_themselves(override: str, problem: str) -> None:
    assert problems_of(DISTILLED, override)[0].startswith(problem)


@pytest.mark.parametrize("centres", [TRAINABLE, FROZEN, NONE])
def test_headroom_needs_centres_that_move_with_the_teacher(centres: str) -> None:
    kind = centres.strip("{}").split(",")[0].split()[1]
    problems = problems_of(DISTILLED, "geometry_margin.mode=headroom", f"centres={centres}", "regression.weight=1")
    assert problems[0].startswith(f"geometry_margin.mode headroom needs centres.kind adaptive, got {kind}: it replaces")
    recipe = parse_recipe(DISTILLED, overrides=["geometry_margin={mode: headroom, headroom_momentum: 0.95}"])
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_the_geometry_margin_needs_the_adaface_head() -> None:
    assert problems_of(DISTILLED, "geometry_margin.mode=adaptive", "head.kind=cosface")[0].startswith(
        "geometry_margin.mode adaptive needs head.kind adaface, got cosface"
    )


def test_problems_of_all_sections_come_in_one_error() -> None:
    problems = problems_of(
        ALONE
        + "head: {kind: arcface, margin: 2, logit_scale: 0}\n"
        + "geometry_margin: {mode: adaptive, mask: 3}\nlog: {evry: 5}\n",
        "teacher.checkpoint=t",
        "optim.lr=0",
        "seed=-1",
    )

    starts = [
        "head.margin must be in [0, 1), got 2.0",
        "head.logit_scale must be positive",
        "geometry_margin.mask must be in [-1, 1], got 3.0",
        "unknown key `log.evry`; did you mean `log.every`?",
        "optim.lr must be positive, got 0.0 (from override `optim.lr=0`)",
        "seed must be in [0, 2^63), got -1 (from override `seed=-1`)",
        "teacher would not be used",
        "geometry_margin.mode adaptive needs head.kind adaface, got arcface",
        "geometry_margin.mode adaptive needs a teacher and centres.kind adaptive or frozen, got trainable",
    ]
    assert len(problems) == len(starts)
    for start in starts:
        assert any(problem.startswith(start) for problem in problems), (start, problems)


def test_cross_checks_also_hold_for_recipes_made_in_python() -> None:
    with pytest.raises(ValueError, match="there is no teacher"):
        Recipe(name="a", data=DataConfig(records="a.rec"), optim=OptimConfig(epochs=1))


def test_a_dumped_recipe_reads_back_equal_with_the_same_hash() -> None:
    recipe = parse_recipe(DISTILLED, overrides=["optim.lr=1e-5", "optim.weight_decay=3.3e-4", "optim.clip_norm=null"])
    again = parse_recipe(dump_recipe(recipe))

    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert dump_recipe(again) == dump_recipe(recipe)


def test_every_value_changes_the_hash_and_the_way_of_writing_does_not() -> None:
    recipe = parse_recipe(DISTILLED)
    reordered = "\n".join(reversed(DISTILLED.splitlines())) + "\n# a comment\nseed: 2048\n"

    assert len(recipe_hash(recipe)) == 64
    assert recipe_hash(parse_recipe(reordered)) == recipe_hash(recipe)
    changed = {recipe_hash(parse_recipe(DISTILLED, overrides=[o])) for o in ("seed=1", "optim.lr=0.2", "log.every=9")}
    assert len(changed | {recipe_hash(recipe)}) == 4


def test_a_hash_does_not_depend_on_the_process() -> None:
    """Hash randomisation and set order differ between processes; a resumed run compares hashes across them."""
    code = f"from adadistill.core.recipe import *; print(recipe_hash(parse_recipe({DISTILLED!r})))"
    folders = [path for path in sys.path if path]
    prelude = f"import sys; sys.path[:0] = {folders!r}; import tests_support; tests_support.make_importable(); "
    done = subprocess.run([sys.executable, "-c", prelude + code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == recipe_hash(parse_recipe(DISTILLED))


def test_differences_between_recipes_are_dotted_keys_with_both_values() -> None:
    saved, now = parse_recipe(DISTILLED), parse_recipe(DISTILLED, overrides=["optim.lr=0.2", "optim.milestones=[1]"])

    assert recipe_differences(saved, saved) == []
    assert recipe_differences(saved, now) == ["optim.lr: 0.1 != 0.2", "optim.milestones: [2, 3] != [1]"]


# Finding recipes


def test_a_bare_name_finds_a_shipped_recipe_and_a_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "ms1mv2_ir50_to_mobilefacenet"

    assert find_recipe(name) == find_recipe(f"{name}.yaml") == shipped_recipes()[name]
    (tmp_path / name).mkdir()
    assert load_recipe(name).name == name
    Path(f"{name}.yaml").write_text(DISTILLED)
    assert load_recipe(f"{name}.yaml").name == "distilled"
    assert load_recipe(tmp_path / f"{name}.yaml").name == "distilled"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ms1mv2_ir50_to_mobilfacenet", "there is no such file, and no shipped recipe of that name; did you mean ms1m"),
        ("sub/ms1mv2_ir50_to_mobilefacenet", "there is no such file, and no shipped recipe"),
        ("nothing_like_it", "there is no such file, and no shipped recipe of that name; `adadistill recipes ls`"),
        ("", "is not a regular file"),
        ("a\0b", "there is no such file"),
        ("x" * 5000, "there is no such file"),
        (".", "is not a regular file"),
    ],
)
def test_a_recipe_that_is_nowhere_is_one_problem(name: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)

    assert caught.value.problems[0].startswith(problem)


def test_paths_in_a_recipe_are_kept_as_written(tmp_path: Path) -> None:
    """They are relative to the working directory of the launch, so the folder of the recipe must not matter."""
    (tmp_path / "deep.yaml").write_text(DISTILLED)

    assert load_recipe(tmp_path / "deep.yaml").data.records == "train.rec"


def test_a_resolved_recipe_says_where_its_values_came_from(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(DISTILLED)

    provenance = resolve_recipe(path, ["optim.lr=0.2"]).provenance

    assert provenance["data.records"] == f"{path}:2"
    assert provenance["optim.lr"] == "optim.lr=0.2"
    assert provenance["optim.momentum"] == provenance["head.kind"] == "default"


def test_replacing_a_section_in_python_checks_again() -> None:
    with pytest.raises(ValueError, match="teacher would not be used"):
        replace(parse_recipe(DISTILLED), centres=CentresConfig(kind="trainable"))
