"""The strict reader: no value changes its type, all problems are reported at once, no input ends in a traceback."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adadistill.core.config.strict_yaml import (
    LoadedConfig,
    RecipeError,
    parse_config,
    read_config,
    read_overlaid_config,
)
from adadistill.core.config.text import canonical_json, config_differences, dump_config


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A section with ranges."""

    kind: Literal["arcface", "cosface", "adaface"] = "adaface"
    mode: Literal["off", "on"] = "off"
    margin: float = 0.4
    logit_scale: float = 64.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.margin < 1.0:
            raise ValueError(f"margin must be in [0, 1), got {self.margin}")
        if self.logit_scale <= 0.0:
            raise ValueError(f"logit_scale must be positive, got {self.logit_scale}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A section with a required field and a relation between fields."""

    epochs: int
    lr: float = 0.1
    milestones: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    clip_norm: float | None = 5.0

    def __post_init__(self) -> None:
        if self.epochs <= 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.lr <= 0.0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if any(milestone >= self.epochs for milestone in self.milestones):
            raise ValueError(f"milestones must be below {self.epochs}, got {list(self.milestones)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """An optional section in which exactly one field is set."""

    checkpoint: str | None = None
    embeddings: str | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.embeddings is None):
            raise ValueError("needs exactly one of checkpoint, embeddings")


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """What the tests read."""

    name: str
    seed: int = 1
    exact: bool = False
    sets: tuple[str, ...] = ()
    size: int | Literal["auto"] = "auto"
    teacher: Teacher | None = None
    head: Head = field(default_factory=Head)
    schedule: Schedule

    def __post_init__(self) -> None:
        problems = []
        if self.exact and self.teacher is None:
            problems.append("exact needs a teacher section")
        if self.schedule.epochs % 2:
            problems.append(f"schedule.epochs must be even, got {self.schedule.epochs}")
        if problems:
            raise ValueError("\n".join(problems))


MINIMAL = "name: first\nschedule: {epochs: 4}\n"


def load(text: str | bytes, *overrides: str) -> Experiment:
    return parse_config(Experiment, text, source="x.yaml", overrides=overrides).config


def problems_of(text: str | bytes, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return caught.value.problems


# Types


def test_numbers_are_floats_where_a_float_is_wanted() -> None:
    for written, value in (("1e-4", 1e-4), ("1", 1.0), ("5E2", 500.0), (".5", 0.5), ("2.", 2.0), ("+3.5", 3.5)):
        lr = load(f"name: a\nschedule: {{epochs: 4, lr: {written}}}").schedule.lr
        assert (lr, type(lr)) == (value, float)


def test_plain_text_stays_text_whatever_yaml_1_1_made_of_it() -> None:
    for written in ("no", "on", "y", "010", "1:30", "1_000", "2026-01-02", "NaN", "="):
        assert load(f"name: {written}\nschedule: {{epochs: 4}}").name == written
    assert load(MINIMAL + "head: {mode: off}").head.mode == "off"
    assert load("name: '3'\nschedule: {epochs: 4}").name == "3"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: 010", "seed must be a whole number, got 010; write it without the leading zero"),
        ("seed: 1.0", "seed must be a whole number, got 1.0; write 1"),
        ("seed: 1e3", "seed must be a whole number, got 1e3; write 1000"),
        ("seed: 1_000", "seed must be a whole number, got 1_000; write the digits without separators"),
        ("seed: '3'", "seed must be a whole number, got '3'; remove the quotes"),
        ("seed:", "seed must be a whole number, got null"),
        ("seed: {a: 1}", "seed must be a whole number, got a mapping"),
        ("seed: 99999999999999999999", "seed must fit 64 bits, got 99999999999999999999"),
        ("exact: yes", "exact must be true or false, got yes; write true"),
        ("head: {margin: .nan}", "head.margin must be a finite number, got .nan"),
        ("head: {margin: 1e999}", "head.margin must be a finite number, got 1e999"),
        (
            "head: {kind: arcfase}",
            "head.kind must be one of arcface, cosface, adaface, got arcfase; did you mean arcface?",
        ),
        ("head:", "head must be a mapping of keys to values, got null"),
        ("sets: a.bin", "sets must be a list of strings, got a.bin; write a list as [a, b]"),
        ("sets: [a.bin, 3]", "sets must be a list of strings, got [a.bin, 3]"),
        ("size: big", "size must be a whole number or one of auto, got big"),
        ("teacher: x", "teacher must be a mapping of keys to values or null, got x"),
        ('sets: ["a\\nb"]', "sets must not hold control characters, got ['a\\nb']"),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_key(text: str, problem: str) -> None:
    (reported,) = problems_of(MINIMAL + text)

    assert reported.startswith(problem)


def test_lists_become_tuples_with_whole_numbers_standing_for_floats() -> None:
    schedule = load("name: a\nschedule: {epochs: 30, milestones: [7, 13], rates: [1, 0.5]}").schedule

    assert schedule.milestones == (7, 13)
    assert schedule.rates == (1.0, 0.5)
    assert [type(rate) for rate in schedule.rates] == [float, float]


def test_an_optional_section_may_be_absent_null_or_given() -> None:
    assert load(MINIMAL).teacher is load(MINIMAL + "teacher: null").teacher is None
    assert load(MINIMAL + "teacher: {checkpoint: t}").teacher == Teacher(checkpoint="t")


# All problems at once


def test_everything_wrong_is_reported_in_one_error() -> None:
    text = """\
name: a
sede: 3
exact: no
head: {margin: 2, logit_scale: -1, logit_scal: 3}
schedule: {epochs: 0, lr: -1, milestones: [7.5], clip_norm: five}
teacher: {}
exact: true
"""
    with pytest.raises(RecipeError) as caught:
        load(text)

    lines = str(caught.value).splitlines()
    assert lines[0] == "x.yaml, 11 problems:"
    assert [line.removeprefix("  ") for line in lines[1:]] == list(caught.value.problems)
    assert set(caught.value.problems) == {
        "duplicate key `exact` (again in line 7)",
        "unknown key `sede`; did you mean `seed`?",
        "exact must be true or false, got no; write false",
        "unknown key `head.logit_scal`; did you mean `head.logit_scale`?",
        "head.margin must be in [0, 1), got 2.0",
        "head.logit_scale must be positive, got -1.0",
        "schedule.milestones must be a list of whole numbers, got [7.5]",
        "schedule.clip_norm must be a number or null, got five",
        "schedule.epochs must be positive, got 0",
        "schedule.lr must be positive, got -1.0",
        "teacher: needs exactly one of checkpoint, embeddings",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("head: {scale: 1}", "unknown key `head.scale`; did you mean `head.logit_scale`?"),
        ("lr: 1", "unknown key `lr`; did you mean `schedule.lr`?"),
        ("head.margin: 1", "unknown key `head.margin`; sections are nested in a recipe, not dotted"),
        ("head: {1: 1}", "unknown key `head.1`; known here: kind, mode, margin, logit_scale"),
        ('"a\\nb": 1', "unknown key `a\\nb`; known here: name,"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(text: str, problem: str) -> None:
    (reported,) = problems_of(MINIMAL + text)

    assert reported.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("seed: 3", ["missing key `name`", "missing key `schedule`, which needs `schedule.epochs`"]),
        ("name: 3\nschedule: {epochs: 4}", ["name must be a string, got 3; quote it if it is meant as a string"]),
        ("name: a\nschedule:\n  epochs: 4\n  epochs: 4", ["duplicate key `schedule.epochs` (again in line 4)"]),
        # Between sections, together.
        (
            "name: a\nexact: true\nschedule: {epochs: 3}",
            ["exact needs a teacher section", "schedule.epochs must be even, got 3"],
        ),
        # No false problem follows from a value that was refused: what depends on it cannot be judged.
        ("name: a\nschedule: {milestones: [7]}", ["missing key `schedule.epochs`"]),
        (
            "name: a\nexact: true\nteacher: 3\nschedule: {epochs: 4}",
            ["teacher must be a mapping of keys to values or null, got 3"],
        ),
    ],
)
def test_what_is_missing_doubled_or_contradicts_is_told_and_nothing_that_follows_from_it(
    text: str, problems: list[str]
) -> None:
    assert list(problems_of(text)) == problems


# Text that is no recipe (more of it in test_yaml_tree.py)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("- a\n- b", "line 1: must be a mapping of keys to values, got [a, b]"),
        ("just text", "line 1: must be a mapping of keys to values, got just text"),
        (b"name: a\nsets: \xff\xfe", "line 2: not UTF-8 text (byte 0xff)"),
    ],
)
def test_text_that_is_no_recipe_is_one_problem(text: str | bytes, problem: str) -> None:
    assert problems_of(text) == (problem,)


def test_an_error_about_thousands_of_keys_stays_short() -> None:
    with pytest.raises(RecipeError) as caught:
        load("".join(f"k{i}: 1\n" for i in range(1_000)))

    assert len(caught.value.problems) == 1_002
    assert str(caught.value).endswith("  ... and 952 more")


# Overrides


def test_overrides_lie_over_the_file_under_the_same_rules() -> None:
    config = load(
        MINIMAL + "teacher: {checkpoint: t}",
        "seed=7",
        "schedule.lr=1e-3",
        "schedule.milestones=[1, 2]",
        "schedule.clip_norm=null",
        "head={kind: arcface, margin: 0.5}",
        "head.logit_scale=32",
        "teacher=null",
        "name='second # one'",
        "sets=[a.bin,b.bin]",
    )

    assert config == Experiment(
        name="second # one",
        seed=7,
        schedule=Schedule(epochs=4, lr=1e-3, milestones=(1, 2), clip_norm=None),
        head=Head(kind="arcface", margin=0.5, logit_scale=32.0),
        sets=("a.bin", "b.bin"),
    )


def test_an_override_reaches_into_a_section_that_the_file_leaves_out() -> None:
    assert load(MINIMAL, "teacher.checkpoint=runs/t=1/step-3").teacher == Teacher(checkpoint="runs/t=1/step-3")
    assert load(MINIMAL + "teacher: null", "teacher.embeddings=a b.npy").teacher == Teacher(embeddings="a b.npy")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("seed", "override `seed`: must be written key.path=value"),
        ("a..b=3", "override `a..b=3`: must be written key.path=value"),
        ("seed=", "override `seed=`: has no value; write null for none, '' for empty text"),
        ("exact=no", "exact must be true or false, got no; write false (from override `exact=no`)"),
        ("head.margin=2", "head.margin must be in [0, 1), got 2.0 (from override `head.margin=2`)"),
        ("seed.x=2", "seed must be a whole number, got a mapping (from override `seed.x=2`)"),
        ("name=a # b", "override `name=a # b`: must be one value, or a list or mapping in brackets; quote it"),
        ("name=[a", "override `name=[a`: expected ',' or ']'"),
        ("name=!!str 3", "override `name=!!str 3`: tags "),
        ("name=a\nb", "override `name=a\\nb`: the value has control characters"),
        ("name=\udcff", "override `name=\\udcff`: "),
        ("base=other.yaml", "override `base=other.yaml`: `base` cannot be overridden"),
        ("head={margin: 0.1, margin: 0.2}", "override `head={margin: 0.1, margin: 0.2}`: duplicate key `margin`"),
    ],
)
def test_a_wrong_override_is_named(override: str, problem: str) -> None:
    (reported,) = problems_of(MINIMAL, override)

    assert reported.startswith(problem)


def test_the_same_key_cannot_be_overridden_twice() -> None:
    assert problems_of(MINIMAL, "seed=1", "seed=2") == ("override `seed=2`: `seed` is given twice",)


# Files and base


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.yaml"


def test_a_base_is_merged_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    path = write(
        tmp_path,
        variant="base: below/common.yaml\nname: variant\nhead: {margin: 0.5}\nteacher: null\nsets: [b.bin]",
    )
    common = MINIMAL + "head: {kind: arcface, margin: 0.2}\nteacher: {checkpoint: t}\nsets: [a.bin, c.bin]"
    write(tmp_path / "below", common=common)

    assert read_config(Experiment, path).config == Experiment(
        name="variant", schedule=Schedule(epochs=4), head=Head(kind="arcface", margin=0.5), sets=("b.bin",)
    )


def test_provenance_says_which_file_line_or_override_gave_a_value(tmp_path: Path) -> None:
    path = write(tmp_path, variant="base: common.yaml\nname: variant\nhead:\n  margin: 0.5", common=MINIMAL + "seed: 3")

    loaded: LoadedConfig[Experiment] = read_config(Experiment, path, ["schedule.lr=0.2"])

    assert loaded.provenance["name"] == f"{path}:2"
    assert loaded.provenance["head.margin"] == f"{path}:4"
    assert loaded.provenance["schedule.epochs"] == f"{tmp_path / 'common.yaml'}:2"
    assert loaded.provenance["schedule.lr"] == "schedule.lr=0.2"
    assert loaded.provenance["head.kind"] == "default"
    assert loaded.provenance["teacher"] == "default"


def test_a_problem_in_the_base_names_the_base(tmp_path: Path) -> None:
    path = write(tmp_path, variant="base: common.yaml\nname: v", common=MINIMAL + "head: {margin: 3}\nseed: 1\nseed: 2")

    with pytest.raises(RecipeError) as caught:
        read_config(Experiment, path)

    common = tmp_path / "common.yaml"
    assert caught.value.problems == (
        f"base {common}: duplicate key `seed` (again in line 5)",
        f"head.margin must be in [0, 1), got 3.0 (from {common})",
    )


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("middle.yaml", "base {folder}/middle.yaml has a base itself; only one level is allowed"),
        ("absent.yaml", "base {folder}/absent.yaml: cannot be read: No such file or directory"),
        ("broken.yaml", "base {folder}/broken.yaml: line 1: expected"),
        (".", "base {folder}: is not a regular file"),
        ("../outside.yaml", "base must lie in this file's folder or below, got ../outside.yaml"),
        ("link.yaml", "base must lie in this file's folder or below, got link.yaml"),
        ("[common.yaml]", "base must be the name of a file, got [common.yaml]"),
    ],
)
def test_an_unusable_base_is_one_problem(tmp_path: Path, base: str, problem: str) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    path = write(folder, variant=f"base: {base}\nname: v", middle="base: common.yaml", common=MINIMAL, broken="a: [")
    write(tmp_path, outside=MINIMAL)
    (folder / "link.yaml").symlink_to(tmp_path / "outside.yaml")

    with pytest.raises(RecipeError) as caught:
        read_config(Experiment, path)

    (reported,) = caught.value.problems
    assert reported.startswith(problem.format(folder=folder))


def test_an_overlay_lies_over_file_base_and_overrides_and_under_its_own(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        variant="base: common.yaml\nname: variant\nteacher: {checkpoint: t}",
        common=MINIMAL + "head: {kind: arcface, margin: 0.2}\nsets: [a.bin, c.bin]",
        over="teacher: null\nhead: {margin: 0.3, mode: on}\nsets: [b.bin]",
    )

    loaded: LoadedConfig[Experiment] = read_overlaid_config(
        Experiment,
        path,
        ["teacher.checkpoint=u", "head.logit_scale=2", "seed=3"],
        overlay=tmp_path / "over.yaml",
        overlay_overrides=["head.mode=off", "seed=4"],
    )

    assert loaded.config == Experiment(
        name="variant", seed=4, schedule=Schedule(epochs=4), head=Head(kind="arcface", margin=0.3, logit_scale=2.0),
        sets=("b.bin",),
    )  # fmt: skip
    assert loaded.provenance["head.margin"] == f"{tmp_path / 'over.yaml'}:2"
    assert loaded.provenance["seed"] == "seed=4"


def test_what_is_wrong_with_an_overlay_names_it(tmp_path: Path) -> None:
    path = write(tmp_path, variant=MINIMAL, over="head: {margn: 0.3}\nseed: 1\nseed: 2", based="base: variant.yaml")
    over = tmp_path / "over.yaml"

    with pytest.raises(RecipeError) as caught:
        read_overlaid_config(Experiment, path, overlay=over)
    assert caught.value.problems == (
        f"{over}: duplicate key `seed` (again in line 3)",
        f"unknown key `head.margn`; did you mean `head.margin`? (from {over})",
    )
    with pytest.raises(RecipeError, match=r"based\.yaml: has a `base`; an overlay has none"):
        read_overlaid_config(Experiment, path, overlay=tmp_path / "based.yaml")
    with pytest.raises(RecipeError, match=r"absent\.yaml: cannot be read"):
        read_overlaid_config(Experiment, path, overlay=tmp_path / "absent.yaml")


def test_base_is_unknown_in_text_without_a_folder() -> None:
    assert problems_of(MINIMAL + "base: a.yaml")[0].startswith("unknown key `base`")


def test_files_that_cannot_be_read_get_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, reason in [
        ("absent.yaml", "cannot be read: No such file or directory"),
        ("pipe.yaml", "is not a regular file"),
        (".", "is not a regular file"),
        ("a\0b", "is not a possible file name"),
        ("a" * 300, "cannot be read: File name too long"),
    ]:
        with pytest.raises(RecipeError) as caught:
            read_config(Experiment, tmp_path / name)
        assert caught.value.problems == (reason,)


# Back to text


any_text = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20) | st.sampled_from(
    ["no", "1e-4", "010", "null", "~", "1:30", " a", "a ", "a: b", "- a", "# a", "'", '"', "\\", "\u2028"]
)
text_values = any_text.filter(lambda text: not (text.startswith("~") and "/" in text))  # a path at home is expanded
floats = st.floats(min_value=1e-300, max_value=1e300) | st.sampled_from([5e-324, 1e-5, 1e16, 1e22, 0.1])
experiments = st.builds(
    Experiment,
    name=text_values,
    seed=st.integers(-(2**63) + 1, 2**63 - 1),
    sets=st.lists(text_values, max_size=3).map(tuple),
    size=st.integers(0, 9) | st.just("auto"),
    teacher=st.none() | st.builds(Teacher, checkpoint=text_values),
    head=st.builds(Head, margin=st.floats(0.0, 1.0, exclude_max=True), logit_scale=floats),
    schedule=st.builds(
        Schedule,
        epochs=st.just(8),
        lr=floats,
        milestones=st.lists(st.integers(0, 7)).map(tuple),
        clip_norm=st.none() | floats,
    ),
)


@settings(max_examples=60, deadline=None)
@given(experiments)
def test_a_dumped_config_reads_back_equal_with_the_same_canonical_json(config: Experiment) -> None:
    again = load(dump_config(config))

    assert again == config
    assert canonical_json(again) == canonical_json(config)
    assert config_differences(again, config) == []


# Fuzzing

ALPHABET = "abn019 \t\n:-,[]{}#&*!|>'\"%@`?\\~.<=eE+_\x00\x85\ufeff\u2028\U0001f600"


def assert_result_or_short_error(text: str | bytes, overrides: list[str]) -> None:
    refused: RecipeError | None = None
    try:
        config = load(text, *overrides)
    except RecipeError as error:
        refused = error
    if refused is None:
        assert load(dump_config(config)) == config
    else:
        lines = str(refused).splitlines()
        assert all(line.isprintable() for line in lines), lines
        assert len(lines) == (1 if len(refused.problems) == 1 else 1 + len(refused.problems))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(ALPHABET, max_size=80) | st.text(max_size=40) | st.binary(max_size=60))
@example('a: "\\x')
@example("%TAG ! \n---\na")
@example("%YAML 99999999999999999999.1\n---\na: b")
@example("!<%ff> a")
def test_any_text_ends_in_a_config_or_a_short_error(text: str | bytes) -> None:
    assert_result_or_short_error(text, [])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            "{}={}".format,
            st.sampled_from(
                ["name", "seed", "head", "head.margin", "schedule.milestones", "sets", "teacher.checkpoint", "size"]
            )
            | st.text(ALPHABET, max_size=8),
            st.text(ALPHABET, max_size=12) | st.text(max_size=6),
        ),
        max_size=3,
    )
)
def test_any_override_ends_in_a_config_or_a_short_error(overrides: list[str]) -> None:
    assert_result_or_short_error(MINIMAL, overrides)


VALUES = ["1e-4", "no", "010", "~", "[1]", "[]", "{}", "{a: 1}", "-1", "3.0", ".nan", "'1'", "off", "arcfac", "!x 1"]
KEYS = ["name", "seed", "exact", "sets", "size", "teacher", "head", "schedule", "base", "lr", "<<", "1"]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES)), st.integers(0, 2**32))
def test_nearly_right_recipes_end_in_a_config_or_a_short_error(entries: dict[str, str], seed: int) -> None:
    draw = random.Random(seed)
    inner = {
        key: f"{{{draw.choice(['kind', 'margin', 'epochs', 'lr'])}: {draw.choice(VALUES[:4])}}}" for key in KEYS[5:8]
    }
    lines = [
        f"{key}: {inner[key] if key in inner and draw.random() < 0.7 else value}" for key, value in entries.items()
    ]

    assert_result_or_short_error("\n".join(lines), [])
