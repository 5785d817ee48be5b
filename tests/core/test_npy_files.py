"""Whatever is in an `.npy` file, opening it gives its numbers or one named error."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

from adadistill.core.npy_files import NpyFileError, open_npy


def test_numbers_are_mapped_read_only(tmp_path: Path):
    rows = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "rows.npy", rows)
    opened = open_npy(tmp_path / "rows.npy")
    np.testing.assert_array_equal(opened, rows)
    assert not opened.flags.writeable


def test_an_absent_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_npy(tmp_path / "nothing.npy")


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_objects_are_refused_and_not_unpickled(tmp_path: Path):
    np.save(tmp_path / "evil.npy", np.array([_Bomb(tmp_path / "canary")], dtype=object), allow_pickle=True)
    with pytest.raises(NpyFileError):
        open_npy(tmp_path / "evil.npy")
    assert not (tmp_path / "canary").exists()


def test_damaged_headers_never_raise_anything_else(tmp_path: Path):
    stream = io.BytesIO()
    np.save(stream, np.ones((4, 2), dtype=np.float32))
    whole = stream.getvalue()
    draw = np.random.RandomState(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole[: draw.randint(1, len(whole) + 1)] if draw.rand() < 0.2 else whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randint(min(len(damaged), 80))] = draw.randint(256)
        (tmp_path / "damaged.npy").write_bytes(bytes(damaged))
        try:
            open_npy(tmp_path / "damaged.npy")
        except NpyFileError:
            refused += 1
    assert refused > 200


def _npy(header: str) -> bytes:
    return b"\x93NUMPY\x02\x00" + len(header.encode()).to_bytes(4, "little") + header.encode() + bytes(8)


@pytest.mark.parametrize(
    "shape",
    [f"({'9' * 3000}, {'9' * 3000})", f"({1 << 40}, {1 << 40})", f"(0, {'9' * 4000})", f"({'1,' * 66})", "(True,)"],
)
def test_shapes_that_no_file_holds_are_refused_in_few_words(tmp_path: Path, shape: str):
    # The bytes that thousands of digits imply have more digits than Python turns into text.
    (tmp_path / "rows.npy").write_bytes(_npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}"))
    with pytest.raises(NpyFileError) as caught:
        open_npy(tmp_path / "rows.npy")
    assert len(str(caught.value)) < 400


def test_an_odd_escape_in_a_header_warns_nobody(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    (tmp_path / "rows.npy").write_bytes(_npy(r"{'descr': '\d', 'fortran_order': False, 'shape': (1,)}"))
    with pytest.raises(NpyFileError, match="damaged header"):
        open_npy(tmp_path / "rows.npy")
    assert not recwarn.list
