"""A run from recipe to checkpoint: it learns, resumes bit for bit, keeps nothing non-finite and stops when asked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import NanImages, logged, newest, tiny_recipe, write_tiny_records

import adadistill.core.checkpoints.attempt as attempt
import adadistill.core.scoring.embedding as evaluation
import adadistill.core.training.run as run
import adadistill.core.training.trainer as training
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import (
    CheckpointError,
    CheckpointWriteError,
    Snapshot,
    load_checkpoint,
)
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.recipe import Recipe
from adadistill.core.seeding import derive_seed
from adadistill.core.teachers import TeacherError
from adadistill.core.teachers.stored_embeddings import StoredEmbeddings
from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.non_finite import CUDA_LAG, LaggedReadback, NonFiniteError
from adadistill.core.training.opening import Opening
from adadistill.core.training.resume_check import ResumeError
from adadistill.core.training.run import run_training
from adadistill.core.training.run_folder import RunFolderError
from adadistill.core.training.stop_signal import StopRequested
from adadistill.core.training.training_step import TrainingStep
from adadistill.kernels import class_products, margin_softmax
from adadistill.loaders.batch import Batch
from adadistill.loaders.pipelines.pipeline import ImagePipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder

RANKS = Ranks()
EPOCH: dict[str, Any] = {"optim__epochs": 1, "optim__milestones": "[]"}
NO_TEACHER = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off"}
ORDER = SampleOrder(48, 8, derive_seed(5, "sample_order"))


def _recipe(data: Path, **changes: object) -> Recipe:
    """Two epochs of 6 steps with dropout and an evaluation after each, every step saved: the run of `whole`."""
    settings = {"checkpoint__every_steps": 1, "checkpoint__keep": 100, "student__dropout": 0.3, "log__every": 1}
    return tiny_recipe(data, **{**settings, "evaluation__sets": f"['{data}/pairs.bin']", **changes})


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped; it is copied where a test changes it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_training(_recipe(data), folder, ranks=RANKS)
    return folder


def _assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = newest(one), newest(other)
    assert (ours.step, ours.state, ours.rank_states) == (theirs.step, theirs.state, theirs.rank_states)
    for part in ("model", "optimiser", "row_sharded"):
        tensors, others = getattr(ours, part), getattr(theirs, part)
        assert tensors.keys() == others.keys()
        assert tensors
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), f"{part} {name}"


def test_a_run_leaves_a_whole_folder_and_learns(data: Path, tmp_path: Path):
    recipe = tiny_recipe(data, optim__epochs=6, optim__milestones="[5]", optim__lr_batch_size=128)
    folder = tmp_path / "run"
    threads = set(threading.enumerate())
    result = run_training(recipe, folder, ranks=RANKS)

    assert set(threading.enumerate()) <= threads, "none outlives the run"
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.resolved.yaml", "environment.json", "metrics.jsonl", "checkpoints", "report"} <= names
    rows = logged(folder, "train")
    assert [row["step"] for row in rows] == [*range(3, 37, 3)]
    assert {
        "loss", "lr", "images_per_s", "wait_share", "centre_momentum", "confidence", "student_teacher_cosine",
        "geometry", "margins_clipped", "gradient_norm", "peak_mib", "eta_s",
    } <= rows[0].keys()  # fmt: skip
    losses = [row["loss"] for row in rows]
    assert sum(losses[-3:]) < sum(losses[:3]) - 10
    assert result.metrics["loss"] == rows[-1]["loss"]
    assert newest(folder).state["position"] == {"epoch": 6, "step": 0, "evaluated": True}
    with pytest.raises(RunFolderError, match="already holds a run"):
        run_training(recipe, folder, ranks=RANKS)


# 6 steps an epoch: mid-epoch, the edge of the epoch, the step before the last.
@pytest.mark.parametrize("step", [2, 6, 11])
def test_a_run_resumed_at_any_step_equals_one_that_never_stopped(data: Path, whole: Path, tmp_path: Path, step: int):
    torch.manual_seed(step)
    start = whole / "checkpoints" / f"step-{step:08d}"
    run_training(_recipe(data), tmp_path / "run", ranks=RANKS, resume=str(start))
    _assert_same_end(tmp_path / "run", whole)


def test_resume_auto_goes_on_where_a_signal_stopped_the_run(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original, steps = training.Trainer._train_step, []

    def interrupted(self: training.Trainer, *arguments: object) -> bool:
        steps.append(self.global_step)
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(training.Trainer, "_train_step", interrupted)
    with pytest.raises(StopRequested) as stopped:
        run_training(_recipe(data), tmp_path / "run", ranks=RANKS, resume="auto")
    assert stopped.value.exit_code == 143
    assert newest(tmp_path / "run").step == 8

    run_training(_recipe(data), tmp_path / "run", ranks=RANKS, resume="auto")
    assert steps[8] == 8
    _assert_same_end(tmp_path / "run", whole)


class _Stuck:
    """A pipeline that hands out three batches, and then waits for images that never come."""

    def __init__(self, pipeline: ImagePipeline) -> None:
        self._pipeline = pipeline
        self.steps_per_epoch, self.damaged, self.close = pipeline.steps_per_epoch, pipeline.damaged, pipeline.close

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        yield from islice(self._pipeline.epoch(epoch, first_step), 3)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(60.0)


def test_a_stop_while_waiting_for_images_saves_the_last_finished_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = run.build_pipeline
    monkeypatch.setattr(run, "build_pipeline", lambda *args, **more: _Stuck(original(*args, **more)))
    with pytest.raises(StopRequested, match="step 3 has been saved"):
        run_training(tiny_recipe(data), tmp_path / "run", ranks=RANKS)
    assert newest(tmp_path / "run").step == 3


@pytest.mark.parametrize("how", ["a stop in it", "a kill before it"])
def test_an_evaluation_that_was_cut_short_is_made_up_for(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
):
    """The position before it has been saved by then, and the resume evaluates first."""
    original = evaluation._embed_range

    def cut_short(*args: Any) -> object:
        if how == "a kill before it":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "_embed_range", cut_short)
        with pytest.raises((StopRequested, KeyboardInterrupt)) as ended:
            run_training(_recipe(data), tmp_path / "run", ranks=RANKS)
    assert how != "a stop in it" or "step 6 has been saved" in str(ended.value)
    assert newest(tmp_path / "run").state["position"] == {"epoch": 1, "step": 0, "evaluated": False}
    run_training(_recipe(data), tmp_path / "run", ranks=RANKS, resume="auto")
    assert [row["epoch"] for row in logged(tmp_path / "run", "evaluation")] == [1, 2]
    _assert_same_end(tmp_path / "run", whole)


def test_a_stop_in_the_first_step_of_a_launch_saves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TrainingStep, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StopRequested):
        run_training(tiny_recipe(data), tmp_path / "run", ranks=RANKS)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_failed_save_ends_the_run_at_once_and_the_resumed_run_s_steps_stand_once(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(path: Path, *_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        original = training.CheckpointWriter.save

        def save(self: training.CheckpointWriter, step: int, snapshot: Snapshot) -> None:
            if step == 8:
                patched.setattr(attempt, "write_tensors", no_space)
            original(self, step, snapshot)
            with contextlib.suppress(Exception):  # the loop is faster than this disk
                if self._in_flight is not None:
                    self._in_flight.result()

        patched.setattr(training.CheckpointWriter, "save", save)
        with pytest.raises(CheckpointWriteError, match=r"step 8 was not written: .*No space left on device"):
            run_training(_recipe(data, checkpoint__every_steps=4), tmp_path / "run", ranks=RANKS)
    assert newest(tmp_path / "run").step == 4
    assert [row["step"] for row in logged(tmp_path / "run", "train")] == list(range(1, 10)), "one step more, no four"
    run_training(_recipe(data), tmp_path / "run", ranks=RANKS, resume="auto")
    _assert_same_end(tmp_path / "run", whole)
    told, wanted = (
        [(row["step"], row["loss"]) for row in read_metrics(folder / "metrics.jsonl") if row["event"] == "train"]
        for folder in (tmp_path / "run", whole)
    )
    assert told == wanted


def test_verification_sets_are_scored_as_often_as_told_and_after_the_last_epoch(data: Path, tmp_path: Path):
    often = {"optim__epochs": 5, "evaluation__every_epochs": 2, "evaluation__batch_size": 7}
    result = run_training(
        tiny_recipe(data, evaluation__sets=f"['{data}/pairs.bin']", **often), tmp_path / "run", ranks=RANKS
    )
    rows = logged(tmp_path / "run", "evaluation")
    assert [(row["epoch"], row["set"], row["pairs"]) for row in rows] == [(n, "pairs", 20) for n in (2, 4, 5)]
    assert result.evaluations["pairs"].details["accuracy"] == rows[-1]["accuracy"]


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def test_a_run_none_of_whose_checkpoints_is_valid_is_not_started_anew(data: Path, copied: Path):
    saved = sorted((copied / "checkpoints").iterdir())
    for path in saved:
        with (path / "model.safetensors").open("ab") as file:
            file.write(b"x")
    with pytest.raises(
        CheckpointError, match=r"(?s)12 checkpoint\(s\) and none is valid.*model.safetensors has .*move"
    ):
        run_training(_recipe(data), copied, ranks=RANKS, resume="auto")
    assert sorted((copied / "checkpoints").iterdir()) == saved


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the looks that take long an opening has come to."""
    seen: list[str] = []
    for look in ("look_at_machine", "look_at_files"):
        plain = getattr(Opening, look)
        monkeypatch.setattr(Opening, look, lambda self, look=look, plain=plain: (seen.append(look), plain(self)))
    return seen


def test_a_resume_with_another_recipe_is_refused_at_the_door_unless_its_differences_are_allowed(
    data: Path, copied: Path, tmp_path: Path, opened: list[str]
):
    longer = _recipe(data, optim__epochs=3)
    one_of_it = str(copied / "checkpoints" / "step-00000002")
    for folder, resume in ((copied, "auto"), (tmp_path / "new", one_of_it), (tmp_path / "new", str(copied))):
        with pytest.raises(
            ResumeError, match=r"step-000000\d\d was saved by another recipe.*\n.*optim\.epochs: 2 != 3"
        ):
            run_training(longer, folder, ranks=RANKS, resume=resume)
    for path, told in ((tmp_path / "nowhere", "does not exist"), (data, "is no checkpoint and holds no valid one")):
        with pytest.raises(CheckpointError, match=told):
            run_training(longer, tmp_path / "new", ranks=RANKS, resume=str(path))
    assert opened == [], "nothing large was opened for it"
    assert not (tmp_path / "new").exists()
    run_training(longer, copied, ranks=RANKS, resume="auto", resume_allow=["optim.epochs"])
    assert newest(copied).step == 18


def test_a_damaged_checkpoint_of_another_recipe_refuses_nothing(data: Path, copied: Path):
    """It is passed over when the run goes on, so it must not be taken for the newest at the door."""
    run_training(_recipe(data, optim__epochs=3), copied, ranks=RANKS, resume="auto", resume_allow=["optim.epochs"])
    for step in range(13, 19):
        model = copied / "checkpoints" / f"step-{step:08d}" / "model.safetensors"
        body = bytearray(model.read_bytes())
        body[-1] ^= 1
        model.write_bytes(body)
    run_training(_recipe(data), copied, ranks=RANKS, resume="auto")


def test_resuming_on_other_records_is_refused(data: Path, copied: Path, tmp_path: Path):
    write_tiny_records(tmp_path / "other", images=9)
    records = {"data__records": tmp_path / "other" / "train.rec", "teacher__embeddings": tmp_path / "other/teacher.npy"}
    with pytest.raises(ResumeError, match="other records"):
        run_training(
            _recipe(data, **records), copied, ranks=RANKS, resume="auto",
            resume_allow=["data.records", "teacher.embeddings"],
        )  # fmt: skip


def _damage(monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int, sample: int) -> None:
    original = run.build_pipeline
    monkeypatch.setattr(run, "build_pipeline", lambda *a, **k: NanImages(original(*a, **k), epoch, step, sample))


@pytest.mark.parametrize("teacher", ["stored", "none"])
def test_a_non_finite_image_stops_the_run_before_the_update_and_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
):
    recipe = tiny_recipe(data, checkpoint__every_steps=1, **({} if teacher == "stored" else NO_TEACHER))
    _damage(monkeypatch, epoch=0, step=2, sample=5)

    with pytest.raises(NonFiniteError) as stopped:
        run_training(recipe, tmp_path / "run", ranks=RANKS)

    culprit = int(ORDER.global_ids(0, 2)[5])
    assert culprit in stopped.value.record_ids
    assert str(culprit) in str(stopped.value)
    dump = json.loads((tmp_path / "run" / "non_finite-step-00000002.json").read_text())
    assert dump["step"] == 2
    assert culprit in dump["record_ids"]
    last = newest(tmp_path / "run")
    assert last.step == 2
    for part in (last.model, last.optimiser, last.row_sharded):
        assert all(torch.isfinite(tensor).all() for tensor in part.values())


def test_skipping_a_non_finite_step_keeps_all_state_and_goes_on_within_its_budget(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    skips = {**EPOCH, "checkpoint__every_steps": 1, "checkpoint__keep": 9, "guard__on_nonfinite": "skip"}
    _damage(monkeypatch, epoch=0, step=3, sample=0)
    run_training(tiny_recipe(data, **skips), tmp_path / "run", ranks=RANKS)

    before, after = (load_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:08d}") for step in (3, 4))
    for part in ("optimiser", "row_sharded", "model"):
        for name, tensor in getattr(before, part).items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, getattr(after, part)[name]), name
    assert newest(tmp_path / "run").step == 6
    with pytest.raises(NonFiniteError):
        run_training(tiny_recipe(data, **skips, guard__max_skips=0), tmp_path / "no budget", ranks=RANKS)


@pytest.mark.parametrize("steps", [(2, 3), (4, 5)], ids=["inside", "at the end"])
def test_each_skipped_step_names_its_own_records_where_the_host_lags(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, int]
):
    """On CUDA the host hears of a step two steps later, when another one may have been skipped."""
    recipe = tiny_recipe(data, **EPOCH, guard__on_nonfinite="skip", teacher__check="false")
    culprits = {step: [int(ORDER.global_ids(0, step)[sample])] for step, sample in zip(steps, (1, 6), strict=True)}
    broken, rows = np.array(list(culprits.values())).flatten(), StoredEmbeddings.rows

    def with_broken_rows(self, record_ids, *others):
        return rows(self, record_ids, *others).masked_fill(
            torch.from_numpy(np.isin(record_ids, broken))[:, None], torch.nan
        )

    monkeypatch.setattr(StoredEmbeddings, "rows", with_broken_rows)
    monkeypatch.setattr(training, "LaggedReadback", lambda device: LaggedReadback(device, lag=CUDA_LAG))
    run_training(recipe, tmp_path / "run", ranks=RANKS)
    assert {row["step"]: row["record_ids"] for row in logged(tmp_path / "run", "non_finite")} == culprits


def test_a_teacher_that_does_not_fit_stops_the_run_at_the_door(data: Path, tmp_path: Path):
    np.save(tmp_path / "short.npy", np.ones((47, 2, 16), dtype=np.float16))
    np.save(tmp_path / "plain.npy", np.ones((48, 1, 16), dtype=np.float16))
    for changes, told in (
        ({"student__embedding_dim": 32}, "16-d embeddings, the student's are 32-d"),
        ({"teacher__embeddings": tmp_path / "short.npy"}, "47 records, the training file has 48"),
        ({"teacher__embeddings": tmp_path / "plain.npy"}, "mirror_probability"),
        ({"teacher__embeddings": tmp_path / "none.npy"}, "no such file"),
    ):
        with pytest.raises(TeacherError, match=told):
            run_training(tiny_recipe(data, **changes), tmp_path / "run", ranks=RANKS)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_ours_teaches_and_another_under_its_path_may_not_go_on(data: Path, tmp_path: Path):
    teacher = {"teacher__embeddings": "null", "teacher__checkpoint": tmp_path / "teacher", "teacher__check": "false"}
    backbone = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)
    for seed in (1, 2):
        save_network(tmp_path / "teacher", build_backbone(backbone, 32, generator=seed), backbone, 32)
        if seed == 1:
            result = run_training(tiny_recipe(data, **EPOCH, **teacher), tmp_path / "run", ranks=RANKS)
            assert -1.0 <= result.metrics["student_teacher_cosine"] <= 1.0
            assert "class_centres" in newest(tmp_path / "run").row_sharded
            shutil.rmtree(tmp_path / "teacher")
    with pytest.raises(ResumeError, match="class centres of two teachers must not mix"):
        run_training(tiny_recipe(data, **EPOCH, **teacher), tmp_path / "run", ranks=RANKS, resume="auto")


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_trained_centres_are_multiplied_as_the_precision_says_and_stay_float32(
    data: Path, placement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The path that CUDA takes under bfloat16 autocast, taken on the CPU; without it every operand is float32."""
    recipe = tiny_recipe(data, **EPOCH, **NO_TEACHER, centres__placement=placement)
    original = class_products.product
    seen: set[torch.dtype] = set()

    def watched(left: torch.Tensor, right: torch.Tensor, accumulate: torch.dtype) -> torch.Tensor:
        seen.update((left.dtype, right.dtype))
        return original(left, right, accumulate)

    for where in (margin_softmax, class_products):
        monkeypatch.setattr(where, "product", watched)
    found = []
    for name, operands in (("exact", None), ("half", torch.bfloat16)):
        monkeypatch.setattr(run, "trained_product_dtype", lambda autocast, device, operands=operands: operands)
        seen.clear()
        run_training(recipe, tmp_path / name, ranks=RANKS)
        assert seen == {operands or torch.float32}
        found.append(newest(tmp_path / name).row_sharded["class_centres"])
    one, other = found
    assert one.dtype == other.dtype == torch.float32
    assert 0.0 < (one - other).abs().max() <= 0.02 * one.abs().max()


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_centres_train_save_and_resume_to_the_same_bits(data: Path, half: str, tmp_path: Path):
    ends = []
    for name, settings in (("half", {"centres__half": half}), ("exact", {})):
        recipe = tiny_recipe(data, checkpoint__every_steps=4, **settings)
        run_training(recipe, tmp_path / name, ranks=RANKS)
        ends.append(newest(tmp_path / name).row_sharded["class_centres"])
        if name == "half":
            start = str(tmp_path / name / "checkpoints" / "step-00000004")
            run_training(recipe, tmp_path / "resumed", ranks=RANKS, resume=start)
            assert torch.equal(newest(tmp_path / "resumed").row_sharded["class_centres"], ends[0])
    assert ends[0].dtype == getattr(torch, half)
    # As far from those of a float32 run as docs/method.md says.
    off = 1.0 - torch.cosine_similarity(ends[0].double(), ends[1].double())
    assert 0.0 < off.max() <= {"bfloat16": 4e-6, "float16": 1e-7}[half]
