"""A run from a folder of identities computes what one from the same images in a record file does, in every bit."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from folder_of_records import write_folder_of
from tiny_training import PlainStudent, logged, tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.teachers import record_binding
from adadistill.core.teachers.cache_build import build_cache
from adadistill.core.training.resume_check import ResumeError
from adadistill.core.training.run import run_training
from adadistill.core.training.stop_signal import StopSignal
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.loaders.records.image_folder import ImageFileError, ImageFolder
from adadistill.loaders.records.image_records import ImageRecords

SHORT = {"optim__epochs": 1, "optim__milestones": "[]", "log__every": 1}
NETWORK = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)
has_dali = importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records, `faces` with the same images in the same order, and a teacher."""
    folder = tmp_path_factory.mktemp("data")
    write_folder_of(write_tiny_records(folder), folder / "faces")
    save_network(folder / "teacher", build_backbone(NETWORK, 32, generator=3), NETWORK, 32)
    return folder


@pytest.fixture
def faces(data: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(data / "faces", tmp_path / "faces"))


def _train(data: Path, run: Path, *, resume: str = "none", **overrides: object) -> list[float]:
    recipe = tiny_recipe(data, **{**SHORT, **overrides})
    run_training(recipe, run, ranks=Ranks(), resume=resume, student=PlainStudent())
    return [row["loss"] for row in logged(run)]


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture(scope="module")
def wanted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run from the record file."""
    losses = _train(data, tmp_path_factory.mktemp("records") / "run")
    assert len(losses) == 6
    return losses


@pytest.mark.parametrize(
    "decoder", ["cpu", pytest.param("dali", marks=pytest.mark.skipif(not has_dali, reason="DALI is not installed"))]
)
def test_a_folder_trains_as_its_record_file_does(data: Path, wanted: list[float], tmp_path: Path, decoder: str):
    assert _train(data, tmp_path / "run", data__records=data / "faces", data__decoder=decoder) == wanted


def test_a_store_packed_from_a_folder_trains_as_the_folder_does(data: Path, wanted: list[float], tmp_path: Path):
    images = ImageFolder(data / "faces")
    pack_records(images, tmp_path / "rgb", binding=record_binding(images), layout="rgb", image_size=32)
    packed = {"data__packed": tmp_path / "rgb"}
    assert _train(data, tmp_path / "run", data__records=data / "faces", **packed) == wanted
    with pytest.raises(StoreError):
        _train(data, tmp_path / "other", **packed)  # of the record file, whose fingerprint is another


def test_resuming_is_refused_after_the_folder_changed(data: Path, faces: Path, tmp_path: Path):
    settings = {"data__records": faces, "teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
    _train(data, tmp_path / "run", **settings)
    assert _train(data, tmp_path / "run", resume="auto", **settings)
    image = faces / "000001" / "00000008.jpg"
    for change, undo in (
        (lambda: shutil.copy(image, faces / "000001" / "00000008a.jpg"), (faces / "000001" / "00000008a.jpg").unlink),
        (lambda: image.rename(faces / "000001" / "0.jpg"), lambda: (faces / "000001" / "0.jpg").rename(image)),
        (lambda: _damage(image), lambda: None),
    ):
        change()
        with pytest.raises(ResumeError, match=f"other records than {faces} holds now"):
            _train(data, tmp_path / "run", resume="auto", **settings)
        undo()


def test_a_damaged_image_stops_the_run_by_name_or_is_skipped(data: Path, faces: Path, tmp_path: Path, caplog):
    bad = faces / "000002" / "00000019.jpg"
    bad.write_bytes(b"\xff\xd8\xff" + b"no image at all")
    with pytest.raises(ValueError, match=r"000002/00000019\.jpg: record 19"):
        _train(data, tmp_path / "stops", data__records=faces)
    losses = _train(data, tmp_path / "skips", data__records=faces, data__on_damaged="skip")
    assert np.isfinite(losses).all()
    assert f"skipped: {bad}: record 19" in caplog.text


def test_a_file_that_vanishes_in_training_is_damage_and_no_crash(data: Path, faces: Path, monkeypatch, tmp_path: Path):
    opened = ImageFolder(faces)
    assert len(opened) == 48
    (faces / "000002" / "00000019.jpg").unlink()
    monkeypatch.setattr("adadistill.core.training.opening.named_records", lambda config: opened)
    with pytest.raises(ImageFileError, match=r"record 19: it cannot be read: No such file or directory"):
        _train(data, tmp_path / "run", data__records=faces)


def test_a_cache_of_a_folder_holds_the_same_rows_and_is_refused_once_it_changed(
    data: Path, faces: Path, tmp_path: Path
):
    teacher = {"teacher__embeddings": "null", "teacher__checkpoint": data / "teacher", "teacher__check": "false"}
    for name, records in (("records", data / "train.rec"), ("folder", faces)):
        recipe = tiny_recipe(data, data__records=records, teacher__cache=tmp_path / name, **teacher)
        build_cache(recipe, ranks=Ranks(), stop=StopSignal(), batch_size=16)
    bodies = [(tmp_path / name / "embeddings.bin").read_bytes() for name in ("records", "folder")]
    assert bodies[0] == bodies[1]
    assert TeacherCache(tmp_path / "folder").header.records["fingerprint"] == ImageFolder(faces).fingerprint()
    cached = {**teacher, "teacher__cache": tmp_path / "folder", "data__records": faces}
    assert _train(data, tmp_path / "run", **cached)
    _damage(faces / "000000" / "00000003.jpg")
    with pytest.raises(StoreError, match="other records"):
        _train(data, tmp_path / "changed", **cached)


def test_a_folder_and_its_record_file_are_not_the_same_records(data: Path):
    """Their record ids mean the same here, and nothing but reading all of both could tell."""
    assert ImageFolder(data / "faces").fingerprint() != ImageRecords(data / "train.rec").fingerprint()
