"""A cache holds what the teacher says of every record, whoever computed which part of it, however often it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_python import forked_python
from rank_processes import run_ranks
from small_cache import build
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import load_network, save_network
from adadistill.core.distributed import Ranks
from adadistill.core.recipe import Recipe
from adadistill.core.teachers import NetworkTeacher, TeacherError, cache_inputs, network_teacher
from adadistill.core.teachers.cache_build import CacheBuildResult, build_cache
from adadistill.core.teachers.cache_recompute import recompute_rows
from adadistill.core.training.stop_signal import StopRequested, StopSignal
from adadistill.loaders.block_store.errors import StoreError, StoreWriteError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, TeacherCache
from adadistill.loaders.block_store.writer import BlockProgress
from adadistill.loaders.pixels import decode_image, to_network_input
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordError

WORKER = Path(__file__).parent.parent / "cache_build_worker.py"
FILES = ("header.json", "embeddings.bin", "blocks.bin")
NETWORK = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)
RECORDS, BATCH = 48, 7  # six whole blocks and one of six records
BLOCKS = 7
FLOAT16_ULP = 2.0**-11  # of numbers in [0.5, 1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records, two teachers, and the cache of the first, built without interruption."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_records(folder)
    for name, seed in (("teacher", 3), ("other", 4)):
        network = build_backbone(NETWORK, 32, generator=seed)
        _spread_embeddings_(network, _images(folder / "train.rec"))
        save_network(folder / name, network, NETWORK, 32)
    _build(_recipe(folder, folder / "cache"))
    return folder


def _spread_embeddings_(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Give batch norms the statistics of these images; with those of a fresh network all embeddings are nearly one."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    network.eval()


def _images(path: Path) -> torch.Tensor:
    """(N, 3, H, W) float32 network input of all records."""
    records = ImageRecords(path)
    pixels = np.stack([decode_image(records.read(i).body, where=str(i)) for i in range(len(records))])
    return to_network_input(torch.from_numpy(pixels), device=torch.device("cpu"))


def _recipe(data: Path, cache: Path, **overrides: object) -> Recipe:
    teacher = {
        "teacher__embeddings": "null",
        "teacher__checkpoint": data / "teacher",
        "teacher__cache": cache,
        "teacher__check": "false",
    }
    return tiny_recipe(data, **{**teacher, **overrides})


def _build(recipe: Recipe, *, batch_size: int = BATCH, stop: StopSignal | None = None, **more) -> CacheBuildResult:
    device = more.pop("device", "cpu")
    ranks = Ranks(device=torch.device(device))
    return build_cache(recipe, ranks=ranks, stop=stop or StopSignal(), batch_size=batch_size, **more)


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def _slots_done(folder: Path) -> list[bool]:
    body = (folder / "blocks.bin").read_bytes()
    return [any(body[start : start + 16]) for start in range(0, len(body), 16)]


def _stop_after(blocks: int) -> tuple[StopSignal, dict]:
    stop = StopSignal()

    def report(progress: BlockProgress) -> None:
        if progress.blocks == blocks:
            stop.number = signal.SIGTERM

    return stop, {"stop": stop, "report": report}


def test_rows_are_the_networks_own_embeddings_of_plain_and_mirrored_images(data: Path):
    network = load_network(data / "teacher", device=torch.device("cpu")).network.double()
    images = _images(data / "train.rec").double()
    cache = TeacherCache(data / "cache")
    ids = np.arange(RECORDS)
    assert cache.header.views == (PLAIN, MIRRORED)
    with torch.no_grad():
        truth = [torch.nn.functional.normalize(network(view)).numpy() for view in (images, images.flip(3))]
    for column in (0, 1):
        stored = cache.gather(ids, np.full(RECORDS, column))
        assert np.abs(stored - truth[column]).max() < FLOAT16_ULP
    assert np.abs(truth[0] - truth[1]).max(axis=1).min() > 8 * FLOAT16_ULP, (
        "views and records must differ to be told apart"
    )
    assert np.abs(truth[0] - np.roll(truth[0], 1, axis=0)).max(axis=1).min() > 8 * FLOAT16_ULP


def test_the_header_says_whose_embeddings_of_what_and_how_they_were_made(data: Path):
    header = TeacherCache(data / "cache").header
    assert header.teacher["kind"] == "checkpoint"
    assert header.teacher["preprocessing"] == {"color": "rgb", "mean": [0.5] * 3, "std": [0.5] * 3}
    assert header.records["fingerprint"] == ImageRecords(data / "train.rec").fingerprint()
    assert dict(header.built) == {
        "by": "network", "batch_size": BATCH, "compile": False, "decoder": "cpu", "device": "cpu",
        "fold_batch_norm": True, "precision": "float32",
    }  # fmt: skip
    assert str(data) not in (data / "cache" / "header.json").read_text()


def test_a_stopped_build_goes_on_with_what_is_missing_and_ends_with_the_same_bytes(data: Path, tmp_path: Path):
    recipe = _recipe(data, tmp_path / "cache")
    _, stopping = _stop_after(3)
    with pytest.raises(StopRequested) as stopped:
        _build(recipe, **stopping)
    assert stopped.value.exit_code == 143
    assert _slots_done(tmp_path / "cache") == [True] * 3 + [False] * 4

    result = _build(recipe)
    assert result.images == RECORDS - 3 * BATCH, "finished blocks are not computed again"
    assert _bytes(tmp_path / "cache") == _bytes(data / "cache")


def test_a_complete_cache_is_confirmed_without_running_the_network(data: Path, monkeypatch: pytest.MonkeyPatch):
    before = _bytes(data / "cache")
    monkeypatch.setattr(cache_inputs, "in_loop_teacher", None)
    result = _build(_recipe(data, data / "cache"))
    assert (result.images, result.images_per_s) == (0, 0.0)
    assert result.digest == TeacherCache(data / "cache").digest()
    assert _bytes(data / "cache") == before


def test_two_processes_finish_what_one_began_and_leave_the_same_bytes(data: Path, tmp_path: Path):
    overrides = {
        "teacher__embeddings": "null", "teacher__checkpoint": str(data / "teacher"), "teacher__check": "false",
        "teacher__cache": str(tmp_path / "cache"),
    }  # fmt: skip
    _, stopping = _stop_after(2)
    with pytest.raises(StopRequested):
        _build(_recipe(data, tmp_path / "cache"), **stopping)

    plan = {"data": str(data), "overrides": overrides, "batch_size": BATCH}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    printed = run_ranks([str(WORKER), "build", str(tmp_path / "plan.json")], 2)

    assert json.loads(printed[0])["images"] == RECORDS - 2 * BATCH
    assert _bytes(tmp_path / "cache") == _bytes(data / "cache")


@pytest.mark.parametrize(
    ("changed", "batch_size", "views", "named"),
    [
        ({"teacher__checkpoint": "{data}/other"}, BATCH, "both", "teacher.sha256"),
        ({"teacher__color": "bgr"}, BATCH, "both", "teacher.preprocessing.color"),
        ({"precision": "float64"}, BATCH, "both", "built.precision"),
        ({}, BATCH + 1, "both", "block_records"),
        ({}, BATCH, "plain", "views"),
    ],
)
def test_a_build_of_something_else_does_not_touch_the_cache(
    data: Path, changed: dict[str, str], batch_size: int, views: str, named: str
):
    before = _bytes(data / "cache")
    overrides = {key: value.format(data=data) for key, value in changed.items()}
    with pytest.raises(StoreError, match=named):
        _build(_recipe(data, data / "cache", **overrides), batch_size=batch_size, views=views)
    assert _bytes(data / "cache") == before


def test_a_build_of_other_records_does_not_touch_the_cache(data: Path, tmp_path: Path):
    write_tiny_records(tmp_path, identities=5)
    with pytest.raises(StoreError, match=r"records\.fingerprint"):
        _build(_recipe(data, data / "cache", data__records=tmp_path / "train.rec"))


def test_dali_makes_the_same_rows_as_the_cpu_decoder(data: Path, tmp_path: Path):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    _build(_recipe(data, tmp_path / "cache", data__decoder="dali"))
    assert TeacherCache(tmp_path / "cache").header.built["decoder"] == "dali"
    assert (tmp_path / "cache" / "embeddings.bin").read_bytes() == (data / "cache" / "embeddings.bin").read_bytes()


def test_a_cache_of_plain_views_holds_the_first_column(data: Path, tmp_path: Path):
    _build(_recipe(data, tmp_path / "cache"), views="plain")
    ids, plain = np.arange(RECORDS), np.zeros(RECORDS, dtype=np.int64)
    cache = TeacherCache(tmp_path / "cache")
    assert cache.header.views == (PLAIN,)
    assert np.array_equal(cache.gather(ids, plain), TeacherCache(data / "cache").gather(ids, plain))


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
def test_a_damaged_record_is_named_and_earlier_blocks_stay(data: Path, tmp_path: Path, decoder: str):
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    body = bytearray((data / "train.rec").read_bytes())
    offset = int(ImageRecords(data / "train.rec").index.offsets[20])  # in block 2
    begin = body.index(b"\xff\xd8\xff", offset)
    body[begin : begin + 3] = b"\0\0\0"
    (tmp_path / "train.rec").write_bytes(bytes(body))
    (tmp_path / "train.idx").write_bytes((data / "train.idx").read_bytes())
    damaged = {"data__records": tmp_path / "train.rec", "data__num_classes": 6, "data__decoder": decoder}
    with pytest.raises(RecordError, match="record 20 "):
        _build(_recipe(data, tmp_path / "cache", **damaged))
    assert _slots_done(tmp_path / "cache") == [True] * 2 + [False] * 5


def test_an_embedding_without_direction_is_named_and_not_stored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Damaged(NetworkTeacher):
        calls = 0

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            rows = super().embed(images).clone()
            Damaged.calls += 1
            if Damaged.calls == 4:  # the mirrored view of block 1
                rows[2] = 0.0
            return rows

    monkeypatch.setattr(network_teacher, "NetworkTeacher", Damaged)
    where = rf"train\.rec: record {BATCH + 2} \(key \d+\) at byte \d+"  # as every message names a record
    with pytest.raises(StoreWriteError, match=rf"{where}: .* mirrored image is zero\. Look at this image, and at"):
        _build(_recipe(data, tmp_path / "cache"))
    assert not _slots_done(tmp_path / "cache")[1]


def test_a_recipe_without_folder_or_network_and_a_wrong_batch_size_are_refused(data: Path, tmp_path: Path):
    for overrides, message in (
        ({"teacher__cache": "null"}, "set teacher.cache=FOLDER"),
        ({"teacher__checkpoint": "null"}, "names no network"),
        ({"teacher__checkpoint": "null", "teacher__cache": "null", "teacher__embeddings": "x.npy"}, "cache import"),
    ):
        with pytest.raises(TeacherError, match=message):
            _build(_recipe(data, tmp_path / "cache", **overrides))
    with pytest.raises(ValueError, match="batch size must be positive, got 0"):
        _build(_recipe(data, tmp_path / "cache"), batch_size=0)
    assert not (tmp_path / "cache").exists()


def test_recomputing_agrees_with_an_honest_cache_and_finds_one_wrong_row(data: Path, tmp_path: Path):
    honest = TeacherCache(data / "cache")
    recipe = _recipe(data, data / "cache")
    assert recompute_rows(recipe, honest, records=9, ranks=Ranks()).least_cosine > 0.999999

    ids = np.repeat(np.arange(RECORDS), 2)
    rows = honest.gather(ids, np.tile([0, 1], RECORDS)).reshape(RECORDS, 2, 16).copy()
    rows[BATCH + 3, 1] = rows[BATCH, 0]
    build(tmp_path / "forged", honest.header, rows=rows)
    found = recompute_rows(recipe, TeacherCache(tmp_path / "forged"), records=RECORDS, ranks=Ranks())
    assert found.least_cosine < 0.999
    assert (found.records, found.record_id, found.view) == (RECORDS, BATCH + 3, MIRRORED)


@pytest.mark.slow
def test_kills_at_any_moment_cost_nothing_that_was_done_and_no_byte(tmp_path: Path):
    write_tiny_records(tmp_path / "data", identities=6, images=8)
    save_network(tmp_path / "data" / "teacher", build_backbone(NETWORK, 32, generator=3).eval(), NETWORK, 32)
    overrides = {
        "teacher__embeddings": "null", "teacher__checkpoint": str(tmp_path / "data" / "teacher"),
        "teacher__check": "false",
    }  # fmt: skip
    plan = {"data": str(tmp_path / "data"), "folder": str(tmp_path), "overrides": overrides}
    plan |= {"batch_size": 1, "kills": 3}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    command = [forked_python(), str(WORKER), "kills", str(tmp_path / "plan.json")]
    ran = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    assert seen["kills"] >= 2, "builds must still have been running when they were killed"
    assert seen["lost"] == 0, "a block that was done was not done after a kill"
    assert seen["equal"], "files differ from those of a build that was never killed"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_cuda_rows_are_those_of_the_cpu_but_for_rounding(data: Path, tmp_path: Path):
    recipe = _recipe(data, tmp_path / "cache", precision="bfloat16")
    _, stopping = _stop_after(3)
    with pytest.raises(StopRequested):
        _build(recipe, device="cuda", **stopping)
    assert _build(recipe, device="cuda").images == RECORDS - 3 * BATCH
    ids = np.repeat(np.arange(RECORDS), 2)
    columns = np.tile([0, 1], RECORDS)
    found, wanted = (
        TeacherCache(folder).gather(ids, columns).astype(np.float64) for folder in (tmp_path / "cache", data / "cache")
    )
    assert (found * wanted).sum(axis=1).min() > 0.998
