"""`adadistill teacher check` says what a teacher does and warns of what is suspicious; it fails where training would
learn from another network than was loaded."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from tiny_training import tiny_recipe, write_tiny_records
from torch import nn

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.recipe import dump_recipe
from adadistill.loaders.pixels import decode_image, to_network_input
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import write_insightface_records
from adadistill.recipes import teacher_check
from adadistill.recipes.teacher import main

BACKBONE = BackboneConfig(arch="mobilefacenet", embedding_dim=16, width=0.25)
SIDE = 32


def sees_red() -> nn.Module:
    """A network of random weights that looks at its first channel alone."""
    network = build_backbone(BACKBONE, SIDE, generator=7)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight[:, 1:] = 0.0
    return network.eval()


def write_faces(folder: Path, people: int = 60) -> None:
    """Two images of each person: who it is shows in red, while green and blue are noise."""
    draw = np.random.default_rng(0)
    who = draw.normal(size=(people, 1, 8, 8))
    planes = np.repeat(draw.normal(size=(people, 2, 8, 8, 3)), 4, axis=2).repeat(4, axis=3)  # (people, 2, 32, 32, 3)
    planes[..., 0] = np.repeat(who + 0.2 * draw.normal(size=(people, 2, 8, 8)), 4, axis=2).repeat(4, axis=3)
    pixels = np.clip(128 + 40 * planes, 0, 255).astype(np.uint8)
    folder.mkdir()
    samples = [
        (label, simplejpeg.encode_jpeg(image, quality=100, colorsubsampling="444"))
        for label, images in enumerate(pixels)
        for image in images
    ]
    write_insightface_records(folder, samples, image_size=(SIDE, SIDE))


def write_recipe(folder: Path, teacher: Path, name: str = "recipe.yaml", **changes: object) -> Path:
    recipe = tiny_recipe(folder, teacher__embeddings="null", teacher__checkpoint=teacher, **changes)
    (folder / name).write_text(dump_recipe(recipe))
    return folder / name


@pytest.fixture(scope="module")
def red_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose teacher sees red alone, on records where only red tells who it is."""
    folder = tmp_path_factory.mktemp("red") / "faces"
    write_faces(folder)
    save_network(folder / "teacher", sees_red(), BACKBONE, SIDE)
    return write_recipe(folder, folder / "teacher")


def check(recipe: Path, *arguments: object) -> int:
    return main(["check", str(recipe), *map(str, arguments), "--device", "cpu"])


# --- what it says ------------------------------------------------------------------------------------------------


def test_a_sound_teacher_is_described_and_passes(red_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check(red_recipe, "--images", 50, "--batch-size", 16, "--json", tmp_path / "report.json") == 0

    printed = capsys.readouterr().out
    for word in ("teacher", "runs", "agrees", "speed", "mirror", "norms", "people", "colour order: rgb is better"):
        assert any(line.startswith(word) for line in printed.splitlines()), word
    assert "WARNING" not in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["identity"]["kind"] == "checkpoint"
    assert report["identity"]["preprocessing"]["color"] == "rgb"
    assert (report["images"], report["batch_size"], report["failure"], report["warnings"]) == (50, 16, None, [])
    assert report["cosine"]["least"] > 0.99999
    assert report["images_per_s"] > 0
    assert report["loaded_images_per_s"] > 0
    assert report["norm"]["least"] <= report["norm"]["p1"] <= report["norm"]["mean"]
    assert report["colours"]["better"] == "rgb"


def test_the_numbers_are_those_of_the_network_on_the_records(red_recipe: Path, tmp_path: Path):
    assert check(red_recipe, "--images", 1000, "--json", tmp_path / "report.json") == 0  # more than there are: all
    report = json.loads((tmp_path / "report.json").read_text())

    records = ImageRecords(red_recipe.parent / "train.rec")
    pixels = np.stack([decode_image(records.read(i).body, where="") for i in range(len(records))])
    images, network = to_network_input(torch.from_numpy(pixels), device=torch.device("cpu")), sees_red()
    with torch.no_grad():
        plain, mirrored = network(images), network(images.flip(3))
    assert report["images"] == len(records)
    assert report["norm"]["mean"] == pytest.approx(plain.norm(dim=1).mean().item(), rel=1e-4)
    mirror_cosine = nn.functional.cosine_similarity(plain, mirrored).mean().item()
    assert report["mirror_cosine"] == pytest.approx(mirror_cosine, abs=1e-4)


def test_the_recipes_precision_is_what_is_checked(red_recipe: Path, tmp_path: Path):
    assert check(red_recipe, "precision=bfloat16", "--images", 20, "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runs"].startswith("bfloat16 on cpu")
    assert 0.999 < report["cosine"]["mean"] < 0.999999


# --- what it warns of --------------------------------------------------------------------------------------------


def test_an_explicit_order_that_the_scores_contradict_is_warned_about_loudly(red_recipe, capsys):
    assert check(red_recipe, "teacher.color=bgr", "--images", 20) == 0
    printed = capsys.readouterr().out
    assert "WARNING: COLOUR ORDER: the recipe sets bgr" in printed
    assert "better in rgb" in printed
    assert "Or red and blue are swapped in records of train.rec" in printed
    assert "does not know the people" in printed, "in the wrong order this one sees noise alone"


def test_a_stated_order_that_the_scores_contradict_is_warned_about(red_recipe, tmp_path, capsys):
    network = sees_red()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))
    save_network(tmp_path / "turned", network, BACKBONE, SIDE)  # our checkpoints state rgb
    recipe = write_recipe(red_recipe.parent, tmp_path / "turned", "turned.yaml")

    assert check(recipe, "--images", 20) == 0
    assert "its source states rgb, but this teacher tells people apart better in bgr" in capsys.readouterr().out
    assert check(recipe, "--images", 20, "teacher.color=auto") == 2  # as training would
    assert "its source states rgb, but bgr tells people apart better" in capsys.readouterr().err


def test_records_that_give_no_pairs_leave_people_and_colour_unscored(tmp_path, capsys):
    write_tiny_records(tmp_path, identities=5, images=5)
    save_network(tmp_path / "teacher", sees_red(), BACKBONE, SIDE)
    recipe = write_recipe(tmp_path, tmp_path / "teacher", student__embedding_dim=32)
    assert check(recipe, "--images", 5, "--json", tmp_path / "report.json") == 0
    printed = capsys.readouterr().out
    assert "WARNING: colour order and people were not scored" in printed
    assert "25 records of 5 identities" in printed
    assert "16-d, the student's 32-d; set student.embedding_dim=16" in printed
    assert json.loads((tmp_path / "report.json").read_text())["colours"] is None


# --- what fails --------------------------------------------------------------------------------------------------


def save_network_that_needs_float32(path: Path, images: torch.Tensor) -> None:
    """Behind its first norm all that tells images apart is a 1000th of a constant, which bfloat16 rounds away."""
    network = sees_red()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)]
    norms[0].running_mean.fill_(1000.0)
    for norm in norms[1:]:
        norm.momentum = None  # running averages become those of the one batch below, so that the rest works as usual
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        network(images)
    save_network(path, network.eval(), BACKBONE, SIDE)


def test_a_network_that_training_would_change_fails(red_recipe, tmp_path, capsys):
    images = torch.rand(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_network_that_needs_float32(tmp_path / "fragile", images)
    recipe = write_recipe(red_recipe.parent, tmp_path / "fragile", "fragile.yaml")

    assert check(recipe, "--images", 20, "precision=float32") == 0
    capsys.readouterr()
    assert check(recipe, "--images", 20, "precision=bfloat16", "--json", tmp_path / "report.json") == 1

    error = capsys.readouterr().err
    assert error.startswith("FAILED: the network that training would run agrees")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cosine"]["mean"] < 0.999
    assert report["failure"] in error


def test_a_network_that_gives_nan_fails(red_recipe, capsys, monkeypatch):
    # Checkpoints refuse to hold NaN, so the network is made to give it after it was loaded.
    kind = type(sees_red())
    monkeypatch.setattr(kind, "forward", lambda self, images: torch.full((len(images), 16), torch.nan))
    assert check(red_recipe, "--images", 20) == 1
    assert "gives NaN or infinity for 20 of 20 training images" in capsys.readouterr().err


def test_a_damaged_record_fails(red_recipe, tmp_path, capsys):
    content = bytearray((red_recipe.parent / "train.rec").read_bytes())
    place = content.index(b"\xff\xd8\xff")
    content[place : place + 3] = b"\0\0\0"
    (tmp_path / "train.rec").write_bytes(content)
    assert check(red_recipe, f"data.records={tmp_path / 'train.rec'}", "--images", 20) == 1
    assert "record 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "no such file"),
        (["{recipe}", "teacher.checkpoint=nowhere"], "nowhere"),
        (["{recipe}", "teacher.checkpoint=null", "teacher.embeddings=rows.npy"], "(rows.npy), and no network to check"),
        (["ms1mv2_mobilefacenet_no_teacher"], "has no teacher to check"),
        (["{recipe}", "--images", "0"], "must be a positive integer, got 0"),
        (["{recipe}", "--device", "toaster"], "toaster"),
    ],
)
def test_mistakes_end_with_code_2_and_one_message(red_recipe, capsys, arguments, message):
    try:
        code = main(["check", *(argument.format(recipe=red_recipe) for argument in arguments)])
    except SystemExit as stop:  # argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert "Traceback" not in error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_gpu_runs_what_training_runs(red_recipe, capsys):
    assert main(["check", str(red_recipe), "--images", "40", "--batch-size", "16", "--device", "cuda"]) == 0
    printed = capsys.readouterr().out
    assert "bfloat16 on " in printed
    assert ", compiled" in printed


@pytest.mark.slow
@pytest.mark.realdata
def test_a_real_teacher_is_checked_and_its_wrong_order_warned_about(data_dir, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="running an ONNX file needs onnxruntime")
    network, records = data_dir / "teachers" / "MobileFaceNet.onnx", data_dir / "faces" / "train.rec"
    if not network.is_file() or not records.is_file():
        pytest.skip(f"no {network} or {records}")
    (tmp_path / "recipe.yaml").write_text(
        f"name: real\ndata: {{records: {records}, decoder: cpu}}\n"
        f"teacher: {{onnx: {network}, color: bgr, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}\n"
        "student: {arch: mobilefacenet, embedding_dim: 128}\noptim: {lr: 0.1, epochs: 2, milestones: [1]}\n"
    )
    few = partial(teacher_check.pairs_of_records, pairs=60)  # enough to tell, in a sixth of the time
    monkeypatch.setattr(teacher_check, "pairs_of_records", few)
    assert check(tmp_path / "recipe.yaml", "--images", 16, "--json", tmp_path / "report.json") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (warning,) = report["warnings"]
    assert warning.startswith("COLOUR ORDER: the recipe sets bgr")
    assert report["cosine"]["least"] > 0.99999
    assert report["colours"]["rgb"]["same_cosine"] - report["colours"]["rgb"]["different_cosine"] > 0.4
    assert report["mirror_cosine"] > 0.8
