"""A run computes the same numbers whatever its images come from, and a damaged record costs it one sample a step."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from rank_processes import run_ranks
from tiny_training import PlainStudent, logged, tiny_recipe

from adadistill.core.distributed import Ranks
from adadistill.core.teachers import record_binding
from adadistill.core.training.run import run_training
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.pixels import ImageDecodeError
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.record_seal import ChecksumError, SealError, write_seal
from adadistill.loaders.records.recordio import RecordFile, RecordWriter

WORKER = Path(__file__).parent.parent / "distributed_worker.py"
SHORT = {"optim__epochs": 1, "optim__milestones": "[]", "log__every": 1, "precision": "float64"}


@pytest.fixture(scope="module")
def packed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed store of the tiny records in three shards."""
    folder = tmp_path_factory.mktemp("packed") / "rgb"
    records = ImageRecords(data / "train.rec")
    pack_records(records, folder, binding=record_binding(records), layout="rgb", image_size=32, shard_records=20)
    return folder


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in logged(run)]


def _train(data: Path, run: Path, *, resume: str = "none", **overrides: object) -> list[float]:
    recipe = tiny_recipe(data, **{**SHORT, **overrides})
    run_training(recipe, run, ranks=Ranks(), student=PlainStudent(), resume=resume)
    return _losses(run)


@pytest.mark.parametrize("augment", ["none", "adaface"])
def test_a_packed_store_trains_as_its_records_do_wherever_it_lives(
    data: Path, packed: Path, tmp_path: Path, augment: str
):
    teacher = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
    shown = {"augment__policy": augment, **teacher}
    wanted = _train(data, tmp_path / "decoded", **shown)
    for place in ("page_cache", "device", *(["device_share"] if augment == "none" else [])):
        stored = {"data__packed": packed, "data__packed_in": place}
        assert _train(data, tmp_path / place, **stored, **shown) == wanted, "one rank exchanges nothing"


def test_two_ranks_that_share_a_store_train_as_one_that_decodes(data: Path, packed: Path, tmp_path: Path):
    """What one rank needs lies on both: every step exchanges rows."""
    plans = []
    for place in ("device_share", "page_cache"):
        (tmp_path / place).mkdir()
        overrides = {**SHORT, "data__packed": str(packed), "data__packed_in": place}
        plans.append({"out": str(tmp_path / place), "run": str(tmp_path / place / "run"), "data": str(data),
                      "overrides": overrides, "student": "plain"})  # fmt: skip
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    run_ranks([str(WORKER), str(tmp_path / "plans.json")], 2)
    wanted = _train(data, tmp_path / "one")
    assert len(wanted) == 6
    assert _losses(tmp_path / "device_share" / "run") == pytest.approx(wanted, rel=1e-6)
    assert _losses(tmp_path / "device_share" / "run") == _losses(tmp_path / "page_cache" / "run")


def test_a_damaged_record_stops_a_run_which_goes_on_where_the_recipe_skips_it(data: Path, tmp_path: Path):
    records = ImageRecords(data / "train.rec")
    with RecordWriter(tmp_path / "train.rec") as writer:
        for record_id in range(len(records)):
            encoded = records.read(record_id)
            body = encoded.body[:300] if record_id in (5, 40) else encoded.body
            writer.write(record_id, body, labels=float(encoded.label))
    for name in ("teacher.npy", "property"):
        shutil.copy(data / name, tmp_path)
    every_step = {"checkpoint__every_steps": 1, "checkpoint__keep": 50}
    with pytest.raises(ImageDecodeError, match=r"record (5|40) "):
        _train(tmp_path, tmp_path / "run", **every_step)
    done = len(_losses(tmp_path / "run"))
    losses = _train(tmp_path, tmp_path / "run", resume="auto", **every_step, data__on_damaged="skip")
    assert len(losses) >= 6 > done
    assert np.isfinite(losses).all()
    assert logged(tmp_path / "run")[-1]["damaged_records"] == 2


def test_a_run_reads_sealed_records_and_starts_without_a_seal_only_where_none_is_required(data: Path, tmp_path: Path):
    for file in data.iterdir():
        shutil.copy(file, tmp_path)
    with pytest.raises(SealError, match="adadistill data check --seal"):
        _train(tmp_path, tmp_path / "unsealed", data__seal="require")
    records = tmp_path / "train.rec"
    index = ImageRecords(records).index
    write_seal(RecordFile(records), index)
    assert len(_train(tmp_path, tmp_path / "sealed", data__seal="require")) == 6
    with records.open("r+b") as file:  # one bit, deep in an image
        file.seek(int(index.limits[7]) - 20)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(ChecksumError, match="record 7 "):
        _train(tmp_path, tmp_path / "flipped")
    assert len(_train(tmp_path, tmp_path / "ignored", data__seal="ignore")) == 6
