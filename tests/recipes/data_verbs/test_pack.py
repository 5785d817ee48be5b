"""`adadistill data pack` from the command line: its words, its exit codes, and what a kill leaves behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from rank_processes import run_ranks
from small_cache import contents
from small_pack import COUNT, SIDE, jpeg, small_bodies, write_records
from tests_support import ROOT

from adadistill.loaders.block_store.packed_images import PackedStore
from adadistill.loaders.block_store.writer import BlockProgress
from adadistill.recipes.data_verbs import pack as data_pack

START = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import tests_support
tests_support.make_importable()
from adadistill.recipes.data_verbs import pack as data_pack
sys.exit(data_pack.run())
"""


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), small_bodies())


def run(path: Path, folder: Path, *options: str) -> int:
    return data_pack.run([str(path), str(folder), "--image-size", str(SIDE), "--shard-records", "5", *options])


def test_a_store_is_packed_verified_and_described(path, tmp_path, capsys):
    assert run(path, tmp_path / "store", "--layout", "rgb", "--verify") == 0
    said = capsys.readouterr().out
    store = PackedStore(tmp_path / "store")
    assert f"finished: {tmp_path / 'store'}  {COUNT} images as rgb, 0.000 GB, digest {store.digest()}" in said
    assert f"{COUNT} images by this process" in said
    assert "all checksums are right: 5 blocks" in said
    assert run(path, tmp_path / "store") == 0
    assert "this process found its part complete" in capsys.readouterr().out


def test_damaged_records_are_a_failure_unless_they_are_skipped(tmp_path, capsys):
    path = write_records(tmp_path / "records", [*small_bodies(3), jpeg(3)[:-300]])
    assert run(path, tmp_path / "store", "--layout", "rgb") == 1
    assert "record 3 (key 4)" in capsys.readouterr().err
    assert run(path, tmp_path / "store", "--layout", "rgb", "--on-damaged", "skip") == 0
    assert "1 damaged records are stored in grey with label -1" in capsys.readouterr().out
    assert PackedStore(tmp_path / "store").labels.tolist() == [0, 1, 2, -1]


def test_images_of_another_size_are_resized_where_told(tmp_path, capsys):
    path = write_records(tmp_path / "records", [*small_bodies(3), jpeg(3, 48)])
    assert run(path, tmp_path / "store") == 1
    assert "the image is 48 x 48 pixels" in capsys.readouterr().err
    assert run(path, tmp_path / "store", "--wrong-size", "resize") == 0
    assert "4 images as rgb" in capsys.readouterr().out
    assert run(path, tmp_path / "other", "--wrong-size", "resize", "--max-image-side", "40") == 1
    assert "claims 48 x 48 pixels, max_image_side allows 40" in capsys.readouterr().err
    assert run(path, tmp_path / "other", "--max-image-side", "0") == 2


def test_a_store_that_broke_after_packing_is_a_failure(path, tmp_path, capsys, monkeypatch):
    assert run(path, tmp_path / "store", "--layout", "rgb") == 0
    real = data_pack.pack_records

    def breaking(*arguments: object, **options: object) -> object:
        result = real(*arguments, **options)
        with (tmp_path / "store" / "shard-00001.npy").open("r+b") as file:
            file.seek(200)
            file.write(b"\xaa\x55")
        return result

    monkeypatch.setattr(data_pack, "pack_records", breaking)
    assert run(path, tmp_path / "store", "--verify") == 1
    assert "block 1 (records [5, 10))" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--workers", "0"], "workers must be in"),
        (["--shard-records", "4"], "shard_records: 5 stored, 4 wanted"),
        (["--index", "none.idx"], "no index at none.idx"),
        (["--num-classes", "0"], "num_classes must be in"),
    ],
)
def test_mistakes_are_told_from_failures(path, tmp_path, capsys, options, reason):
    assert run(path, tmp_path / "store", "--layout", "rgb") == 0
    assert run(path, tmp_path / "store", *options) == 2
    assert reason in capsys.readouterr().err
    assert run(tmp_path / "none.rec", tmp_path / "new") == 2
    assert not (tmp_path / "new").exists()


def test_a_launch_that_does_not_fit_is_a_mistake(path, tmp_path, capsys, monkeypatch):
    for rank, world_size in (("2", "2"), ("0", "x")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world_size)
        assert run(path, tmp_path / "store") == 2
        assert "launch with torchrun" in capsys.readouterr().err


@pytest.fixture(scope="module")
def undisturbed(path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores") / "undisturbed"
    assert run(path, folder, "--layout", "rgb") == 0
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_between_blocks_and_the_same_command_goes_on(
    path, tmp_path, undisturbed, monkeypatch, number, code
):
    def asked_once(self: object, progress: BlockProgress) -> None:  # a second signal would end pytest
        if progress.blocks == 1:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(data_pack.BlockReport, "__call__", asked_once)
        assert run(path, tmp_path / "store", "--layout", "rgb", "--workers", "1") == code
    assert run(path, tmp_path / "store", "--layout", "rgb") == 0
    assert contents(tmp_path / "store") == contents(undisturbed)


def test_two_ranks_pack_one_store(path, tmp_path, undisturbed):
    arguments = [str(path), str(tmp_path / "store"), "--image-size", str(SIDE), "--shard-records", "5"]
    said = run_ranks(["-c", START, *arguments, "--layout", "rgb", "--verify"], 2)
    assert any("finished" in text and "all checksums are right" in text for text in said)
    assert contents(tmp_path / "store") == contents(undisturbed)
