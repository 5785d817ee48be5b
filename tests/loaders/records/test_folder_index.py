"""A folder's index spares its listing while it holds, is never trusted when it does not, and keeps checksums."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from adadistill.loaders.dataset_tools.record_check import check_images
from adadistill.loaders.folders import ImageFolderError
from adadistill.loaders.records import folder_index
from adadistill.loaders.records.folder_index import (
    FolderIndexError,
    folder_index_path,
    read_folder_index,
    write_folder_index,
)
from adadistill.loaders.records.image_folder import ImageChecksumError, ImageFolder
from adadistill.loaders.records.record_seal import SealError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of three identities; nothing in it was changed just now."""
    folder = tmp_path / "faces"
    for number in range(6):
        path = folder / f"id{number // 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\xff\xd8\xff\xe0" + bytes([number]) * (20 + number))
    for path in (folder, *folder.iterdir()):
        os.utime(path, ns=(10**18, 10**18))
    return folder


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were listed, in order."""
    listed: list[Path] = []
    original = folder_index.list_folder
    monkeypatch.setattr(folder_index, "list_folder", lambda path, links: listed.append(path) or original(path, links))
    return listed


def content(images: ImageFolder) -> list[tuple[str, int, bytes]]:
    return [(str(images.path_of(i)), images.read(i).label, images.read(i).body) for i in range(len(images))]


@pytest.mark.parametrize("checksums", [False, True])
def test_an_index_gives_what_listing_gives_without_listing(folder: Path, listings: list[Path], checksums: bool):
    wanted, fingerprint = content(ImageFolder(folder)), ImageFolder(folder).fingerprint()
    path = write_folder_index(folder, checksums=checksums)
    assert path == folder_index_path(folder) == folder.with_name("faces.images.index")
    assert sorted(child.name for child in folder.iterdir()) == ["id0", "id1", "id2"]  # nothing was written into it
    listings.clear()
    images = ImageFolder(folder)
    assert content(images) == wanted
    assert images.fingerprint() == fingerprint
    assert images.sealed == checksums
    assert listings == []


def test_an_index_may_lie_elsewhere_but_not_in_its_folder(folder: Path, tmp_path: Path, listings: list[Path]):
    write_folder_index(folder, tmp_path / "mine.bin")
    listings.clear()
    assert len(ImageFolder(folder, tmp_path / "mine.bin")) == 6
    assert listings == []
    with pytest.raises(ValueError, match="lies in the folder that it lists"):
        write_folder_index(folder, folder / "id0" / "here.index")


def test_the_index_of_the_working_directory_lies_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    assert write_folder_index(".") == folder.with_name("faces.images.index")
    assert folder_index_path(Path("/")) == Path("/.images.index")


def test_an_index_lets_no_link_lead_out(folder: Path, tmp_path: Path):
    (tmp_path / "secret.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / "id0" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    write_folder_index(folder, checksums=True)
    with pytest.raises(ImageFolderError, match=r"id0/link\.jpg is a link out of the folder"):
        len(ImageFolder(folder))
    assert len(ImageFolder(folder, links="anywhere")) == 7


@pytest.mark.parametrize("change", ["renamed", "identity added", "identity removed"])
def test_a_changed_folder_is_listed_again(folder: Path, caplog: pytest.LogCaptureFixture, change: str):
    write_folder_index(folder)
    if change == "renamed":
        (folder / "id1" / "2.jpg").rename(folder / "id1" / "9.jpg")
    elif change == "identity added":
        shutil.copytree(folder / "id1", folder / "id4")
    else:
        shutil.rmtree(folder / "id1")
    found = ImageFolder(folder)
    assert content(found) == content(ImageFolder(folder, list_anew=True, seal="ignore"))
    assert "is stale: the folder was changed" in caplog.text


def test_checksums_go_with_a_copy(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Whose times are others: it is listed, and its bytes are compared all the same."""
    write_folder_index(folder, checksums=True)
    copy = tmp_path / "copy"
    for path in sorted(folder.rglob("*.jpg")):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.parent.name / path.name).write_bytes(path.read_bytes())
    shutil.copy(folder_index_path(folder), folder_index_path(copy))
    (copy / "id1" / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"x" * 23)  # as long as it was
    images = ImageFolder(copy, seal="require")
    assert images.sealed
    assert images.fingerprint() == ImageFolder(folder).fingerprint()
    assert "holds other times than its folders have" in caplog.text
    with pytest.raises(ImageChecksumError, match=r"27 bytes have crc32 .* were sealed") as caught:
        images.read(3)
    assert caught.value.path == copy / "id1" / "3.jpg"
    assert [found is None for found in images.read_plain(np.arange(6))[1]] == [number == 3 for number in range(6)]
    assert ImageFolder(copy, seal="ignore").read(3).body.endswith(b"x")


def test_checksums_of_other_files_are_refused(folder: Path):
    write_folder_index(folder, checksums=True)
    (folder / "id1" / "new.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SealError, match=r"made for 6 images of 3 identities.*holds 7 of 3.*--reseal"):
        len(ImageFolder(folder))
    assert len(ImageFolder(folder, seal="ignore")) == 7


def test_a_seal_that_is_required_must_be_there(folder: Path):
    with pytest.raises(SealError, match=r"is not there, and the images must be sealed.*data check --seal"):
        len(ImageFolder(folder, seal="require"))
    write_folder_index(folder)
    with pytest.raises(SealError, match="holds no checksums"):
        len(ImageFolder(folder, seal="require"))
    write_folder_index(folder, checksums=True)
    assert ImageFolder(folder, seal="require").sealed


def test_every_flipped_bit_of_an_index_is_found(folder: Path):
    path = write_folder_index(folder, checksums=True)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in [*range(0, 48, 4), *random.integers(48, len(whole), 20).tolist()]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << random.integers(8)]) + whole[place + 1 :])
        with pytest.raises(FolderIndexError, match="is damaged"):
            len(ImageFolder(folder))


def test_an_index_of_another_size_is_refused_and_counts_beyond_it_cost_nothing(folder: Path):
    path = write_folder_index(folder)
    whole = path.read_bytes()
    claims = struct.pack("<8sQQQQQ", b"ADFOLDR1", 2**60, 2**61, 2**62, 2**63, 1)
    for body in (b"", whole[:7], whole[:48], whole[:100], whole + b"\0", claims + bytes(100)):
        path.write_bytes(body)
        with pytest.raises(FolderIndexError, match="is damaged"):
            read_folder_index(path)


# Names out of the folder, hidden ones, empty ones; counts that do not sum up, or do so only by wrapping round.
@pytest.mark.parametrize(
    ("identities", "names", "counts"),
    [
        (b"..\0", b"a.jpg\0", [1]),
        (b"a\0", b"../b.jpg\0", [1]),
        (b"a\0", b".b.jpg\0", [1]),
        (b"a\0", b"\0", [1]),
        (b"a\0b\0", b"a.jpg\0b.jpg\0", [2, 0]),
        (b"a\0b\0", b"a.jpg\0b.jpg\0", [1, 2]),
        (b"a\0b\0", b"a.jpg\0b.jpg\0", [2**64 - 1, 3]),
    ],
)
def test_an_index_that_was_made_to_mislead_is_refused(
    tmp_path: Path, identities: bytes, names: bytes, counts: list[int]
):
    images = sum(counts) % 2**64
    text = struct.pack("<8sQQQQQ", b"ADFOLDR1", len(counts), images, len(identities), len(names), 0)
    text += struct.pack(f"<{len(counts) + 1}q{len(counts)}Q{images}Q", *[0] * (len(counts) + 1), *counts, *[9] * images)
    text += identities + names
    (tmp_path / "x").write_bytes(text + zlib.crc32(text).to_bytes(4, "little"))
    with pytest.raises(FolderIndexError, match="is damaged"):
        read_folder_index(tmp_path / "x")


def test_verification_finds_what_an_index_alone_would_not(folder: Path):
    """It lists the folder whatever the index says of it."""
    write_folder_index(folder, checksums=True)
    (folder / "id1" / "2.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SealError, match="or of other names or sizes"):
        check_images(folder)
    (folder / "id1" / "2.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"x" * 22)
    found = check_images(folder)
    assert [bad.kind for bad in found.bad if bad.record_id == 2] == ["ImageChecksumError"]
    assert (found.records, found.sealed, found.bytes) == (6, True, sum(24 + number for number in range(6)))
