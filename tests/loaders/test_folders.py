"""One walker: what training, conversion, inspection and evaluation take from a folder is the same, and is said."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from noise_records import jpeg

from adadistill.loaders.dataset_tools.foreign_sets import convert_to_records
from adadistill.loaders.dataset_tools.inspection import inspect_path
from adadistill.loaders.dataset_tools.record_folder.folder_to_records import folder_to_records
from adadistill.loaders.evaluation_sets.image_sets import ImageSetError
from adadistill.loaders.evaluation_sets.pair_drawing import draw_pairs
from adadistill.loaders.evaluation_sets.tinyface import open_tinyface
from adadistill.loaders.folders import ImageFolderError, images_below, list_folder
from adadistill.loaders.records.folder_index import folder_index_path, write_folder_index
from adadistill.loaders.records.image_folder import ImageFolder
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.scoring.folder import networks_of

APPLE_DOUBLE = b"\0\5\x16\7" * 20


def write(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(APPLE_DOUBLE if path.name.startswith("._") else jpeg(seed))
    return root


FACES = ("10/1.jpg", "10/2.JPG", "9/1.png", "Zoe/a.jpeg")
LEFTOVERS = ("__MACOSX", "__macosx", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information",
             ".ipynb_checkpoints", ".git", ".Trash-1000", "Network Trash Folder")  # fmt: skip
LEFT_FILES = (".DS_Store", "._1.jpg", "Thumbs.db", "thumbs.db", "Desktop.ini", "Icon\r", ".nfs0001.jpg", "ehthumbs.db")


def test_training_and_conversion_give_the_same_labels_whatever_lies_in_the_folder(tmp_path: Path):
    clean = write(tmp_path / "clean", *FACES)
    messy = write(tmp_path / "messy", *FACES)
    for inside in (*(f"{name}/1.jpg" for name in LEFTOVERS), *LEFT_FILES):
        write(messy, inside, f"10/{inside}")
    images = ImageFolder(messy)
    assert images.labels().tolist() == [0, 0, 1, 2]
    assert images.fingerprint() == ImageFolder(clean).fingerprint()
    made = folder_to_records(messy, tmp_path / "out")
    records = ImageRecords(made.path)
    assert records.labels().tolist() == images.labels().tolist()
    assert [records.read(i).body for i in range(4)] == [images.read(i).body for i in range(4)]
    assert (made.identities, made.left_out) == (3, 0)
    facts = inspect_path(messy).facts
    assert (facts["identities"], facts["images"]) == (3, 4)
    assert facts["left out, hidden or of the system"] == 2 * len(LEFTOVERS + LEFT_FILES)
    assert {path.partition("/")[0] for path in draw_pairs(messy, 1, seed=0).paths} <= {"10", "9", "Zoe"}


def test_the_order_is_that_of_the_names_bytes_for_every_reader(tmp_path: Path):
    names = [os.fsdecode(name) for name in (b"\xff\xfe", "ä".encode(), b"a", b"Z", "\U0001f600".encode(), b"10", b"9")]
    folder = write(tmp_path / "set", *(f"{name}/1.jpg" for name in names))
    wanted = sorted(names, key=os.fsencode)
    assert ImageFolder(folder).identity_names == wanted
    folder_to_records(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == wanted
    assert images_below(folder) == [f"{name}/1.jpg" for name in wanted]


def test_images_one_level_too_high_or_too_deep_are_said_where_they_are(tmp_path: Path):
    flat = write(tmp_path / "flat", "a.jpg", "b.jpg", "._a.jpg")
    deep = write(tmp_path / "deep", "train/anna/1.jpg", "train/bert/1.jpg", "__MACOSX/train/anna/._1.jpg")
    deeper = write(tmp_path / "deeper", "data/v1/train/anna/1.jpg")
    for folder, said in (
        (flat, "Its images lie in it directly: give each identity a sub-folder"),
        (deep, f"Its images lie deeper, as in {deep}/train/anna: name {deep}/train"),
        (deeper, f"Its images lie deeper, as in {deeper}/data/v1/train/anna: name {deeper}/data/v1/train"),
    ):
        with pytest.raises(ImageFolderError, match=said.replace(".", r"\.")):
            list_folder(folder)
        with pytest.raises(ImageFolderError, match=f"no labelled images.*{said}"):
            folder_to_records(folder, tmp_path / "out")
        assert any(said in problem for problem in inspect_path(folder).problems)
    assert list_folder(deep / "train").labels().tolist() == [0, 1]


def test_what_training_refuses_and_conversion_leaves_out_is_said_by_inspection(tmp_path: Path):
    folder = write(tmp_path / "set", *FACES, "9/notes.txt", "readme.txt")
    (folder / "empty").mkdir()
    with pytest.raises(ImageFolderError, match="3 problems"):
        list_folder(folder)
    assert folder_to_records(folder, tmp_path / "out").left_out == 2
    facts = inspect_path(folder).facts
    assert (facts["left out, no images by name"], facts["empty sub-folders"]) == (2, 1)
    assert str(facts["refused before training"]).startswith("3 of these, the first: ")


def test_an_index_that_was_written_with_litter_in_it_is_not_taken(tmp_path: Path, monkeypatch, caplog):
    folder = write(tmp_path / "set", *FACES, "$RECYCLE.BIN/1.jpg")
    with monkeypatch.context() as patched:
        patched.setattr("adadistill.loaders.folders.is_litter", lambda name: name.startswith("."))
        write_folder_index(folder)
    assert folder_index_path(folder).is_file()
    assert ImageFolder(folder).identity_names == ["10", "9", "Zoe"]
    assert "is stale" in caplog.text


TINYFACE = ("Probe/1_1.jpg", "Probe/2_1.jpg", "Gallery_Match/1_2.jpg", "Gallery_Match/2_2.jpg",
            "Gallery_Distractor/d.jpg")  # fmt: skip


def test_tinyface_looks_past_litter_at_any_depth_and_does_not_go_round(tmp_path: Path):
    wanted = open_tinyface(write(tmp_path / "a" / "tf", *TINYFACE)).inspect(16)
    root = write(tmp_path / "b" / "tf", *TINYFACE, "Probe/._1_1.jpg", "Probe/__MACOSX/._x.jpg", "Probe/@eaDir/9_9.jpg")
    (root / "Probe" / "loop").symlink_to(root)
    assert open_tinyface(root).inspect(16) == wanted
    write(root, "Probe/more/3_1.jpg", "Probe/more-3_2.jpg")
    (root / "Probe" / "more-3_2.jpg").rename(root / "Probe" / "3_2.jpg")
    assert open_tinyface(root).counts["probes"] == 4
    (root / "Probe" / "4_1.jpg").symlink_to("nowhere")
    with pytest.raises(ImageSetError, match=r"4_1\.jpg is named like an image and is no file"):
        open_tinyface(root)


def test_members_that_a_mac_puts_into_a_tar_do_not_cut_samples_apart(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for number in range(2):
            for name in (f"./._{number}.jpg", f"./{number}.jpg", f"./._{number}.cls", f"./{number}.cls"):
                path = tmp_path / Path(name).name
                path.write_bytes(APPLE_DOUBLE if "._" in name else b"%d" % number if "cls" in name else jpeg(number))
                shard.add(path, name)
    made = convert_to_records([tmp_path / "0.tar"], tmp_path / "out")
    assert (made.images, made.identities) == (2, 2)
    assert "_0.jpg" not in inspect_path(tmp_path / "0.tar").facts["their suffixes"]


def test_hidden_files_are_no_networks_to_score_and_no_records_to_inspect(tmp_path: Path):
    write(tmp_path, "a.onnx", "._a.onnx", "b.onnx", "sets/lfw.bin", "sets/._lfw.bin")
    assert list(networks_of(tmp_path, [".onnx"])) == ["a", "b"]
    assert inspect_path(tmp_path / "sets").facts["number of files"] == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_one_sentence(tmp_path: Path):
    root = write(tmp_path / "tf", *TINYFACE)
    (root / "Probe").chmod(0)
    try:
        with pytest.raises(ImageSetError, match=r"Probe cannot be listed: Permission denied$"):
            open_tinyface(root)
    finally:
        (root / "Probe").chmod(0o700)
