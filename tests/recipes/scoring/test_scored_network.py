"""What a command line names is told apart by what it is, and said in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import tiny_recipe

from adadistill.core.recipe import dump_recipe
from adadistill.core.teachers import Preprocessing, TeacherIdentity
from adadistill.recipes.scoring.scored_network import report_folder, source_kind, teacher_of_recipe


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        ("r50.onnx", "onnx"),
        ("some/R50.ONNX", "onnx"),
        ("backbone.pth", "weights"),
        ("student.pt", "weights"),
        ("adaface_ir50.ckpt", "weights"),
        ("model.safetensors", "weights"),
        ("cvlface_ir50", "cvlface"),
        ("minchul/cvlface_adaface_ir101_webface12m", "cvlface"),
        ("runs/casia", "checkpoint"),
        ("runs/casia/checkpoints/step-00000012", "checkpoint"),
        ("", "checkpoint"),
    ],
)
def test_names_tell_the_kind(network: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert source_kind(network) == kind


def test_a_revision_tells_a_repository_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert source_kind("somebody/faces", "0" * 40) == "cvlface"
    assert source_kind("somebody/faces.onnx", "0" * 40) == "onnx"


@pytest.mark.parametrize("inside", ["model.yaml", "pretrained_model/model.yaml"])
def test_folders_are_told_by_what_lies_in_them(tmp_path: Path, inside: str):
    folder = tmp_path / "cvlface_adaface.onnx"  # a folder, whatever it is called
    folder.mkdir()
    assert source_kind(str(folder)) == "checkpoint"
    (folder / inside).parent.mkdir(exist_ok=True)
    (folder / inside).write_text("name: ir50")
    assert source_kind(str(folder)) == "cvlface"


def test_reports_lie_in_the_run_folder(tmp_path: Path):
    assert report_folder(tmp_path / "run" / "checkpoints" / "step-00000012") == tmp_path / "run" / "report"
    assert report_folder(tmp_path / "teachers" / "step-00000012") == tmp_path / "teachers" / "report"


def test_colour_order_and_normalisation_are_said():
    wants = Preprocessing(color="bgr", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    identity = TeacherIdentity(
        kind="onnx",
        name="r50.onnx",
        arch="onnx",
        sha256="ab" * 32,
        embedding_dim=512,
        image_size=112,
        preprocessing=wants,
    )
    line = identity.summary()
    assert "112 x 112 bgr, mean 0.485 0.456 0.406, std 0.229 0.224 0.225" in line
    assert "sha256 abababababababab," in line
    assert "\n" not in line


def test_a_recipe_without_a_network_has_nothing_to_score(tmp_path: Path):
    with pytest.raises(ValueError, match="has no teacher; there is nothing to run"):
        teacher_of_recipe("ms1mv2_mobilefacenet_no_teacher")
    (tmp_path / "stored.yaml").write_text(dump_recipe(tiny_recipe(tmp_path)))
    with pytest.raises(ValueError, match=r"stored\.yaml has embeddings on disk for a teacher, and no network"):
        teacher_of_recipe(str(tmp_path / "stored.yaml"))
