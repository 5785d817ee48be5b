"""A config.py becomes the recipe that it amounts to, and every key of it is accounted for."""

from __future__ import annotations

import pytest
from config_files import ADADISTILL, INSIGHTFACE_2021, INSIGHTFACE_MS1MV2_R50, INSIGHTFACE_WF12M_R50, ORIGIN

from adadistill.core.config_import import ConfigImportError, ImportedConfig, import_config
from adadistill.core.config_import.importer import recipe_name
from adadistill.core.recipe import RecipeError, load_recipe, parse_recipe, recipe_differences

ALL = {
    "origin": ORIGIN,
    "adadistill": ADADISTILL,
    "insightface arcface": INSIGHTFACE_MS1MV2_R50,
    "insightface cosface": INSIGHTFACE_WF12M_R50,
    "insightface of 2021": INSIGHTFACE_2021,
}


def imported(text: str, **options: object) -> ImportedConfig:
    return import_config(text.encode(), "config.py", name="it", **options)  # type: ignore[arg-type]


def differences(found: ImportedConfig, wanted_yaml: str) -> list[str]:
    assert found.recipe is not None
    return recipe_differences(parse_recipe(wanted_yaml), found.recipe)


def test_the_origins_config_is_the_shipped_recipe_but_for_its_name_and_the_large_benchmarks() -> None:
    """Shipped recipes name no IJB and TinyFace folders, which few people have; the origin's config does."""
    found = imported(ORIGIN)

    assert (found.family, found.devices, found.obstacles, found.unread) == ("origin", 1, [], [])
    assert found.recipe is not None
    assert recipe_differences(load_recipe("ms1mv2_ir50_to_mobilefacenet"), found.recipe) == [
        "name: ms1mv2_ir50_to_mobilefacenet != it",
        "evaluation.ijb: [] != [dataset/facerec_val/IJBB_gt_aligned, dataset/facerec_val/IJBC_gt_aligned]",
        "evaluation.tinyface: [] != [dataset/facerec_val/tinyface_aligned_pad_0.1]",
    ]


def test_adadistills_config_has_its_published_hyper_parameters() -> None:
    found = imported(ADADISTILL)

    assert (found.family, found.devices) == ("adadistill", 4)
    gated = imported(f"{ADADISTILL}\nconfig.network = 'iresnet18'\nconfig.SE = True\n").recipe
    assert gated is not None
    assert gated.student.se
    sets = ", ".join(f"data/faces_emore/{n}.bin" for n in ("lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"))
    wanted = f"""
name: it
data: {{records: data/faces_emore/train.rec, global_batch_size: 512}}
teacher: {{weights: output/teacher/295672backbone.pth, arch: iresnet50}}
student: {{arch: mobilefacenet, embedding_dim: 512}}
head: {{kind: arcface, margin: 0.45, logit_scale: 64.0}}
centres: {{kind: adaptive, momentum: weighted}}
geometry_margin: {{mode: off}}
optim:
  {{lr: 0.1, lr_batch_size: 512, epochs: 26, milestones: [7, 13, 19, 24], momentum: 0.9, weight_decay: 5e-4,
   clip_norm: 5.0}}
evaluation: {{sets: [{sets}]}}
"""
    assert differences(found, wanted) == []


def test_insightfaces_arcface_config_keeps_its_unscaled_rate_and_its_gradients() -> None:
    found = imported(INSIGHTFACE_MS1MV2_R50)

    assert (found.family, found.devices) == ("insightface", 8)
    wanted = """
name: it
data: {records: /train_tmp/faces_emore/train.rec, global_batch_size: 1024, decoder: cpu}
student: {arch: iresnet50, embedding_dim: 512}
head: {kind: arcface, margin: 0.5, logit_scale: 64.0, margin_grad: straight_through}
centres: {kind: trainable, placement: sharded}
optim:
  {lr: 0.1, lr_batch_size: 1024, epochs: 20, schedule: polynomial, power: 1.0, warmup_epochs: 0, warmup: linear,
   momentum: 0.9, weight_decay: 1e-4, clip_norm: 5.0}
evaluation:
  {sets: [/train_tmp/faces_emore/lfw.bin, /train_tmp/faces_emore/cfp_fp.bin, /train_tmp/faces_emore/agedb_30.bin]}
"""
    assert differences(found, wanted) == []


def test_insightfaces_cosface_config_with_a_warm_up_that_is_computed() -> None:
    found = imported(INSIGHTFACE_WF12M_R50, devices=4)

    wanted = """
name: it
data: {records: /train_tmp/WebFace12M/train.rec, global_batch_size: 512, decoder: dali}
student: {arch: iresnet50, embedding_dim: 512}
head: {kind: cosface, margin: 0.4, logit_scale: 64.0, margin_grad: straight_through}
centres: {kind: trainable, placement: sharded}
optim:
  {lr: 0.1, lr_batch_size: 512, epochs: 20, schedule: polynomial, warmup_epochs: 2, warmup: linear, momentum: 0.9,
   weight_decay: 5e-4, clip_norm: 5.0}
evaluation: {sets: []}
"""
    assert differences(found, wanted) == []


@pytest.mark.parametrize("text", ALL.values(), ids=ALL)
def test_every_key_of_the_published_ones_is_understood_and_each_value_says_where_it_is_from(text: str) -> None:
    found = imported(text)

    keys = [fate.key for fate in found.fates]
    assert len(set(keys)) == len(keys)
    assert {fate.outcome for fate in found.fates} == {"taken", "harmless"}
    assert all(fate.becomes for fate in found.fates if fate.outcome == "taken")
    assert all(fate.why for fate in found.fates if fate.outcome != "taken")
    assert found.yaml is not None
    assert parse_recipe(found.yaml) == found.recipe
    values = [line for line in found.yaml.splitlines() if ": " in line and not line.startswith(("#", "name:"))]
    assert len(values) > 15
    assert all("  # " in line for line in values)


def test_what_is_not_trained_differently_is_left_out_and_listed_with_its_line() -> None:
    found = imported(f"{ORIGIN}\nconfig.ijb_flip = False\n")

    (fate,) = (fate for fate in found.fates if fate.key == "ijb_flip")
    assert (fate.outcome, fate.line) == ("not taken over", len(ORIGIN.splitlines()) + 2)
    assert "fused" in fate.why
    assert found.yaml is not None
    assert f"ijb_flip (line {fate.line})" in found.yaml


DECISIVE = {
    "SE": (ORIGIN, "True"),
    "brand_new": (ORIGIN, "3"),
    "optimizer": (INSIGHTFACE_WF12M_R50, "'adamw'"),
    "gradient_acc": (INSIGHTFACE_WF12M_R50, "4"),
    "lr_func": (INSIGHTFACE_WF12M_R50, "lambda epoch: 0.1 ** len([m for m in [8] if m - 1 <= epoch])"),
    "decay_epoch": (INSIGHTFACE_WF12M_R50, "[8, 14]"),
    "loss": (INSIGHTFACE_WF12M_R50, "'arcface'"),
    "image_size": (INSIGHTFACE_2021, "compute()"),
}


@pytest.mark.parametrize("key", DECISIVE)
def test_a_key_that_decides_what_is_trained_is_refused_with_its_line_unless_it_is_dropped(key: str) -> None:
    text, value = DECISIVE[key]
    config = f"{text}\nconfig.{key} = {value}\n"
    found = imported(config)

    line = len(text.splitlines()) + 2
    assert (found.recipe, found.yaml) == (None, None)
    (obstacle,) = found.obstacles
    assert obstacle.startswith(f"{key}: ")
    assert f"line {line}" in obstacle
    assert f"--drop {key}" in obstacle

    dropped = imported(config, drop=[key])
    assert dropped.recipe is not None
    assert dropped.yaml is not None
    assert key == "image_size" or f"{key} (line {line}): left out, as --drop says" in dropped.yaml


def test_what_is_dropped_must_be_there() -> None:
    with pytest.raises(ConfigImportError, match="--drop sample_rat: the config does not set it"):
        imported(INSIGHTFACE_WF12M_R50, drop=["sample_rat"])


@pytest.mark.parametrize(("loss", "kind", "margin"), [("cosface", "cosface", 0.4), ("arcface", "arcface", 0.5)])
def test_insightfaces_configs_of_2021_keep_their_head_and_their_steps(loss: str, kind: str, margin: float) -> None:
    found = imported(INSIGHTFACE_2021.replace("cosface", loss))

    assert found.family == "insightface"
    wanted = f"""
name: it
data: {{records: /train_tmp/ms1m-retinaface-t1/train.rec, global_batch_size: 1024, decoder: cpu}}
student: {{arch: iresnet50, embedding_dim: 512}}
head: {{kind: {kind}, margin: {margin}, logit_scale: 64.0}}
centres: {{kind: trainable, placement: sharded}}
optim:
  {{lr: 0.1, lr_batch_size: 512, epochs: 25, milestones: [11, 17, 22], warmup_epochs: 0, warmup: linear,
   momentum: 0.9, weight_decay: 5e-4, clip_norm: 5.0}}
precision: float32
evaluation: {{sets: [/train_tmp/ms1m-retinaface-t1/lfw.bin, /train_tmp/ms1m-retinaface-t1/cfp_fp.bin]}}
"""
    assert differences(found, wanted) == []


@pytest.mark.parametrize(
    "schedule",
    [
        "def lr_step_func(epoch):\n    return STEPS\nconfig.lr_func = lr_step_func",
        "config.lr_func = lambda epoch: 1.0 if epoch < -1 else STEPS",
    ],
)
def test_insightfaces_rate_function_of_2021_is_a_schedule_of_steps(schedule: str) -> None:
    lines = [line for line in INSIGHTFACE_2021.splitlines() if "decay_epoch" not in line]
    steps = "0.1 ** len([m for m in [11, 17, 22] if m - 1 <= epoch])"
    found = imported("\n".join([*lines, schedule.replace("STEPS", steps)]))

    assert found.recipe is not None
    optim = found.recipe.optim
    assert (optim.schedule, optim.milestones, optim.gamma, optim.lr_batch_size) == ("step", (10, 16, 21), 0.1, 512)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("config.loss = ", "config.other = "), "loss is not set; the head must be said"),
        (("    config.decay_epoch = [11, 17, 22]\n", ""), "decay_epoch is not set; the rate schedule must be said"),
        (("[11, 17, 22]", "steps()"), "decay_epoch: what it is set to in line"),
        (("decay_epoch = [11, 17, 22]", "lr_func = lambda e: 0.5"), "lr_func: what it is set to in line"),
        (("decay_epoch =", "lr_func = lambda e: 0.1 ** len([m for m in [8] if m <= e])\n    config.decay_epoch ="),
         "lr_func: decay_epoch says the schedule too"),
        (('"ms1m-retinaface-t1"\nconfig.em', 'choose()\nconfig.em'), "line 17: it reads something that is not known"),
        (("config = edict()", "from base import config"), "line 3: settings of another file"),
    ],
)  # fmt: skip
def test_no_default_stands_in_for_what_a_config_of_2021_says(change: tuple[str, str], said: str) -> None:
    assert change[0] in INSIGHTFACE_2021
    found = imported(INSIGHTFACE_2021.replace(*change))

    assert found.recipe is None
    assert any(obstacle.startswith(said) for obstacle in found.obstacles), found.obstacles


def test_what_a_config_leaves_out_has_the_values_of_its_script_not_ours() -> None:
    found = imported("config = edict()\nconfig.sample_rate = 1\nconfig.rec = 'r'\nconfig.num_epoch = 2\n")
    assert found.recipe is not None
    recipe = found.recipe
    assert (recipe.head.kind, recipe.head.margin, recipe.student.arch) == ("arcface", 0.5, "iresnet50")
    assert (recipe.precision, recipe.data.global_batch_size) == ("float32", 1024)

    without = "\n".join(line for line in ORIGIN.splitlines() if "config.geom_margin_" not in line)
    found = imported(without)
    assert found.recipe is not None
    geometry = found.recipe.geometry_margin
    assert (geometry.mode, geometry.weight, geometry.scale, geometry.warmup_epochs) == ("adaptive", 0.2, 1.0, 0.0)

    for key in ("lr", "m", "s", "h", "t_alpha", "adaptive_alpha", "momentum", "weight_decay", "embedding_size"):
        found = imported("\n".join(line for line in ORIGIN.splitlines() if not line.startswith(f"config.{key} ")))
        assert found.recipe is None
        assert [obstacle.split()[0] for obstacle in found.obstacles] == [key]


def test_secrets_are_shown_nowhere() -> None:
    found = imported(f"{INSIGHTFACE_WF12M_R50}\nconfig.wandb_key = 'deadbeef'\nconfig.hf_token = 'deadbeef'\n")

    assert "deadbeef" not in repr(found)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("config.loss = 'MLLoss'", "loss: known are ArcFace"),
        ("config.network = 'vit'", "network: known are"),
        ("config.teacher = 'resnet'", "teacher: known are"),
        ("config.batch_size = None", "batch_size: the images of a step"),
        ("config.lr = '0.1'", "lr: it is not a number"),
        ("config.lr = rate()", "lr: what it is set to in line"),
        ("config.lr_func = lambda epoch: 0.5", "lr_func: what it is set to in line"),
        ("config.m = float('nan')", "m: what it is set to in line"),
        ("for config.s in range(3): pass", "line 61: a loop, which is not run; it may set anything"),
        ("config.update(changes)", "line 61: a call, which is not run; it may set anything"),
        ("from elsewhere import config", "line 61: settings of another file"),
        ("if unknown: config.m = 0.3", "line 61: an `if` on something other than"),
    ],
)
def test_no_recipe_is_made_where_a_value_that_matters_is_not_known(line: str, said: str) -> None:
    found = imported(f"{ORIGIN}\n{line}\n")

    assert found.recipe is None
    assert found.yaml is None
    assert any(obstacle.startswith(said) for obstacle in found.obstacles), found.obstacles


@pytest.mark.parametrize(
    ("margins", "head"), [((1.0, 0.3, 0.2), None), ((0.9, 0.5, 0.0), None), ((1, 0, 0.35), "cosface"), ("x", None)]
)
def test_combined_margins_are_refused(margins: object, head: str | None) -> None:
    found = imported(f"{INSIGHTFACE_WF12M_R50}\nconfig.margin_list = {margins!r}\n")

    assert (found.recipe.head.kind if found.recipe is not None else None) == head


def test_sampled_and_filtered_classes_are_taken_over() -> None:
    found = imported(
        f"{INSIGHTFACE_WF12M_R50}\nconfig.sample_rate = 0.2\nconfig.interclass_filtering_threshold = 0.4\n"
    )

    assert found.recipe is not None
    assert (found.recipe.centres.sample_rate, found.recipe.head.filter_above) == (0.2, 0.4)


def test_a_value_out_of_range_is_refused_by_the_strict_reader() -> None:
    with pytest.raises(RecipeError, match=r"head\.margin must be in \[0, 1\), got 1\.5"):
        imported(f"{ORIGIN}\nconfig.m = 1.5\n")


def test_a_config_of_nobody_is_refused_unless_its_family_is_said() -> None:
    with pytest.raises(ConfigImportError, match="nothing tells whose config it is"):
        imported("config = dict()\nconfig['lr'] = 0.1\n")
    assert imported("config = dict()\nconfig['lr'] = 0.1\n", family="insightface").recipe is None


def test_any_file_name_gives_a_name_that_a_recipe_can_have() -> None:
    names = {"config": "config", "my run (2)": "my_run_2", "...": "imported", "x" * 300: "x" * 100}
    assert {stem: recipe_name(stem) for stem in names} == names
