"""Archives are read where they are as torch.save writes them; what unpacks, overlaps or lists too much is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from adadistill.loaders.stored_archive import ArchiveError, pickle_in_archive


def read(path: Path, max_members: int = 100) -> bytes:
    return pickle_in_archive(path, max_members=max_members, max_bytes=1 << 20)


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return path


def test_the_pickle_of_what_torch_saved_is_found(tmp_path: Path):
    torch.save({f"layer{index}": torch.zeros(3) for index in range(40)}, tmp_path / "a.pth")
    assert read(tmp_path / "a.pth")[-1:] == b"."


def test_compressed_members_are_refused_whichever_they_are(tmp_path: Path):
    path = write(tmp_path / "a.pth", {"a/data.pkl": b"N.", "a/data/0": b"x" * 100_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArchiveError, match="is compressed"):
        read(path)


def test_one_place_under_two_names_is_refused(tmp_path: Path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/data/0", b"x" * 1000)
        twin = zipfile.ZipInfo("a/data/1")
        first = archive.getinfo("a/data/0")
        twin.header_offset, twin.file_size, twin.compress_size, twin.CRC = first.header_offset, 1000, 1000, first.CRC
        archive.filelist.append(twin)
    (tmp_path / "a.pth").write_bytes(out.getvalue())
    with pytest.raises(ArchiveError, match="one after the other"):
        read(tmp_path / "a.pth")


def test_something_before_the_archive_is_refused(tmp_path: Path):
    """Readers disagree on where such an archive begins, and what was checked must be what is read."""
    path = write(tmp_path / "a.pth", {"a/data.pkl": b"N."})
    path.write_bytes(b"PK\x03\x04" + bytes(60) + path.read_bytes())
    with pytest.raises(ArchiveError, match="one after the other"):
        read(path)


def test_a_directory_beyond_any_network_is_refused_before_it_is_read(tmp_path: Path):
    path = write(tmp_path / "a.pth", {"a/data.pkl": b"N.", **{f"a/data/{index:060}": b"" for index in range(50_000)}})
    with pytest.raises(ArchiveError, match="a list of members of"):
        read(path)


def test_too_many_members_and_no_pickle_and_two_are_refused(tmp_path: Path):
    many = write(tmp_path / "many.pth", {"a/data.pkl": b"N.", **{f"a/data/{index}": b"" for index in range(200)}})
    with pytest.raises(ArchiveError, match="201 members"):
        read(many)
    for names in ([], ["a/data.pkl", "b/data.pkl"]):
        with pytest.raises(ArchiveError, match=r"without one data\.pkl"):
            read(write(tmp_path / "other.pth", {"x": b"", **dict.fromkeys(names, b"N.")}))


def test_a_large_pickle_is_refused(tmp_path: Path):
    with pytest.raises(ArchiveError, match="more than"):
        read(write(tmp_path / "a.pth", {"a/data.pkl": bytes((1 << 20) + 1)}))
