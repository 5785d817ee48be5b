"""Pickles and archives of strangers: plain values come back, nothing runs or exhausts memory, time or stack."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_cache import run_in_child

from adadistill.loaders import safe_pickle
from adadistill.loaders.safe_pickle import (
    PickleDamagedError,
    PickleRefusedError,
    TorchMetadataError,
    load_plain_pickle,
    pickle_in_archive,
    read_torch_metadata,
    refuse_exhausting_pickles,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
CONTENT: dict[str, Any] = {
    "templates": np.arange(7),
    "half": np.linspace(0, 1, 7, dtype=np.float32),
    "names": np.array(["a.jpg", "bb.jpg"]),
    "matrix": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "paths": ["x/1.jpg", "y/2.jpg"],
    "count": np.int64(3),
    "share": np.float64(0.25),
    "ratio": 0.5,
}


# --- dictionaries ----------------------------------------------------------------------------------------------------


def test_what_pickle_wrote_comes_back():
    for protocol in PROTOCOLS[1:]:
        for content in (
            {"a": {"b": {"c": []}}, "d": {}},
            [{"same": "same"}] * 3,
            {f"key{index}": [index, (1, "ä"), None, True, -2.5, 1 << 70] for index in range(300)},
            {3: "a", -7: 2.5, 1 << 20: []},
        ):
            assert load_plain_pickle(pickle.dumps(content, protocol), metadata=True) == content


@pytest.mark.parametrize("key", [(1, 2), ((("a",),),), None, True, 1.5, 1 << 80, np.float64(2.0)])
def test_other_keys_are_refused_wherever_they_stand(key: Any):
    for protocol in PROTOCOLS:
        for content in ({key: 1}, {"a": 1, key: 2}, {"a": [{"b": {key: 3}}]}, [{"x": 1}, {key: key}]):
            with pytest.raises(PickleRefusedError):
                load_plain_pickle(pickle.dumps(content, protocol), metadata=True)


def test_a_key_that_went_through_the_memo_is_followed():
    assert load_plain_pickle(b"\x80\x02X\x01\x00\x00\x00aq\x00}h\x00K\x01s.", metadata=True) == {"a": 1}
    with pytest.raises(PickleRefusedError, match="a key at offset"):
        load_plain_pickle(b"\x80\x02)q\x00}h\x00K\x01s.", metadata=True)


def test_taking_what_is_not_there_is_damage():
    bodies = [b"s", b"}s", b"u", b"a", b"\x85", b"R", b"h\x00", b"\x94", b"d", b"", b"(\x85", b"NNa", b"](Nu"]
    for body in bodies:
        with pytest.raises((PickleDamagedError, PickleRefusedError)):
            load_plain_pickle(b"\x80\x02" + body + b".", metadata=True)


# --- archives --------------------------------------------------------------------------------------------------------


def _read(path: Path, max_members: int = 100) -> bytes:
    return pickle_in_archive(path, max_members=max_members, max_bytes=1 << 20)


def _write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return path


@pytest.mark.parametrize(
    ("members", "compression", "said"),
    [
        ({"a/data.pkl": b"N.", "a/data/0": b"x" * 100_000}, zipfile.ZIP_DEFLATED, "is compressed"),
        ({"x": b""}, zipfile.ZIP_STORED, r"without one data\.pkl"),
        ({"x": b"", "a/data.pkl": b"N.", "b/data.pkl": b"N."}, zipfile.ZIP_STORED, r"without one data\.pkl"),
        ({"a/data.pkl": b"N.", **{f"a/data/{i}": b"" for i in range(200)}}, zipfile.ZIP_STORED, "201 members"),
        ({"a/data.pkl": b"N.", **{f"{i:060000}": b"" for i in range(70)}}, zipfile.ZIP_STORED, "a list of members of"),
        ({"a/data.pkl": bytes((1 << 20) + 1)}, zipfile.ZIP_STORED, "more than"),
    ],
    ids=["compressed", "no pickle", "two pickles", "members", "directory", "large pickle"],
)
def test_what_torch_does_not_write_is_refused(tmp_path: Path, members: dict, compression: int, said: str):
    with pytest.raises(PickleDamagedError, match=said):
        _read(_write(tmp_path / "a.pth", members, compression))


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
    with pytest.raises(PickleDamagedError, match="one after the other"):
        _read(tmp_path / "a.pth")


def test_something_before_the_archive_is_refused(tmp_path: Path):
    """Readers disagree on where such an archive begins, and what was checked must be what is read."""
    path = _write(tmp_path / "a.pth", {"a/data.pkl": b"N."})
    path.write_bytes(b"PK\x03\x04" + bytes(60) + path.read_bytes())
    with pytest.raises(PickleDamagedError, match="one after the other"):
        _read(path)


# --- metadata.pt -----------------------------------------------------------------------------------------------------


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
        ({"a": torch.zeros(3)}, "names the global"),
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


def test_a_file_cut_short_and_one_that_is_not_there_are_named(tmp_path: Path):
    path = tmp_path / "metadata.pt"
    torch.save(CONTENT, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 397):
        path.write_bytes(whole[:size])
        with pytest.raises(TorchMetadataError, match="cut short"):
            read_torch_metadata(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_torch_metadata(path)


def test_a_key_nested_very_deep_is_refused_and_not_hashed(tmp_path: Path):
    """Hashing it overflows the stack of the process, hence the child."""
    path = _write(tmp_path / "metadata.pt", {"archive/data.pkl": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."})

    def read() -> None:
        with pytest.raises(TorchMetadataError, match="a key at offset"):
            read_torch_metadata(path)

    assert run_in_child(read) == 0


def test_a_member_name_that_is_no_text_is_a_named_error(tmp_path: Path):
    path = _write(tmp_path / "metadata.pt", {"archivé/data.pkl": pickle.dumps({"a": [1]})})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(TorchMetadataError, match=r"metadata\.pt: is no archive"):
        read_torch_metadata(path)


# --- before torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pickled", "said"),
    [
        (b"})" + b"\x85" * 100_000 + b"Ns.", "nests tuples"),  # hashed, a million overflow the stack of the process
        (b"}(J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86N" * 2 + b"u.", "neither text nor a number"),
        (b"c__builtin__\nset\nq\x00.", "asks for __builtin__.set"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", r"asks for builtins\.bytearray"),  # 2 GiB in 20 bytes
        (
            b"c_codecs\nencode\nq\x00X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"q\x01]("
            + b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 20_000 + b"e.",
            "encodes long texts again and again",
        ),
        (b"]" * 3001 + b".", "more than 3,000 opcodes"),
    ],
    ids=["deep key", "one hash", "set", "bytearray", "encode", "opcodes"],
)  # fmt: skip
def test_pickles_that_exhaust_torchs_unpickler_are_refused(pickled: bytes, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 3000 if "opcodes" in said else safe_pickle.MAX_OPCODES)
    for zipped in (True, False):
        with pytest.raises(PickleRefusedError, match=said):
            refuse_exhausting_pickles(b"\x80\x02" + pickled, zipped=zipped)


def test_state_dicts_pass_whatever_torch_wrote_them_with(tmp_path: Path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimiser = torch.optim.SGD(network.parameters(), momentum=0.9)
    training = {"state_dict": network.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3, "lr": 0.1}
    for zipped in (True, False):
        torch.save(training, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        data = _read(tmp_path / "w.pth") if zipped else (tmp_path / "w.pth").read_bytes()
        refuse_exhausting_pickles(data, zipped=zipped)
