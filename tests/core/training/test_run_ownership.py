"""A launch that may not have the folder is refused on every rank before anything is written; one that failed at its
first step leaves the folder free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rank_processes import start_ranks
from tiny_training import PlainStudent, tiny_recipe

from adadistill.core.checkpoints import list_checkpoints
from adadistill.core.distributed import Ranks, announced_ranks
from adadistill.core.recipe import dump_recipe
from adadistill.core.training import compiler_check, run
from adadistill.core.training.compiler_check import CompileError
from adadistill.core.training.folder_owner import owned_folder, this_launch
from adadistill.core.training.resume_check import ResumeError, refuse_other_beginning
from adadistill.core.training.run import run_training
from adadistill.core.training.run_folder import RunFolder, RunFolderError
from adadistill.recipes import train

SHORT: dict[str, Any] = {"optim__epochs": 1, "optim__milestones": "[]"}


@pytest.fixture
def command(data: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(tiny_recipe(data, **SHORT)))
    return [str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--device", "cpu"]


def _train(
    data: Path, folder: Path, *, resume_allow: tuple[str, ...] = (), resume: str = "auto", **changes: Any
) -> None:
    recipe = tiny_recipe(data, **{**SHORT, **changes})
    run_training(recipe, folder, ranks=Ranks(), resume=resume, resume_allow=resume_allow, student=PlainStudent())


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Path]:
    with owned_folder(tmp_path / "run", this_launch("adadistill train first.yaml")):
        yield tmp_path / "run"


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_a_second_start_and_its_dry_run_exit_2_and_write_nothing(
    command: list[str], owned: Path, resume: str, capsys: pytest.CaptureFixture[str]
):
    before = {path: path.read_bytes() for path in owned.iterdir()}
    for dry in ([], ["--dry-run"]):
        assert train.main([*command, "--resume", resume, *dry]) == 2
        said = "".join(capsys.readouterr())
        assert "belongs to a launch that is running: process" in said
        assert "adadistill train first.yaml" in said
    assert {path: path.read_bytes() for path in owned.iterdir()} == before


@pytest.mark.usefixtures("owned")
def test_both_of_two_ranks_are_refused_and_none_waits(command: list[str]):
    processes = start_ranks(["-m", "adadistill.recipes.train", *command, "--resume", "auto"], 2)
    for process in processes:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 2, error
        assert "belongs to a launch that is running" in error


def test_a_folder_whose_run_has_saved_nothing_is_held_to_its_recipe(
    data: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = RunFolder(tmp_path / "run")
    begun = tiny_recipe(data, **SHORT)
    folder.start(recipe_yaml=dump_recipe(begun), environment={}, resuming=False)
    with pytest.raises(ResumeError, match=r"(?s)begun by another recipe.*seed: 5 != 6.*--resume-allow KEY") as told:
        _train(data, folder.path, seed=6, log__every=1)
    assert "log.every" not in str(told.value), "changes nothing that is computed"
    assert train.main([*command, "--resume", "auto", "--dry-run", "seed=6"]) == 2
    assert "seed: 5 != 6" in capsys.readouterr().out
    assert not folder.metrics.exists()
    assert not list(folder.path.glob("recipe.before-*"))
    _train(data, folder.path, seed=6, log__every=1, resume_allow=("seed",))
    assert list_checkpoints(folder.path)
    assert (folder.path / "recipe.before-resume-1.yaml").read_text() == dump_recipe(begun)


def test_the_recipe_of_a_run_elsewhere_does_not_excuse_another_run_in_the_folder(data: Path, tmp_path: Path):
    _train(data, tmp_path / "first")
    folder = RunFolder(tmp_path / "second")
    folder.start(recipe_yaml=dump_recipe(tiny_recipe(data, **SHORT, seed=6)), environment={}, resuming=False)
    with pytest.raises(ResumeError, match="seed: 6 != 5"):
        _train(data, folder.path, resume=str(tmp_path / "first"))
    _train(data, tmp_path / "third", resume=str(tmp_path / "first"))


def test_a_password_that_was_left_out_is_no_difference(data: Path, tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    recipe = tiny_recipe(data, teacher__embeddings="http://user:word@host/x")
    folder.start(recipe_yaml=dump_recipe(recipe), environment={}, resuming=False)
    assert "word" not in folder.recipe.read_text()
    refuse_other_beginning(recipe, folder, None, [])
    with pytest.raises(ResumeError, match="teacher"):
        refuse_other_beginning(tiny_recipe(data), folder, None, [])


def test_a_launch_that_fails_before_its_first_step_is_over_leaves_the_folder_free(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise CompileError("in the first step")

    with monkeypatch.context() as failing:
        failing.setattr(run.Trainer, "_train_step", fail)
        with pytest.raises(CompileError, match="in the first step"):
            _train(data, tmp_path / "run", resume="none")
    assert RunFolder(tmp_path / "run").traces_of_a_run() == []
    _train(data, tmp_path / "run", resume="none", seed=6)


def test_a_launch_that_fails_later_or_goes_on_with_a_run_takes_nothing_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, fails_at = run.Trainer._train_step, [2, 0]

    def train_step(self: Any, *rest: Any) -> Any:
        if self.global_step == fails_at[0]:
            raise RuntimeError("later")
        return plain(self, *rest)

    monkeypatch.setattr(run.Trainer, "_train_step", train_step)
    while fails_at:
        with pytest.raises(RuntimeError, match="later"):
            _train(data, tmp_path / "run")
        assert (tmp_path / "run" / "recipe.resolved.yaml").exists()
        assert (tmp_path / "run" / "environment.json").exists()
        del fails_at[0]


def test_a_machine_without_a_compiler_is_refused_before_the_folder_is_made(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def none(*_: object) -> None:
        raise CompileError("no compiler, or set compile=off")

    monkeypatch.setattr(compiler_check, "try_compilers", none)
    for dry in ([], ["--dry-run"]):
        assert train.main([*command, "compile=default", *dry]) == 2
        assert "no compiler, or set compile=off" in "".join(capsys.readouterr())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "0"}, None),
        ({"RANK": "1", "WORLD_SIZE": "1"}, None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, None),
        ({"LOCAL_RANK": "0"}, (0, 1)),
    ],
)
def test_one_process_needs_no_local_rank(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], ranks):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if ranks is None:
        with pytest.raises(Exception, match="missing from the environment"):
            announced_ranks("cpu")
    else:
        found = announced_ranks("cpu")
        assert (found.rank, found.world_size) == ranks


def test_the_owner_is_named_in_the_folder_while_it_trains(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain, seen = run.Trainer._train_step, []

    def train_step(self: Any, *rest: Any) -> Any:
        seen.append(json.loads((tmp_path / "run" / "owner-1.json").read_text()))
        with pytest.raises(RunFolderError, match="that is running"):
            _train(data, tmp_path / "run")
        return plain(self, *rest)

    monkeypatch.setattr(run.Trainer, "_train_step", train_step)
    _train(data, tmp_path / "run")
    assert seen[0] == seen[-1]
    assert (tmp_path / "run" / "owner-1.released").exists()
