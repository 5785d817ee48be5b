"""A folder of identities gives the same ids to everyone, refuses whatever could move them, and names every bad file."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adadistill.loaders.folders import ImageFolderError, is_litter
from adadistill.loaders.pixels import ImageLimits
from adadistill.loaders.records.image_folder import ImageFileError, ImageFolder
from adadistill.loaders.records.image_source import EncodedImage
from adadistill.loaders.records.open_images import open_images
from adadistill.loaders.records.recordio import RecordError

FILES = {"anna/1.jpg": 0, "anna/2.JPEG": 0, "anna/10.png": 0, "Bert/x.JpG": 1, "ädna/y.jpeg": 2}


def body(number: int, length: int = 20) -> bytes:
    return b"\xff\xd8\xff\xe0" + bytes([number]) * length


def write(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body(number, 20 + number))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of three identities; in bytewise order Bert (B < a), anna, ädna."""
    return write(tmp_path / "faces", list(FILES))


def test_ids_and_labels_are_ranks_in_bytewise_order(folder: Path):
    images = ImageFolder(folder)
    names = ["Bert/x.JpG", "anna/1.jpg", "anna/10.png", "anna/2.JPEG", "ädna/y.jpeg"]
    assert [str(images.path_of(i).relative_to(folder)) for i in range(len(images))] == names
    assert images.identity_names == ["Bert", "anna", "ädna"]
    assert images.num_classes == 3
    np.testing.assert_array_equal(images.labels(), [0, 1, 1, 1, 2])
    assert images.labels().dtype == np.int64
    assert [images.read(i).label for i in range(5)] == [0, 1, 1, 1, 2]
    assert images.read(np.int64(3)) == EncodedImage(1, (folder / "anna/2.JPEG").read_bytes())
    assert images.where(3) == f"{folder}/anna/2.JPEG: record 3"
    for record_id in (-1, 5):
        with pytest.raises(IndexError, match=rf"must be in \[0, 5\), got {record_id}"):
            images.read(record_id)
        with pytest.raises(IndexError, match=r"must be in \[0, 5\)"):
            images.read_plain(np.array([0, record_id]))


def test_many_are_read_as_each_alone_and_what_is_no_jpeg_is_left_to_read(folder: Path):
    (folder / "anna/2.JPEG").write_bytes(b"\x89PNG in disguise")
    images = ImageFolder(folder)
    ids = np.array([4, 0, 2, 3, 0, 1])
    labels, bodies = images.read_plain(ids)
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 0, 1, 1, 0, 1]
    for record_id, found in zip(ids.tolist(), bodies, strict=True):
        assert (found is None) == (record_id in (2, 3))
        assert found is None or found.tobytes() == images.read(record_id).body
    assert images.read(3).body == b"\x89PNG in disguise"
    assert images.read_plain(np.array([], np.int64))[1] == []


def test_everything_else_is_refused_together_and_by_name(folder: Path):
    (folder / "readme.txt").write_text("hello")
    (folder / "train.rec").write_bytes(b"")
    (folder / "empty").mkdir()
    (folder / "litter").mkdir()
    (folder / "litter/Thumbs.db").write_bytes(b"")
    (folder / "anna/notes.txt").write_text("hello")
    (folder / "anna/deeper").mkdir()
    (folder / "anna/gone.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "anna/pipe.jpg")
    (folder / "circle").symlink_to("circle")
    with pytest.raises(ImageFolderError, match="9 problems") as caught:
        len(ImageFolder(folder))
    text = str(caught.value)
    for line in (
        f"{folder}/readme.txt is no folder of an identity",
        f"{folder}/train.rec is of a record file",
        f"{folder}/anna/notes.txt is no image by its suffix",
        f"{folder}/anna/deeper is a folder within an identity",
        f"{folder}/anna/gone.jpg is a link to nothing",
        f"{folder}/anna/pipe.jpg is no regular file",
        f"{folder}/circle cannot be looked at",
        f"{folder}/empty holds no image",
        "and 1 more",
        "adadistill data convert",
    ):
        assert line in text


def test_a_folder_without_identities_is_refused(tmp_path: Path):
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(ImageFolderError, match="holds no identities"):
        len(ImageFolder(tmp_path))


def test_links_out_of_the_folder_are_followed_where_that_is_asked_for(folder: Path, tmp_path: Path):
    subset = tmp_path / "subset"
    subset.mkdir()
    (subset / "anna").symlink_to(folder / "anna")
    (subset / "Bert").mkdir()
    (subset / "Bert" / "x.jpg").symlink_to(folder / "Bert/x.JpG")
    (subset / "Bert" / "y.jpg").symlink_to("x.jpg")
    with pytest.raises(ImageFolderError, match="3 problems") as caught:
        len(ImageFolder(subset))
    for name in ("Bert/x.jpg", "Bert/y.jpg", "anna"):
        assert f"{subset}/{name} is a link out of the folder; data.links=anywhere" in str(caught.value)
    images = ImageFolder(subset, links="anywhere")
    assert images.identity_names == ["Bert", "anna"]
    assert images.read(0).body == (folder / "Bert/x.JpG").read_bytes()
    assert len(images) == 5


def test_links_that_stay_in_the_folder_are_followed(folder: Path, tmp_path: Path):
    wanted = ImageFolder(folder)
    (folder / "Bert" / "y.jpg").symlink_to("../anna/1.jpg")
    (folder / "celia").symlink_to("Bert")
    (tmp_path / "here").symlink_to(folder)
    images = ImageFolder(tmp_path / "here")
    assert images.identity_names == ["Bert", "anna", "celia", "ädna"]
    assert images.read(1).body == wanted.read(1).body


def test_another_number_of_identities_than_the_recipe_s_is_refused(folder: Path):
    assert ImageFolder(folder, num_classes=3).num_classes == 3
    for wanted in (2, 4):
        with pytest.raises(ImageFolderError, match=rf"holds 3 identities.*data\.num_classes says {wanted}"):
            len(ImageFolder(folder, num_classes=wanted))


def test_a_path_is_opened_as_what_it_is(folder: Path, tmp_path: Path):
    assert isinstance(open_images(folder), ImageFolder)
    with pytest.raises(FileNotFoundError, match=r"no record file and no folder at .*nowhere; check .* `data\.records`"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        ImageFolder(folder / "anna/1.jpg")
    with pytest.raises(FileNotFoundError, match="no index at"):
        ImageFolder(folder, tmp_path / "no.index")


def test_a_file_that_changed_is_a_damaged_record_named_by_its_path(folder: Path):
    (folder / "anna/2.JPEG").write_bytes(b"")
    (folder / "ädna/y.jpeg").write_bytes(body(1, 4000))
    images = ImageFolder(folder, limits=ImageLimits(max_bytes=1024))
    assert len(images) == 5
    (folder / "Bert/x.JpG").unlink()
    (folder / "anna/1.jpg").write_bytes(body(9, 99))
    (folder / "anna/10.png").unlink()
    os.mkfifo(folder / "anna/10.png")  # reading it must not wait for a writer
    for record_id, reason in enumerate((
        "cannot be read: No such file", "has 103 bytes, and had 24", "no regular", "it is empty",
        r"4004 bytes, data\.max_image_bytes allows 1024",
    )):  # fmt: skip
        with pytest.raises(ImageFileError, match=reason) as caught:
            images.read(record_id)
        assert isinstance(caught.value, RecordError)
        assert caught.value.record_id == record_id
        assert str(caught.value).startswith(f"{images.path_of(record_id)}: record {record_id}: ")
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (str(copy), copy.path) == (str(caught.value), caught.value.path)
    assert images.read_plain(np.arange(5))[1] == [None] * 5


def test_no_files_left_to_open_is_no_damage_and_none_stay_open(folder: Path):
    images = ImageFolder(folder)
    images.read_plain(np.arange(5))
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    images.read_plain(np.repeat(np.arange(5), 200))
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) < before + 100  # other threads may open a few
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    sockets: list[socket.socket] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 256), limits[1]))
        with contextlib.suppress(OSError):
            while True:
                sockets.append(socket.socket())
        with pytest.raises(OSError, match="Too many open files") as caught:
            images.read(0)
        assert caught.value.errno == errno.EMFILE
    finally:
        for one in sockets:
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert images.read(0).body


def test_the_fingerprint_is_of_names_and_sizes_alone(folder: Path, tmp_path: Path):
    wanted = ImageFolder(folder).fingerprint()
    copy = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert ImageFolder(copy).fingerprint() == wanted
    (copy / "anna/1.jpg").write_bytes(body(77))  # as long as it was: not seen
    assert ImageFolder(copy).fingerprint() == wanted
    (copy / "anna/1.jpg").write_bytes(body(77, 21))
    assert ImageFolder(copy).fingerprint() != wanted
    seen = {wanted}
    for source, target in (("anna/1.jpg", "Bert/1.jpg"), ("anna/1.jpg", "anna/0.jpg"), ("ädna", "zoe")):
        moved = Path(shutil.copytree(folder, tmp_path / f"moved-{len(seen)}"))
        (moved / source).rename(moved / target)
        seen.add(ImageFolder(moved).fingerprint())
    assert len(seen) == 4


def test_a_pickled_and_a_forked_copy_read_on(folder: Path):
    images = ImageFolder(folder)
    images.read_plain(np.arange(5))  # has threads by now, which neither copy has
    copy = pickle.loads(pickle.dumps(images))
    assert copy.read(1) == images.read(1)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if images.read_plain(np.arange(5))[0].tolist() == [0, 1, 1, 1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not set(name) & {0, ord("/")} and not is_litter(os.fsdecode(name))
)


@settings(max_examples=15)
@given(st.dictionaries(NAMES, st.sets(NAMES, min_size=1, max_size=3), min_size=1, max_size=4))
def test_odd_names_keep_their_bytes_and_their_order(names: dict[bytes, set[bytes]]):
    """Any encoding, or none: what the file system takes comes back, and every message about it can be printed."""
    with tempfile.TemporaryDirectory() as root:
        wanted = []
        for label, identity in enumerate(sorted(names)):
            os.mkdir(os.path.join(os.fsencode(root), identity))
            for number, name in enumerate(sorted(name + b".jpg" for name in names[identity])):
                path = os.path.join(os.fsencode(root), identity, name)
                with open(path, "wb") as file:
                    file.write(body(number, label + 1))
                wanted.append((os.fsdecode(path), label, body(number, label + 1)))
        images = ImageFolder(root)
        found = [(str(images.path_of(i)), images.read(i).label, images.read(i).body) for i in range(len(images))]
        assert found == wanted
        assert [os.fsencode(name) for name in images.identity_names] == sorted(names)
        for record_id in range(len(images)):
            text = images.where(record_id)
            assert text.isprintable()
            text.encode("utf-8")
