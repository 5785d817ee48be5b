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

import numpy as np
import pytest
import torch
from tiny_training import NanImages, tiny_recipe, write_tiny_records

import adadistill.core.checkpoints.attempt as attempt
import adadistill.core.scoring.embedding as evaluation
import adadistill.core.training.run as run
import adadistill.core.training.trainer as training
from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointWriteError,
    Snapshot,
    load_checkpoint,
    newest_valid_checkpoint,
)
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.seeding import derive_seed
from adadistill.core.teachers import TeacherError
from adadistill.core.teachers.stored_embeddings import StoredEmbeddings
from adadistill.core.training.lagged_readback import CUDA_LAG, LaggedReadback
from adadistill.core.training.metrics_log import read_metrics
from adadistill.core.training.non_finite import NonFiniteError
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    return folder


def _newest(folder: Path) -> Checkpoint:
    checkpoint, skipped = newest_valid_checkpoint(folder)
    assert checkpoint is not None
    assert not skipped
    return checkpoint


def _assert_same_state(one: Checkpoint, other: Checkpoint) -> None:
    assert one.step == other.step
    assert one.state == other.state
    assert one.rank_states == other.rank_states
    for part in ("model", "optimiser", "row_sharded"):
        ours, theirs = getattr(one, part), getattr(other, part)
        assert ours.keys() == theirs.keys()
        assert ours
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), f"{part} {name}"


def _metrics(folder: Path, event: str) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def test_a_run_leaves_a_whole_folder_and_learns(data: Path, tmp_path: Path):
    recipe = tiny_recipe(data, optim__epochs=6, optim__milestones="[5]", optim__lr_batch_size=128)
    result = run_training(recipe, tmp_path / "run", ranks=RANKS)

    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.resolved.yaml", "environment.json", "metrics.jsonl", "checkpoints", "report"} <= names
    rows = _metrics(folder, "train")
    assert [row["step"] for row in rows] == [*range(3, 37, 3)]
    assert {
        "loss", "lr", "images_per_s", "wait_share", "centre_momentum", "confidence", "student_teacher_cosine",
        "geometry", "margins_clipped", "gradient_norm", "peak_mib", "eta_s",
    } <= rows[0].keys()  # fmt: skip
    losses = [row["loss"] for row in rows]
    assert sum(losses[-3:]) < sum(losses[:3]) - 10
    assert result.metrics["loss"] == rows[-1]["loss"]
    assert _newest(folder).state["position"] == {"epoch": 6, "step": 0, "evaluated": True}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_resumed_at_any_step_equals_one_that_never_stopped(data: Path, tmp_path: Path, dropout: float):
    recipe = tiny_recipe(data, checkpoint__every_steps=1, checkpoint__keep=100, student__dropout=dropout)
    run_training(recipe, tmp_path / "whole", ranks=RANKS)
    whole = _newest(tmp_path / "whole")

    # 6 steps an epoch: the first step, mid-epoch, the edges of the epoch, the last step.
    for step in (1, 3, 5, 6, 7, 11):
        folder = tmp_path / f"from-{step}"
        start = tmp_path / "whole" / "checkpoints" / f"step-{step:08d}"
        torch.manual_seed(step)
        run_training(recipe, folder, ranks=RANKS, resume=str(start))
        _assert_same_state(_newest(folder), whole)


def test_resume_auto_goes_on_where_a_signal_stopped_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny_recipe(data, optim__epochs=3)
    run_training(recipe, tmp_path / "whole", ranks=RANKS)

    original, steps = training.Trainer._train_step, []

    def interrupted(self: training.Trainer, *arguments: object) -> bool:
        steps.append(self.global_step)
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(training.Trainer, "_train_step", interrupted)
    with pytest.raises(StopRequested) as stopped:
        run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")
    assert stopped.value.exit_code == 143
    assert _newest(tmp_path / "run").step == 8

    run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")
    assert steps[8] == 8
    _assert_same_state(_newest(tmp_path / "run"), _newest(tmp_path / "whole"))


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
    assert _newest(tmp_path / "run").step == 3


def test_a_stop_in_an_evaluation_saves_the_position_before_it_and_a_resume_evaluates(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny_recipe(data, evaluation__sets=f"['{data}/pairs.bin']")
    original = evaluation._embed_range
    with monkeypatch.context() as patched:
        patched.setattr(
            evaluation, "_embed_range", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or original(*args)
        )
        with pytest.raises(StopRequested, match="step 6 has been saved"):
            run_training(recipe, tmp_path / "run", ranks=RANKS)
    assert _newest(tmp_path / "run").state["position"] == {"epoch": 1, "step": 0, "evaluated": False}
    run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")
    assert [row["epoch"] for row in _metrics(tmp_path / "run", "evaluation")] == [1, 2]


def test_a_stop_in_the_first_step_of_a_launch_saves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(TrainingStep, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StopRequested):
        run_training(tiny_recipe(data), tmp_path / "run", ranks=RANKS)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_failed_save_ends_the_run_at_once_and_not_at_the_next_save(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny_recipe(data, checkpoint__every_steps=4, log__every=1)

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
            run_training(recipe, tmp_path / "run", ranks=RANKS)
    assert _newest(tmp_path / "run").step == 4
    assert [row["step"] for row in _metrics(tmp_path / "run", "train")] == list(range(1, 10)), "one step more, no four"
    run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")
    run_training(recipe, tmp_path / "whole", ranks=RANKS)
    _assert_same_state(_newest(tmp_path / "run"), _newest(tmp_path / "whole"))
    told, whole = (
        [
            (row["step"], row["loss"])
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
            if row["event"] == "train"
        ]
        for name in ("run", "whole")
    )
    assert told == whole, "the resumed run's steps stand once"


def test_a_run_none_of_whose_checkpoints_is_valid_is_not_started_anew(data: Path, tmp_path: Path):
    recipe = tiny_recipe(data, checkpoint__every_steps=5)
    run_training(recipe, tmp_path / "run", ranks=RANKS)
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    for path in saved:
        with (path / "model.safetensors").open("ab") as file:
            file.write(b"x")
    with pytest.raises(CheckpointError, match=r"(?s)3 checkpoint\(s\) and none is valid.*model.safetensors has .*move"):
        run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == saved


def test_verification_sets_are_scored_as_often_as_told_and_after_the_last_epoch(data: Path, tmp_path: Path):
    recipe = tiny_recipe(
        data,
        optim__epochs=5,
        evaluation__sets=f"['{data}/pairs.bin']",
        evaluation__every_epochs=2,
        evaluation__batch_size=7,
    )
    result = run_training(recipe, tmp_path / "run", ranks=RANKS)
    rows = _metrics(tmp_path / "run", "evaluation")
    assert [(row["epoch"], row["set"], row["pairs"]) for row in rows] == [(n, "pairs", 20) for n in (2, 4, 5)]
    assert result.evaluations["pairs"].details["accuracy"] == rows[-1]["accuracy"]


def test_a_run_killed_between_saving_and_evaluating_an_epoch_evaluates_it_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny_recipe(data, evaluation__sets=f"['{data}/pairs.bin']", checkpoint__every_epochs=1, checkpoint__keep=9)
    run_training(recipe, tmp_path / "whole", ranks=RANKS)

    def killed(self: training.Trainer, _stop: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(recipe, tmp_path / "run", ranks=RANKS)
    run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")

    for folder in ("whole", "run"):
        assert [row["epoch"] for row in _metrics(tmp_path / folder, "evaluation")] == [1, 2]
    _assert_same_state(_newest(tmp_path / "run"), _newest(tmp_path / "whole"))


def test_a_second_run_does_not_overwrite_the_first(data: Path, tmp_path: Path):
    recipe = tiny_recipe(data, optim__epochs=1, optim__milestones="[]")
    run_training(recipe, tmp_path / "run", ranks=RANKS)
    with pytest.raises(RunFolderError, match="already holds a run"):
        run_training(recipe, tmp_path / "run", ranks=RANKS)


def test_resuming_with_another_recipe_names_the_differences_unless_they_are_allowed(data: Path, tmp_path: Path):
    run_training(tiny_recipe(data, optim__epochs=1, optim__milestones="[]"), tmp_path / "run", ranks=RANKS)
    longer = tiny_recipe(data, optim__epochs=2, optim__milestones="[]")
    with pytest.raises(ResumeError, match=r"optim\.epochs: 1 != 2"):
        run_training(longer, tmp_path / "run", ranks=RANKS, resume="auto")
    run_training(longer, tmp_path / "run", ranks=RANKS, resume="auto", resume_allow=["optim.epochs"])
    assert _newest(tmp_path / "run").step == 12


def _damage(monkeypatch: pytest.MonkeyPatch, *, epoch: int, step: int, sample: int) -> None:
    import adadistill.core.training.run as run

    original = run.build_pipeline
    monkeypatch.setattr(run, "build_pipeline", lambda *a, **k: NanImages(original(*a, **k), epoch, step, sample))


def test_resuming_on_other_records_is_refused(data: Path, tmp_path: Path):
    run_training(tiny_recipe(data, optim__epochs=1, optim__milestones="[]"), tmp_path / "run", ranks=RANKS)
    write_tiny_records(tmp_path / "other", images=9)
    other = tiny_recipe(
        data, data__records=tmp_path / "other" / "train.rec", teacher__embeddings=tmp_path / "other" / "teacher.npy"
    )
    with pytest.raises(ResumeError, match="other records"):
        run_training(
            other, tmp_path / "run", ranks=RANKS, resume="auto",
            resume_allow=["data.records", "teacher.embeddings", "optim.epochs", "optim.milestones"],
        )  # fmt: skip


@pytest.mark.parametrize("teacher", ["stored", "none"])
def test_a_non_finite_image_stops_the_run_before_the_update_and_is_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
):
    changes = {} if teacher == "stored" else {
        "teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off",
    }  # fmt: skip
    recipe = tiny_recipe(data, checkpoint__every_steps=1, checkpoint__keep=100, **changes)
    _damage(monkeypatch, epoch=1, step=2, sample=5)

    with pytest.raises(NonFiniteError) as stopped:
        run_training(recipe, tmp_path / "run", ranks=RANKS)

    culprit = int(SampleOrder(48, 8, derive_seed(5, "sample_order")).global_ids(1, 2)[5])
    assert culprit in stopped.value.record_ids
    assert str(culprit) in str(stopped.value)
    dump = json.loads((tmp_path / "run" / "non_finite-step-00000008.json").read_text())
    assert dump["step"] == 8
    assert culprit in dump["record_ids"]
    last = _newest(tmp_path / "run")
    assert last.step == 8
    for part in (last.model, last.optimiser, last.row_sharded):
        assert all(torch.isfinite(tensor).all() for tensor in part.values())


def test_skipping_a_non_finite_step_keeps_all_state_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = tiny_recipe(data, checkpoint__every_steps=1, checkpoint__keep=100, guard__on_nonfinite="skip")
    _damage(monkeypatch, epoch=0, step=3, sample=0)
    run_training(recipe, tmp_path / "run", ranks=RANKS)

    before = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000003")
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000004")
    for part in ("optimiser", "row_sharded", "model"):
        for name, tensor in getattr(before, part).items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, getattr(after, part)[name]), name
    assert _newest(tmp_path / "run").step == 12


@pytest.mark.parametrize("steps", [(2, 3), (3, 4), (4, 5)], ids=["inside", "across", "at the end"])
def test_each_skipped_step_names_its_own_records_where_the_host_lags(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, int]
):
    """On CUDA the host hears of a step two steps later, when another one may have been skipped."""
    recipe = tiny_recipe(
        data, optim__epochs=1, optim__milestones="[]", guard__on_nonfinite="skip", teacher__check="false"
    )
    order = SampleOrder(48, 8, derive_seed(5, "sample_order"))
    culprits = {steps[0]: [int(order.global_ids(0, steps[0])[1])], steps[1]: [int(order.global_ids(0, steps[1])[6])]}
    broken, rows = np.array(list(culprits.values())).flatten(), StoredEmbeddings.rows

    def with_broken_rows(self, record_ids, *others):
        return rows(self, record_ids, *others).masked_fill(
            torch.from_numpy(np.isin(record_ids, broken))[:, None], torch.nan
        )

    monkeypatch.setattr(StoredEmbeddings, "rows", with_broken_rows)
    monkeypatch.setattr(training, "LaggedReadback", lambda device: LaggedReadback(device, lag=CUDA_LAG))
    run_training(recipe, tmp_path / "run", ranks=RANKS)

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["record_ids"] for line in lines if line["event"] == "non_finite"} == culprits


def test_skips_have_a_budget(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = tiny_recipe(data, guard__on_nonfinite="skip", guard__max_skips=0)
    _damage(monkeypatch, epoch=0, step=3, sample=0)
    with pytest.raises(NonFiniteError):
        run_training(recipe, tmp_path / "run", ranks=RANKS)


def test_a_teacher_that_does_not_fit_stops_the_run_at_the_door(data: Path, tmp_path: Path):
    with pytest.raises(TeacherError, match=r"16-d embeddings, the student's are 32-d"):
        run_training(tiny_recipe(data, student__embedding_dim=32), tmp_path / "run", ranks=RANKS)
    np.save(tmp_path / "short.npy", np.ones((47, 2, 16), dtype=np.float16))
    with pytest.raises(TeacherError, match="47 records, the training file has 48"):
        run_training(tiny_recipe(data, teacher__embeddings=tmp_path / "short.npy"), tmp_path / "run", ranks=RANKS)
    np.save(tmp_path / "plain.npy", np.ones((48, 1, 16), dtype=np.float16))
    with pytest.raises(TeacherError, match="mirror_probability"):
        run_training(tiny_recipe(data, teacher__embeddings=tmp_path / "plain.npy"), tmp_path / "run", ranks=RANKS)
    with pytest.raises(TeacherError, match="no such file"):
        run_training(tiny_recipe(data, teacher__embeddings=tmp_path / "none.npy"), tmp_path / "run", ranks=RANKS)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_ours_teaches(data: Path, tmp_path: Path):
    own = {"teacher": "null", "centres__kind": "trainable", "geometry_margin__mode": "off", "head__kind": "arcface"}
    run_training(tiny_recipe(data, **own), tmp_path / "teacher", ranks=RANKS)
    recipe = tiny_recipe(
        data, teacher__embeddings="null", teacher__checkpoint=tmp_path / "teacher", teacher__check="false"
    )
    result = run_training(recipe, tmp_path / "student", ranks=RANKS)
    assert -1.0 <= result.metrics["student_teacher_cosine"] <= 1.0
    assert "class_centres" in _newest(tmp_path / "student").row_sharded


def test_no_thread_outlives_a_run(data: Path, tmp_path: Path):
    before = set(threading.enumerate())
    run_training(tiny_recipe(data, optim__epochs=1, optim__milestones="[]"), tmp_path / "run", ranks=RANKS)
    assert set(threading.enumerate()) <= before


def test_resuming_with_another_teacher_under_the_same_path_is_refused(data: Path, tmp_path: Path):
    backbone = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)
    teacher = {"teacher__embeddings": "null", "teacher__checkpoint": f"{tmp_path}/teacher", "teacher__check": "false"}
    recipe = tiny_recipe(data, **teacher)
    save_network(tmp_path / "teacher", build_backbone(backbone, 32, generator=1), backbone, 32)
    run_training(recipe, tmp_path / "run", ranks=RANKS)
    shutil.rmtree(tmp_path / "teacher")
    save_network(tmp_path / "teacher", build_backbone(backbone, 32, generator=2), backbone, 32)
    with pytest.raises(ResumeError, match="class centres of two teachers must not mix"):
        run_training(recipe, tmp_path / "run", ranks=RANKS, resume="auto")


@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_trained_centres_are_multiplied_as_the_precision_says_and_stay_float32(
    placement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The path that CUDA takes under bfloat16 autocast, taken on the CPU; without it every operand is float32."""
    write_tiny_records(tmp_path)
    recipe = tiny_recipe(
        tmp_path, centres__kind="trainable", centres__placement=placement, teacher="null", geometry_margin__mode="off"
    )
    original = class_products.product
    seen: set[torch.dtype] = set()

    def watched(left: torch.Tensor, right: torch.Tensor, accumulate: torch.dtype) -> torch.Tensor:
        seen.update((left.dtype, right.dtype))
        return original(left, right, accumulate)

    for where in (margin_softmax, class_products):
        monkeypatch.setattr(where, "product", watched)
    found = {}
    for name, operands in (("exact", None), ("half", torch.bfloat16)):
        monkeypatch.setattr(run, "trained_product_dtype", lambda autocast, device, operands=operands: operands)
        seen.clear()
        run_training(recipe, tmp_path / name, ranks=Ranks())
        assert seen == {operands or torch.float32}
        found[name] = load_checkpoint(sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1])
    one, other = (found[name].row_sharded["class_centres"] for name in found)
    assert one.dtype == other.dtype == torch.float32
    assert 0.0 < (one - other).abs().max() <= 0.02 * one.abs().max()


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_half_precision_centres_train_save_and_resume_to_the_same_bits(half: str, tmp_path: Path):
    write_tiny_records(tmp_path)
    recipe = tiny_recipe(tmp_path, centres__half=half, log__every=1, checkpoint__every_steps=4)
    run_training(recipe, tmp_path / "whole", ranks=Ranks())
    run_training(recipe, tmp_path / "halted", ranks=Ranks())
    newest = sorted((tmp_path / "halted" / "checkpoints").glob("step-*"))
    for folder in newest[1:]:
        shutil.rmtree(folder)
    run_training(recipe, tmp_path / "halted", ranks=Ranks(), resume="auto")
    states = [
        load_checkpoint(sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1]) for name in ("whole", "halted")
    ]
    centres = [state.row_sharded["class_centres"] for state in states]
    assert centres[0].dtype == getattr(torch, half)
    assert torch.equal(*centres)
    # As far from those of a float32 run as docs/method.md says.
    exact = tiny_recipe(tmp_path, log__every=1, checkpoint__every_steps=4)
    run_training(exact, tmp_path / "exact", ranks=Ranks())
    state = load_checkpoint(sorted((tmp_path / "exact" / "checkpoints").glob("step-*"))[-1])
    off = 1.0 - torch.cosine_similarity(centres[0].double(), state.row_sharded["class_centres"].double())
    assert 0.0 < off.max() <= {"bfloat16": 4e-6, "float16": 1e-7}[half]
