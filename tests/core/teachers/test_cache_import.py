"""Embeddings that somebody computed become a cache where they belong to the records, and are refused elsewhere."""

from __future__ import annotations

import hashlib
import re
import signal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.distributed import Ranks
from adadistill.core.teachers import cache_import
from adadistill.core.teachers.cache_build import CacheBuildResult
from adadistill.core.teachers.cache_import import ImportRefusedError, check_labels, import_embeddings, open_rows
from adadistill.core.training.run import run_training
from adadistill.core.training.stop_signal import StopRequested, StopSignal
from adadistill.loaders.block_store.errors import StoreError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, TeacherCache
from adadistill.loaders.block_store.writer import BlockProgress
from adadistill.loaders.records.image_records import ImageRecords

RECORDS, IDENTITIES, DIM = 48, 24, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_records(folder, identities=IDENTITIES, images=RECORDS // IDENTITIES)
    return folder


def _rows(*, views: int = 2, seed: int = 0) -> npt.NDArray[np.float64]:
    """(N, V, D), not unit: a direction for each identity, a deviation for each image, a smaller one for each view."""
    draw = np.random.RandomState(seed)
    identities = np.repeat(draw.normal(size=(IDENTITIES, DIM)), RECORDS // IDENTITIES, axis=0)
    images = identities + 0.4 * draw.normal(size=(RECORDS, DIM))
    return 7.0 * (images[:, None] + 0.1 * draw.normal(size=(RECORDS, views, DIM)))


def _save(path: Path, rows: npt.NDArray) -> Path:
    np.save(path, rows)
    return path


def _import(source: Path, folder: Path, data: Path, **more) -> CacheBuildResult:
    more.setdefault("stop", StopSignal())
    return import_embeddings(source, folder, records=ImageRecords(data / "train.rec"), **more)


def _refused(message: str, source: Path, folder: Path, data: Path, **more) -> None:
    with pytest.raises(ImportRefusedError, match=message):
        _import(source, folder, data, **more)


def _stored(folder: Path) -> npt.NDArray[np.float16]:
    """(N, V, D)"""
    cache = TeacherCache(folder)
    views = cache.header.num_views
    ids = np.repeat(np.arange(len(cache)), views)
    return cache.gather(ids, np.tile(np.arange(views), len(cache))).reshape(len(cache), views, -1)


@pytest.mark.parametrize(("dtype", "order"), [("<f2", "C"), ("<f8", "F"), (">f4", "C")])
def test_rows_are_normalised_in_float64_and_rounded_once(data: Path, tmp_path: Path, dtype: str, order: str):
    rows = np.array(_rows(), dtype=dtype, order=order)
    result = _import(_save(tmp_path / "rows.npy", rows), tmp_path / "cache", data)

    wide = rows.astype(np.float64)
    wanted = (wide / np.linalg.norm(wide, axis=2, keepdims=True)).astype(np.float16)
    assert np.array_equal(_stored(tmp_path / "cache"), wanted)
    assert result.images == RECORDS
    assert TeacherCache(tmp_path / "cache").header.views == (PLAIN, MIRRORED)


def test_one_view_is_enough_and_a_second_can_be_left_out_but_is_not_made(data: Path, tmp_path: Path):
    for number, (rows, views) in enumerate(((_rows(views=1).reshape(RECORDS, DIM), None), (_rows(), "plain"))):
        _import(_save(tmp_path / "rows.npy", rows), tmp_path / f"{number}", data, views=views)
        assert TeacherCache(tmp_path / f"{number}").header.views == (PLAIN,)
        assert _stored(tmp_path / f"{number}").shape == (RECORDS, 1, DIM)
    source = _save(tmp_path / "rows.npy", _rows(views=1))
    _refused("one view of each record", source, tmp_path / "cache", data, views="both")


def test_the_header_binds_the_records_and_says_where_the_rows_came_from(data: Path, tmp_path: Path):
    source = _save(tmp_path / "rows.npy", _rows().astype(np.float32))
    _import(source, tmp_path / "cache", data, name="somebody's r100", image_size=32)
    header = TeacherCache(tmp_path / "cache").header
    assert dict(header.teacher) == {
        "kind": "imported", "name": "somebody's r100", "arch": None, "preprocessing": None,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(), "embedding_dim": DIM, "image_size": 32,
    }  # fmt: skip
    assert header.records["fingerprint"] == ImageRecords(data / "train.rec").fingerprint()
    assert header.built["by"] == "import"
    assert header.built["dtype"] == "float32"
    assert header.built["label_check"]["pairs"] == IDENTITIES


def test_a_run_trains_from_an_imported_cache_as_from_the_file_itself(data: Path, tmp_path: Path):
    source = data / "teacher.npy"
    _import(source, tmp_path / "cache", data)
    losses = []
    for number, teacher in enumerate(({"teacher__embeddings": source}, {"teacher__cache": tmp_path / "cache"})):
        if "teacher__cache" in teacher:
            teacher["teacher__embeddings"] = "null"
        folder = tmp_path / f"run-{number}"
        run_training(tiny_recipe(data, optim__epochs=1, optim__milestones="[]", **teacher), folder, ranks=Ranks())
        losses.append(re.findall(r'"loss": [0-9.]+', (folder / "metrics.jsonl").read_text()))
    assert len(losses[0]) > 1
    assert losses[0] == losses[1]


def _shuffled(rows: npt.NDArray, seed: int = 1) -> npt.NDArray:
    return rows[np.random.RandomState(seed).permutation(len(rows))]


@pytest.mark.parametrize("order", ["shuffled", "shifted", "strangers"])
def test_rows_in_another_order_or_of_nobody_are_refused_with_both_numbers(data: Path, tmp_path: Path, order: str):
    rows = _rows()
    moved = {
        "shuffled": _shuffled(rows),
        "shifted": np.roll(rows, 1, axis=0),
        "strangers": np.random.RandomState(0).normal(size=(RECORDS, 512)),
    }
    both = r"cosine of -?0\.\d{4}, with shuffled labels it is -?0\.\d{4}.*margin to beat is 0\.1"
    _refused(both, _save(tmp_path / "rows.npy", moved[order]), tmp_path / "cache", data)
    assert not (tmp_path / "cache").exists()


def test_the_margin_is_what_pairs_of_one_identity_must_win_by(data: Path, tmp_path: Path):
    source = _save(tmp_path / "rows.npy", _rows())
    found = check_labels(open_rows(source), ImageRecords(data / "train.rec"), source=source, margin=0.0)
    won_by = found.same - found.shuffled
    assert won_by > 0.5
    check_labels(open_rows(source), ImageRecords(data / "train.rec"), source=source, margin=won_by - 1e-6)
    with pytest.raises(ImportRefusedError, match="do not belong"):
        check_labels(open_rows(source), ImageRecords(data / "train.rec"), source=source, margin=won_by + 1e-6)
    with pytest.raises(ValueError, match=r"in \[0, 2\], got -0.1"):
        _import(source, tmp_path / "cache", data, margin=-0.1)


def test_views_of_different_images_are_refused(data: Path, tmp_path: Path):
    rows = _rows()
    rows[:, 1] = _shuffled(rows[:, 1])
    source, message = _save(tmp_path / "rows.npy", rows), r"two views of .* do not belong to the same images"
    _refused(message, source, tmp_path / "cache", data, label_check=False)


def test_records_without_pairs_are_refused_unless_nobody_asks(tmp_path: Path):
    write_tiny_records(tmp_path, identities=RECORDS, images=1)
    source = _save(tmp_path / "rows.npy", _rows())
    _refused(r"0 identities of two images.*--no-label-check", source, tmp_path / "cache", tmp_path)
    _import(source, tmp_path / "cache", tmp_path, label_check=False)
    assert TeacherCache(tmp_path / "cache").header.built["label_check"] == "left out"


def test_the_first_row_without_a_direction_is_named(data: Path, tmp_path: Path):
    rows = _rows()
    rows[11, 1], rows[30, 0] = np.nan, np.nan
    source, message = _save(tmp_path / "rows.npy", rows), r"record 11 .*view 1: its norm is nan.*there are 2 such rows"
    _refused(message, source, tmp_path / "cache", data)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((RECORDS + 1, 2, DIM)), "holds rows of 49 records, .* has 48 image records"),
        (np.zeros((RECORDS, 2, DIM), np.int64), "holds int64"),
        (np.zeros(RECORDS), r"shape \(48,\)"),
        (np.zeros((RECORDS, 3, DIM)), "holds 3 views"),
        (np.array([{"a": 1}] * RECORDS, dtype=object), "which are no numbers"),
        (np.zeros(RECORDS, dtype=[("a", "f4")]), "no .npy file of embeddings"),
    ],
)
def test_what_cannot_be_embeddings_is_refused(data: Path, tmp_path: Path, rows: npt.NDArray, message: str):
    np.save(tmp_path / "rows.npy", rows, allow_pickle=True)
    _refused(message, tmp_path / "rows.npy", tmp_path / "cache", data)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2, 3)}",  # more than the file holds
        "{'descr': '|O', 'fortran_order': False, 'shape': (4, 2, 1)}",
        "__import__('os').system('touch executed')",
    ],
)
def test_a_damaged_or_hostile_file_is_refused_without_running_any_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
):
    monkeypatch.chdir(tmp_path)
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)
    (tmp_path / "rows.npy").write_bytes(content)
    with pytest.raises(ImportRefusedError, match=r"rows\.npy"):
        open_rows(tmp_path / "rows.npy")
    assert not (tmp_path / "executed").exists()


def test_a_stopped_import_goes_on_and_leaves_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache_import, "_BLOCK_RECORDS", 10)
    source = _save(tmp_path / "rows.npy", _rows())
    _import(source, tmp_path / "whole", data)
    stop = StopSignal()

    def report(progress: BlockProgress) -> None:
        if progress.blocks == 2:
            stop.number = signal.SIGINT

    with pytest.raises(StopRequested) as stopped:
        _import(source, tmp_path / "parts", data, stop=stop, report=report)
    assert stopped.value.exit_code == 130
    assert _import(source, tmp_path / "parts", data).images == 28
    for name in ("header.json", "embeddings.bin", "blocks.bin"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_rows_do_not_go_into_the_same_cache(data: Path, tmp_path: Path):
    _import(_save(tmp_path / "rows.npy", _rows()), tmp_path / "cache", data)
    with pytest.raises(StoreError, match=r"teacher\.sha256"):
        _import(_save(tmp_path / "other.npy", _rows(seed=5)), tmp_path / "cache", data, name="rows.npy")


@pytest.mark.realdata
def test_real_embeddings_are_accepted_and_refused_when_shuffled_or_shifted(data_dir: Path, tmp_path: Path):
    source, faces = data_dir / "faces" / "teacher_embeddings.npy", data_dir / "faces"
    if not source.is_file():
        pytest.skip(f"no stored embeddings at {source}")
    rows = np.load(source)
    result = _import(source, tmp_path / "cache", faces)
    assert result.images == len(ImageRecords(faces / "train.rec")) == len(rows)
    check = result.header.built["label_check"]
    assert check["same"] > check["shuffled"] + 0.3

    for number, moved in enumerate((_shuffled(rows), np.roll(rows, 1, axis=0))):
        with pytest.raises(ImportRefusedError) as refused:
            _import(_save(tmp_path / f"{number}.npy", moved), tmp_path / f"{number}", faces)
        same, shuffled = (float(text) for text in re.findall(r"(-?\d\.\d{4})", str(refused.value))[:2])
        assert abs(same - shuffled) < 0.1
        assert same < check["same"] - 0.3
