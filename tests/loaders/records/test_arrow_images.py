"""Folders saved by Hugging Face datasets: every row in order, and broken or hostile folders refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="pyarrow (extra arrow) is not installed")

from arrow_folders import write_arrow_folder  # noqa: E402

from adadistill.loaders.records.arrow_images import ArrowImagesError, is_arrow_folder, open_arrow_images  # noqa: E402

BODIES = [bytes([number]) * (number + 1) for number in range(11)]


@pytest.mark.parametrize(("files", "struct"), [(1, True), (3, False)])
def test_rows_come_in_order_whatever_batches_and_files_they_lie_in(tmp_path: Path, files: int, struct: bool):
    columns = {
        "image": BODIES,
        "index": [*range(5, 11), *range(5)],
        "is_same": [number % 2 == 0 for number in range(11)],
        "path": [f"{number}.jpg" for number in range(11)],
    }
    folder = write_arrow_folder(tmp_path / "set", columns, files=files, struct=struct)
    images = open_arrow_images(folder, columns=("index", "is_same", "path"))
    assert is_arrow_folder(folder)
    assert len(images) == 11
    assert list(images.bodies(0, 11)) == BODIES
    assert list(images.bodies(2, 9)) == BODIES[2:9]
    assert list(images.bodies(4, 4)) == []
    assert images.index is not None
    assert images.index.tolist() == columns["index"]
    assert images.is_same is not None
    assert images.is_same.tolist() == columns["is_same"]
    assert images.paths == tuple(columns["path"])


def test_the_hash_is_of_the_contents(tmp_path: Path):
    one = write_arrow_folder(tmp_path / "a", {"image": BODIES, "index": range(11)})
    same = write_arrow_folder(tmp_path / "b", {"image": BODIES, "index": range(11)})
    other = write_arrow_folder(tmp_path / "c", {"image": BODIES[::-1], "index": range(11)})
    sums = [open_arrow_images(folder).sha256() for folder in (one, same, other)]
    assert sums[0] == sums[1] != sums[2]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": BODIES}, "no column index"),
        ({"image": BODIES, "index": [*range(10), 11]}, "does not number its 11 rows"),
        ({"image": BODIES, "index": [*range(10), None]}, "empty cells"),
        ({"image": BODIES, "index": ["a"] * 11}, "column index is string"),
        ({"image": [], "index": np.zeros(0, np.int64)}, "holds no rows"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, columns: dict[str, list[object]], said: str):
    with pytest.raises(ArrowImagesError, match=said):
        open_arrow_images(write_arrow_folder(tmp_path, columns))


def test_an_image_without_bytes_is_named_by_row(tmp_path: Path):
    images = open_arrow_images(write_arrow_folder(tmp_path, {"image": [*BODIES[:4], None], "index": range(5)}))
    with pytest.raises(ArrowImagesError, match="row 4: holds no bytes"):
        list(images.bodies(0, 5))


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path):
    folder = write_arrow_folder(tmp_path, {"image": BODIES, "index": range(11)})
    path = next(folder.glob("*.arrow"))
    whole = path.read_bytes()
    for size in range(0, len(whole), 67):
        path.write_bytes(whole[:size])
        with pytest.raises(ArrowImagesError, match="cut short"):
            open_arrow_images(folder)


def test_changed_bytes_are_refused_or_read_but_never_crash(tmp_path: Path):
    folder = write_arrow_folder(tmp_path, {"image": BODIES, "index": range(11)})
    path = next(folder.glob("*.arrow"))
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(80):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole) - 8, 4):
            damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            list(open_arrow_images(folder).bodies(0, 11))
        except ArrowImagesError:
            refused += 1
    assert refused > 0


def test_compressed_batches_are_refused_because_their_size_is_not_bounded_by_the_file(tmp_path: Path):
    folder = write_arrow_folder(tmp_path, {"image": BODIES, "index": range(11)})
    table = pa.table({"image": [b"\0" * 100_000] * 11, "index": range(11)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(next(folder.glob("*.arrow"))), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    with pytest.raises(ArrowImagesError, match="compressed"):
        open_arrow_images(folder)


def test_files_outside_the_folder_are_not_opened(tmp_path: Path):
    folder = write_arrow_folder(tmp_path, {"image": BODIES, "index": range(11)})
    for name in ("../other.arrow", "/etc/passwd", "..", ""):
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(ArrowImagesError, match="no file of this folder"):
            open_arrow_images(folder)


def test_missing_parts_are_named(tmp_path: Path):
    folder = write_arrow_folder(tmp_path / "set", {"image": BODIES, "index": range(11)})
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        open_arrow_images(tmp_path / "none")
    next(folder.glob("*.arrow")).unlink()
    with pytest.raises(FileNotFoundError, match=r"which .* lists, is missing"):
        open_arrow_images(folder)
    (folder / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"state\.json is missing"):
        open_arrow_images(folder)
