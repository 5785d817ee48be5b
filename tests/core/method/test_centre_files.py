"""Class centres in and out of files: what is read, what is refused, and that a written file is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

import adadistill.core.method.class_centres as class_centres
from adadistill.core.checkpoints import CheckpointWriter, Snapshot
from adadistill.core.method.centre_files import (
    CentresFileError,
    StoredCentres,
    read_adaface_head,
    read_centres,
    stored_centres,
    write_centres,
)

RECORDS = "ab" * 32


def centres(count: int = 5, dim: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def write_checkpoint(folder: Path, *, world_size: int = 1, records: object = RECORDS, **arrays: Tensor) -> Path:
    """A checkpoint with these row-sharded arrays, written by so many ranks."""
    writers = [
        CheckpointWriter(folder / "checkpoints", keep=1, rank=rank, world_size=world_size, run_token="t")
        for rank in range(world_size)
    ]
    for writer in writers:
        writer.save(7, Snapshot(model={"w": torch.ones(1)}, row_sharded=arrays, state={"records": records}))
    for writer in writers:
        writer.close()
    return folder / "checkpoints" / "step-00000007"


# Checkpoints


# Fewer rows than ranks, one rank, uneven shares.
@pytest.mark.parametrize(("count", "world_size"), [(2, 3), (5, 1), (7, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_checkpoint_gives_the_rows_of_all_its_ranks(tmp_path: Path, count: int, world_size: int, dtype: torch.dtype):
    rows = centres(count, dtype=dtype)
    checkpoint = write_checkpoint(tmp_path / "teacher", world_size=world_size, class_centres=rows)

    for path in (tmp_path / "teacher", checkpoint):
        read = read_centres(path)
        assert torch.equal(read.rows, rows)
        assert read.records == RECORDS
        assert read.sha256 == stored_centres(rows, "these").sha256
    assert read_centres(tmp_path / "teacher").name == "teacher, step 7"


def test_only_the_rows_of_a_checkpoint_are_read(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "run", class_centres=centres())
    for name in ("model.safetensors", "optimiser.safetensors"):
        (checkpoint / name).write_bytes(b"not looked at")
    assert torch.equal(read_centres(checkpoint).rows, centres())


def test_a_flipped_bit_of_a_checkpoint_s_rows_is_found(tmp_path: Path):
    shard = write_checkpoint(tmp_path / "run", class_centres=centres()) / "class_centres-00-of-01.safetensors"
    body = bytearray(shard.read_bytes())
    body[-3] ^= 1
    shard.write_bytes(body)
    with pytest.raises(CentresFileError, match=r"class_centres-00-of-01\.safetensors has sha256"):
        read_centres(shard.parent)


def _file(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(b"x")
    return folder / name


@pytest.mark.parametrize(
    ("path_in", "message"),
    [
        (lambda folder: write_checkpoint(folder, other=centres()), r"a run whose centres\.kind is trainable or"),
        (lambda folder: folder, "is no checkpoint and holds no valid one"),
        (lambda folder: write_checkpoint(folder, class_centres=torch.ones(4)), "of two dimensions"),
        (lambda folder: write_checkpoint(folder, records="mine", class_centres=centres()),
         "fingerprint of its records must be 64 hex digits, got 'mine'"),
        (lambda folder: folder / "none.npy", r"none\.npy: no such file or run folder"),
        (lambda folder: _file(folder, "a.ckpt"), r"that command also makes one from AdaFace's \.ckpt"),
    ],
)  # fmt: skip
def test_what_holds_no_centres_is_refused(tmp_path: Path, path_in: Callable[[Path], Path], message: str):
    with pytest.raises(CentresFileError, match=message):
        read_centres(path_in(tmp_path))


# Files of our own


def test_what_was_written_is_read_back_bit_for_bit_with_what_it_says_of_itself(tmp_path: Path):
    stored = stored_centres(centres(), "teacher, step 7", RECORDS)
    write_centres(tmp_path / "deep" / "c.safetensors", stored)

    read = read_centres(tmp_path / "deep" / "c.safetensors")
    assert torch.equal(read.rows, centres())
    assert (read.records, read.sha256, read.name) == (RECORDS, stored.sha256, "c.safetensors")
    with safe_open(tmp_path / "deep" / "c.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("class_centres"), centres())
        assert file.metadata() == {
            "format": "adadistill-centres", "version": "1", "num_classes": "5", "embedding_dim": "8",
            "source": "teacher, step 7", "sha256": stored.sha256, "records": RECORDS,
        }  # fmt: skip
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c.safetensors"]


def test_a_file_may_be_unbound_from_its_records(tmp_path: Path):
    write_centres(tmp_path / "c.safetensors", stored_centres(centres(), "t", RECORDS), keep_records=False)
    assert read_centres(tmp_path / "c.safetensors").records is None


def test_an_npy_file_of_ours_is_an_ordinary_one(tmp_path: Path):
    write_centres(tmp_path / "c.npy", stored_centres(centres(), "t", RECORDS), file_format="npy")
    loaded = np.load(tmp_path / "c.npy", allow_pickle=False)
    assert loaded.dtype == np.float32
    assert np.array_equal(loaded, centres().numpy())
    assert read_centres(tmp_path / "c.npy").records is None


def test_pieces_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stored = stored_centres(centres(7), "t", RECORDS)
    write_centres(tmp_path / "whole.safetensors", stored)
    monkeypatch.setattr(class_centres, "_PIECE_ROWS", 3)
    assert stored_centres(centres(7), "t", RECORDS).sha256 == stored.sha256
    write_centres(tmp_path / "pieces.safetensors", stored)
    assert (tmp_path / "pieces.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_float64_centres_are_written_as_float32_and_what_that_cannot_hold_leaves_no_file(tmp_path: Path):
    rows = centres(dtype=torch.float64)
    write_centres(tmp_path / "c.safetensors", stored_centres(rows, "t"))
    assert torch.equal(read_centres(tmp_path / "c.safetensors").rows, rows.float())
    rows[3] *= 1e60
    with pytest.raises(CentresFileError, match="t, in float32: the centre of class 3 has norm inf"):
        write_centres(tmp_path / "d.safetensors", stored_centres(rows, "t"))
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_nothing_is_overwritten(tmp_path: Path):
    (tmp_path / "c.safetensors").write_text("mine")
    with pytest.raises(FileExistsError, match=r"c\.safetensors exists already"):
        write_centres(tmp_path / "c.safetensors", stored_centres(centres(), "t"))
    assert (tmp_path / "c.safetensors").read_text() == "mine"


def test_a_write_that_fails_halfway_leaves_nothing_and_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("adadistill.core.method.centre_files.os.fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*c\.safetensors'"):
        write_centres(tmp_path / "c.safetensors", stored_centres(centres(), "t"))
    assert not list(tmp_path.iterdir())


def test_a_link_to_a_file_is_followed(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    write_centres(tmp_path / "disk" / "c.safetensors", stored_centres(centres(), "t"))
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "disk" / "c.safetensors")
    assert torch.equal(read_centres(tmp_path / "link.safetensors").rows, centres())


def _with_header(change: Callable[[dict], None]) -> Callable[[bytes], bytes]:
    def changed(body: bytes) -> bytes:
        length = int.from_bytes(body[:8], "little")
        header = json.loads(body[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + body[8 + length :]

    return changed


def _flip(position: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:position] + bytes([body[position] ^ 1]) + body[position:][1:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda body: body[:-1], "tensors end at byte"),
        (lambda body: b"", "too short"),
        (lambda body: (1 << 60).to_bytes(8, "little") + body[8:], "claims a header"),
        (_flip(-5), "is damaged: its rows have sha256"),
        (_with_header(lambda header: header["__metadata__"].update(sha256="0" * 64)), "is damaged"),
        (_with_header(lambda header: header["__metadata__"].pop("sha256")), "None expected"),
        (_with_header(lambda header: header["__metadata__"].pop("format")), "was not made by `adadistill centres"),
        (_with_header(lambda header: header["__metadata__"].update(version="2")), "of this release"),
        (_with_header(lambda header: header["__metadata__"].update(records="x")), "fingerprint of its records"),
        (_with_header(lambda header: header["class_centres"].update(dtype="I32")), "must be float32, got torch.int32"),
        (_with_header(lambda header: header["class_centres"].update(shape=[40])), "of two dimensions"),
        (_with_header(lambda header: header.update(w=header.pop("class_centres"))), r"found \['w'\]"),
    ],
)
def test_a_damaged_or_foreign_safetensors_file_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
):
    path = tmp_path / "c.safetensors"
    write_centres(path, stored_centres(centres(), "t", RECORDS))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CentresFileError, match=message) as caught:
        read_centres(path)
    assert str(path) in str(caught.value)


# .npy files of others


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_floating_npy_file_is_read(tmp_path: Path, dtype: str, order: str):
    rows = centres().half().numpy().astype(dtype, order=order)
    np.save(tmp_path / "c.npy", rows)
    read = read_centres(tmp_path / "c.npy")
    assert read.rows.dtype == (torch.float64 if dtype[1:] == "f8" else torch.float32)
    assert torch.equal(read.rows.float(), centres().half().float())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3, 4), np.float32), r"must hold \(C, D\) floating point centres, found \(2, 3, 4\)"),
        (np.ones((2, 3), np.int64), "found .* int64"),
        (np.ones((2, 3), np.longdouble), "found .* float128"),
        (np.ones((0, 3), np.float32), "not an .npy file|must hold"),
        (np.array([["a"]], dtype=object), "not an .npy file of class centres"),
        (np.zeros(3, dtype=[("a", "f4")]), "not an .npy file of class centres"),
    ],
)
def test_an_npy_file_of_something_else_is_refused(tmp_path: Path, array: np.ndarray, message: str):
    np.save(tmp_path / "c.npy", array, allow_pickle=True)
    with pytest.raises(CentresFileError, match=message):
        read_centres(tmp_path / "c.npy")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_npy_headers_end_in_our_error_or_in_finite_rows(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "c.npy"
    np.save(path, centres(2, 3).numpy())
    body = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(body[: data.draw(st.sampled_from([len(body), 140, 100, 9]))]))
    try:
        read = read_centres(path)
    except CentresFileError:
        return
    assert torch.isfinite(read.rows).all()


# AdaFace


def test_the_columns_of_adaface_s_head_become_rows(tmp_path: Path):
    kernel = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    torch.save({"state_dict": {"model.conv.weight": torch.ones(2), "head.kernel": kernel}}, tmp_path / "adaface.ckpt")
    read = read_adaface_head(tmp_path / "adaface.ckpt")
    assert torch.equal(read.rows, kernel.T)
    assert (read.name, read.records) == ("adaface.ckpt", None)
    write_centres(tmp_path / "c.safetensors", read)
    assert torch.equal(read_centres(tmp_path / "c.safetensors").rows, kernel.T)


def test_a_checkpoint_without_adaface_s_head_is_refused(tmp_path: Path):
    torch.save({"model.w": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CentresFileError, match=r"a\.pth holds no `head\.kernel`"):
        read_adaface_head(tmp_path / "a.pth")
    torch.save({"head.kernel": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CentresFileError, match=r"must be \(D, C\) floating point, got \(2,\)"):
        read_adaface_head(tmp_path / "a.pth")


# Rows


@pytest.mark.parametrize(
    ("value", "norm"), [(0.0, "0"), (float("nan"), "nan"), (float("inf"), "inf"), (1e-20, ".*e-20"), (1e30, "inf")]
)
def test_a_row_without_direction_is_named(value: float, norm: str):
    rows = centres()
    rows[3] = value
    with pytest.raises(CentresFileError, match=f"t: the centre of class 3 has norm {norm} and no direction"):
        stored_centres(rows, "t")


def test_the_class_is_counted_over_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(class_centres, "_PIECE_ROWS", 2)
    rows = centres(7)
    rows[5] = 0.0
    with pytest.raises(CentresFileError, match="the centre of class 5 has norm 0 "):
        stored_centres(rows, "t")


def test_stored_centres_are_of_two_wide_dimensions():
    for rows in (torch.ones(3), torch.ones(2, 2).half(), torch.ones(2, 0)):
        with pytest.raises(CentresFileError, match=r"must hold \(C, D\) float32 or float64 centres"):
            stored_centres(rows, "t")
    assert isinstance(stored_centres(torch.ones(2, 2), "t"), StoredCentres)
