"""Commands that take a record file take a folder of identities too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from folder_of_records import write_folder_of
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.recipe import dump_recipe
from adadistill.loaders.block_store.packed_images import PackedStore
from adadistill.loaders.folders import ImageFolderError
from adadistill.loaders.records.image_folder import ImageFolder
from adadistill.recipes import plan
from adadistill.recipes.data_verbs import check as data_check
from adadistill.recipes.data_verbs import index as data_index
from adadistill.recipes.data_verbs import pack as data_pack


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_records(tmp_path_factory.mktemp("records"))


@pytest.fixture
def faces(records: Path, tmp_path: Path) -> Path:
    """48 images of 6 identities."""
    return write_folder_of(records, tmp_path / "faces")


def test_a_folder_that_lacks_images_yet_is_not_trained_from(faces: Path):
    (faces / ".records.unfinished").write_text("{}")
    with pytest.raises(ImageFolderError, match=r"interrupted, and lacks images; run the same command again"):
        len(ImageFolder(faces))


def test_the_index_of_a_folder_is_written_once(faces: Path, capsys: pytest.CaptureFixture[str]):
    assert data_index.run([str(faces)]) == 0
    assert f"wrote {faces}.images.index: 48 images of 6 identities, without checksums" in capsys.readouterr().out
    assert data_index.run([str(faces)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert data_index.run([str(faces), "--all"]) == 2
    assert len(ImageFolder(faces)) == 48


def test_every_bad_image_is_reported_and_a_good_folder_sealed(faces: Path, capsys: pytest.CaptureFixture[str]):
    first, second = faces / "000000" / "00000001.jpg", faces / "000003" / "00000030.jpg"
    whole = first.read_bytes(), second.read_bytes()
    first.write_bytes(b"")
    second.write_bytes(whole[1][:-200])
    assert data_check.run([str(faces), "--decode", "--image-size", "32", "--seal"]) == 1
    said = capsys.readouterr().out
    assert f"record 1  ImageFileError  {first}: record 1: it is empty" in said
    assert f"record 30  ImageDecodeError  {second}: record 30" in said
    assert "2 bad" in said
    for path, content in zip((first, second), whole, strict=True):
        path.write_bytes(content)
    assert data_check.run([str(faces), "--decode", "--image-size", "32", "--seal"]) == 0
    assert f"sealed: {faces}.images.index, 48 images" in capsys.readouterr().out
    assert ImageFolder(faces, seal="require").sealed

    second.write_bytes(whole[1][:-1] + b"\0")
    assert data_check.run([str(faces)]) == 1
    assert "record 30  ImageChecksumError" in capsys.readouterr().out
    assert data_check.run([str(faces), "--seal", "--reseal"]) == 0
    assert data_check.run([str(faces)]) == 0
    assert "checksums compared, 0 bad" in capsys.readouterr().out


def test_what_is_no_folder_of_identities_is_a_wrong_command(faces: Path, capsys: pytest.CaptureFixture[str]):
    (faces / "notes.txt").write_text("?")
    assert data_check.run([str(faces)]) == 2
    assert "ImageFolderError" in capsys.readouterr().err


def test_a_folder_is_packed_as_its_record_file_is(records: Path, faces: Path, tmp_path: Path):
    for source, store in ((records, "of_records"), (faces, "of_folder")):
        assert data_pack.run([str(source), str(tmp_path / store), "--image-size", "32", "--layout", "rgb"]) == 0
    one, other = (PackedStore(tmp_path / store) for store in ("of_records", "of_folder"))
    np.testing.assert_array_equal(one.gather(np.arange(48)), other.gather(np.arange(48)))
    np.testing.assert_array_equal(one.labels, other.labels)


def test_plan_counts_a_folder(records: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(tiny_recipe(records.parent, data__records=faces)))
    arguments = [str(tmp_path / "recipe.yaml"), "--gpu", "cpu", "--memory-gb", "64", "--teacher-arch", "ir50", "--json"]
    assert plan.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["identities"]) == (48, 6)
