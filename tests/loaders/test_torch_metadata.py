"""metadata.pt files: what torch.save wrote comes back, and nothing that they ask for runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_cache import run_in_child

from adadistill.loaders.torch_metadata import TorchMetadataError, read_torch_metadata

CONTENT: dict[str, Any] = {
    "templates": np.arange(7),
    "scores": np.linspace(0, 1, 7),
    "half": np.linspace(0, 1, 7, dtype=np.float32),
    "names": np.array(["a.jpg", "bb.jpg"]),
    "matrix": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "paths": ["x/1.jpg", "y/2.jpg"],
    "count": np.int64(3),
    "share": np.float64(0.25),
    "ratio": 0.5,
}


def test_arrays_lists_and_numbers_come_back_as_torch_saved_them(tmp_path: Path):
    torch.save(CONTENT, tmp_path / "metadata.pt")
    found = read_torch_metadata(tmp_path / "metadata.pt")
    assert found.keys() == CONTENT.keys()
    for name, value in CONTENT.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value)
    assert np.asarray(found["half"]).dtype == np.float32


class _Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": _Attack()}, r"names the global 'posix\.system'"),
        ({"a": np.array([_Attack()], dtype=object)}, "array of Python objects"),
        ({"a": torch.zeros(3)}, "opcode BINPERSID"),
        ({"a": np.zeros(2, dtype=[("x", "i4")])}, "numpy dtype"),
        ([1, 2], "not a dictionary"),
        ({1: 2}, "not a dictionary by names"),
    ],
)
def test_anything_else_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, said: str):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "metadata.pt")
    with pytest.raises(TorchMetadataError, match=said):
        read_torch_metadata(tmp_path / "metadata.pt")
    assert not (tmp_path / "attacked").exists()


def test_a_file_cut_short_and_one_that_is_no_archive_are_named(tmp_path: Path):
    path = tmp_path / "metadata.pt"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(TorchMetadataError, match="cut short"):
            read_torch_metadata(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_torch_metadata(path)


def test_a_compressed_pickle_is_not_unpacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "metadata.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(TorchMetadataError, match="compressed"):
        read_torch_metadata(tmp_path / "metadata.pt")


def _saved(path: Path, pickled: bytes, name: str = "archive/data.pkl") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickled)
    return path


def _read_expecting_refusal(path: Path) -> None:
    with pytest.raises(TorchMetadataError, match="a key at offset"):
        read_torch_metadata(path)


def test_a_key_nested_a_million_deep_is_refused_and_not_hashed(tmp_path: Path):
    """Hashing it overflows the stack of the process, hence the child."""
    path = _saved(tmp_path / "metadata.pt", b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.")
    assert run_in_child(lambda: _read_expecting_refusal(path)) == 0


def test_a_member_name_that_is_no_text_is_a_named_error(tmp_path: Path):
    path = _saved(tmp_path / "metadata.pt", pickle.dumps({"a": [1]}), "archivé/data.pkl")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(TorchMetadataError, match=r"metadata\.pt: is no archive"):
        read_torch_metadata(path)
