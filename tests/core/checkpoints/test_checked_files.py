"""Streamed files with sha256: bits survive, the library reads them, damage and hostile headers are refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from adadistill.core.checkpoints import checked_files
from adadistill.core.checkpoints.checked_files import (
    CheckedFileError,
    FileRecord,
    check_file,
    read_bytes,
    read_rows,
    read_tensors,
)


def one_of_each_dtype() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for dtype in sorted(checked_files.STORABLE_DTYPES, key=str):
        values = torch.randint(0, 2, (3, 5), generator=generator)
        tensors[str(dtype)] = values.to(dtype)
    return tensors | {"scalar": torch.tensor(-0.0), "empty": torch.empty(0, 4), "long": torch.randn(1000)}


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4096, 1 << 24])
def test_tensors_survive_bit_for_bit_in_pieces_of_any_size(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(checked_files, "_CHUNK_BYTES", chunk_bytes)
    tensors = one_of_each_dtype()

    record = checked_files.write_tensors(tmp_path / "t.safetensors", tensors, {"key": "value"})
    loaded, metadata = read_tensors(tmp_path, record)

    assert metadata == {"key": "value"}
    assert_same_bits(loaded, tensors)
    assert record.sha256 == hashlib.sha256((tmp_path / "t.safetensors").read_bytes()).hexdigest()


def test_the_safetensors_library_reads_what_is_written_and_the_other_way_round(tmp_path):
    tensors = one_of_each_dtype()
    checked_files.write_tensors(tmp_path / "ours.safetensors", tensors, {})
    assert_same_bits(safetensors.torch.load_file(tmp_path / "ours.safetensors"), tensors)

    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    loaded, _ = read_tensors(tmp_path, record_of(tmp_path / "theirs.safetensors"))
    assert_same_bits(loaded, tensors)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 24])
def test_some_rows_are_read_alone_and_the_whole_file_is_checked(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(checked_files, "_CHUNK_BYTES", chunk_bytes)
    wide, rows = torch.randn(3, dtype=torch.float64), torch.randn(9, 5)
    record = checked_files.write_tensors(tmp_path / "t.safetensors", {"a": wide, "rows": rows, "z": wide.half()}, {})
    for first, end in [(0, 9), (0, 0), (2, 3), (4, 9), (9, 9)]:
        into = torch.empty(end - first, 5)
        read_rows(tmp_path, record, "rows", first, into)
        assert torch.equal(into, rows[first:end])
    for into, first in [(torch.empty(2, 5), 8), (torch.empty(2, 4), 0), (torch.empty(2, 5).half(), 0)]:
        with pytest.raises(CheckedFileError, match=f"t.safetensors holds no rows {first} to {first + 2} of `rows`"):
            read_rows(tmp_path, record, "rows", first, into)
    with pytest.raises(CheckedFileError, match="of `none`"):
        read_rows(tmp_path, record, "none", 0, torch.empty(0, 5))

    body = bytearray((tmp_path / "t.safetensors").read_bytes())
    body[-1] ^= 1  # past the rows
    (tmp_path / "t.safetensors").write_bytes(body)
    with pytest.raises(CheckedFileError, match="has sha256"):
        read_rows(tmp_path, record, "rows", 0, torch.empty(1, 5))


def test_no_tensors_at_all_make_a_file_too(tmp_path):
    record = checked_files.write_tensors(tmp_path / "none.safetensors", {}, {})
    assert read_tensors(tmp_path, record) == ({}, {})
    assert safetensors.torch.load_file(tmp_path / "none.safetensors") == {}


def test_an_existing_file_is_never_written_over(tmp_path):
    checked_files.write_bytes(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        checked_files.write_bytes(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_links_pipes_and_folders_are_refused_without_opening_them(tmp_path):
    record = checked_files.write_bytes(tmp_path / "real", b"body")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()

    for name, reason in [("link", "symbolic link"), ("pipe", "no regular file"), ("folder", "no regular file")]:
        with pytest.raises(CheckedFileError, match=f"{name} is a?.*{reason}"):
            check_file(tmp_path, FileRecord(name, record.size, record.sha256))


def test_a_small_file_that_claims_to_be_large_is_refused_before_memory_is_taken(tmp_path):
    record = checked_files.write_bytes(tmp_path / "a.json", b"{}")
    with pytest.raises(CheckedFileError, match="2 bytes, 1000 expected"):
        read_bytes(tmp_path, FileRecord("a.json", 1000, record.sha256), max_bytes=10_000)
    with pytest.raises(CheckedFileError, match="more than the 100 allowed"):
        read_bytes(tmp_path, FileRecord("a.json", 1000, record.sha256), max_bytes=100)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ([], "not an object"),
        ({"a": 3}, "must have dtype"),
        ({"a": F32 | {"more": 1}}, "must have dtype"),
        ({"a": F32 | {"dtype": "F33"}}, "dtype 'F33'"),
        ({"a": F32 | {"dtype": ["F32"]}}, "dtype"),
        ({"a": F32 | {"shape": [-2]}}, "no counts"),
        ({"a": F32 | {"shape": [2.0]}}, "no counts"),
        ({"a": F32 | {"shape": [True, 2]}}, "no counts"),
        ({"a": F32 | {"shape": [1 << 61, 1 << 61, 0], "data_offsets": [0, 0]}}, "no memory|end at byte 0"),
        ({"a": F32 | {"shape": [1 << 61]}}, "in 8 bytes"),
        ({"a": F32 | {"data_offsets": [8, 0]}}, "in -8 bytes"),
        ({"a": F32 | {"data_offsets": [8, 16]}}, "begins at byte 8"),
        ({"a": F32, "b": F32}, "`b` begins at byte 0|`a` begins"),
        ({"a": F32 | {"shape": [1], "data_offsets": [0, 4]}}, "end at byte 4"),
        ({"a": F32 | {"shape": [1] * 70, "data_offsets": [0, 4]}}, "70 dimensions"),
        ({"a": F32, "__metadata__": {"k": 1}}, "metadata must be strings"),
    ],
)
def test_malformed_headers_are_refused_with_their_reason(tmp_path, header, reason):
    write_raw(tmp_path / "bad.safetensors", json.dumps(header).encode(), bytes(8))
    with pytest.raises(CheckedFileError, match=reason):
        read_tensors(tmp_path, record_of(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 20_000, b'{"a": 1e', b""])
def test_headers_that_are_no_json_are_refused(tmp_path, text):
    write_raw(tmp_path / "bad.safetensors", text, b"")
    with pytest.raises(CheckedFileError, match="damaged safetensors header"):
        read_tensors(tmp_path, record_of(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize(
    "body", [b"", b"1234567", (1 << 63).to_bytes(8, "little"), (9).to_bytes(8, "little") + bytes(8)]
)
def test_files_shorter_than_their_header_are_refused(tmp_path, body):
    (tmp_path / "bad.safetensors").write_bytes(body)
    with pytest.raises(CheckedFileError, match=r"too short|claims a header"):
        read_tensors(tmp_path, record_of(tmp_path / "bad.safetensors"))


def test_a_header_larger_than_any_network_needs_is_not_parsed(tmp_path):
    # 90 MB of JSON objects take a gigabyte to parse.
    path = tmp_path / "a.safetensors"
    path.write_bytes((17 << 20).to_bytes(8, "little"))
    os.truncate(path, (17 << 20) + 8)
    with pytest.raises(CheckedFileError, match=r"a\.safetensors claims a header of 17825792 bytes"):
        read_tensors(tmp_path, FileRecord(path.name, path.stat().st_size, "0" * 64))


def test_a_zero_sized_tensor_of_absurd_shape_is_a_named_error(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [1 << 61, 1 << 61, 0], "data_offsets": [0, 0]}}
    write_raw(tmp_path / "bad.safetensors", json.dumps(header).encode(), b"")
    with pytest.raises(CheckedFileError, match="no memory"):
        read_tensors(tmp_path, record_of(tmp_path / "bad.safetensors"))


def write_raw(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def record_of(path: Path) -> FileRecord:
    body = path.read_bytes()
    return FileRecord(path.name, len(body), hashlib.sha256(body).hexdigest())


def assert_same_bits(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found[name], tensor)]
        assert torch.equal(*as_bytes), name
