"""Stored rows are those of the right record and view, or the file is refused at the door."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adadistill.core.teachers import RecordTeacher, StoredEmbeddings, TeacherError

CPU = torch.device("cpu")


def _store(path: Path, rows: np.ndarray, **changes: object) -> StoredEmbeddings:
    np.save(path, rows)
    settings = {"num_records": len(rows), "embedding_dim": rows.shape[2], "mirrors": True, "device": CPU, **changes}
    return StoredEmbeddings(path, **settings)  # type: ignore[arg-type]


def test_stored_rows_are_those_of_the_record_and_the_view(tmp_path: Path):
    rows = np.random.RandomState(0).normal(size=(20, 2, 8)).astype(np.float16)
    teacher = _store(tmp_path / "rows.npy", rows)
    ids, mirrored = np.array([7, 0, 19, 7]), np.array([False, True, True, True])

    found = teacher.rows(ids, mirrored)

    wanted = torch.from_numpy(rows[ids, mirrored.astype(int)]).float()
    assert isinstance(teacher, RecordTeacher)
    assert found.dtype == torch.float32
    assert torch.allclose(found, wanted / wanted.norm(dim=1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (np.ones((4, 2, 8)), {"num_records": 5}, "4 records, the training file has 5"),
        (np.ones((4, 2, 8)), {"embedding_dim": 16}, "student.embedding_dim=8"),
        (np.ones((4, 1, 8)), {}, "mirror_probability"),
        (np.zeros((4, 2, 8)), {}, "record 0, view 0, has norm 0"),
        (np.full((4, 2, 8), np.nan), {}, "has norm nan"),
        (np.ones((4, 2, 8), dtype=np.int32), {}, "floating point"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path: Path, rows: np.ndarray, changes: dict, message: str):
    with pytest.raises(TeacherError, match=message):
        _store(tmp_path / "rows.npy", rows, **changes)


def test_one_view_is_enough_where_nothing_is_mirrored(tmp_path: Path):
    teacher = _store(tmp_path / "rows.npy", np.ones((4, 1, 8)), mirrors=False)
    assert teacher.rows(np.array([2]), np.array([False])).shape == (1, 8)


def test_a_file_that_is_no_array_is_refused_and_a_pickled_one_not_executed(tmp_path: Path):
    path = tmp_path / "rows.npy"
    np.save(path, np.array([object()], dtype=object), allow_pickle=True)
    for content in (path.read_bytes(), b"", b"not numpy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"):
        path.write_bytes(content)
        with pytest.raises(TeacherError, match=r"not an \.npy file"):
            StoredEmbeddings(path, num_records=1, embedding_dim=8, mirrors=False, device=CPU)
