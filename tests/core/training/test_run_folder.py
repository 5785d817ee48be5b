"""Run folders: one run each, the environment on record, no secrets in it."""

from __future__ import annotations

import json
import shlex
import subprocess

import pytest
import torch

from adadistill.core.checkpoints import CheckpointWriter, Snapshot
from adadistill.core.training import run_folder
from adadistill.core.training.run_folder import (
    RunFolder,
    RunFolderError,
    describe_environment,
    redact_arguments,
    redact_urls,
)

RECIPE = "seed: 1\ndata:\n  records: data/train.rec\n"


def start(
    folder: RunFolder, *, recipe: str = RECIPE, resuming: bool = False, rank: int = 0, **environment: object
) -> None:
    folder.start(recipe_yaml=recipe, environment={"torch": "2.13.0"} | environment, resuming=resuming, rank=rank)


def test_a_new_run_finds_everything_in_its_place(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "first")
    assert not folder.path.exists(), "making the object touches nothing"
    start(folder)
    assert folder.recipe.read_text() == RECIPE
    assert json.loads(folder.environment.read_text()) == {"torch": "2.13.0", "resumed": []}
    assert folder.checkpoints.is_dir()
    assert folder.report.is_dir()
    assert folder.metrics == folder.path / "metrics.jsonl"
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"recipe.resolved.yaml", "environment.json", "checkpoints", "report"}


@pytest.mark.parametrize("trace", ["recipe.resolved.yaml", "environment.json", "metrics.jsonl", "checkpoint"])
def test_a_folder_with_another_run_is_refused_and_left_as_it_is(tmp_path, trace):
    folder = RunFolder(tmp_path / "run")
    if trace == "checkpoint":
        with CheckpointWriter(folder.checkpoints, keep=1) as writer:
            writer.save(1, Snapshot(model={"w": torch.zeros(1)}))
    else:
        folder.path.mkdir()
        (folder.path / trace).write_text("{}")
    before = sorted(folder.path.rglob("*"))
    with pytest.raises(RunFolderError, match=rf"already holds a run \(.*{trace}.*--resume auto"):
        start(folder)
    assert sorted(folder.path.rglob("*")) == before


def test_a_folder_with_other_things_takes_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    start(RunFolder(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_resume_keeps_the_first_start_and_adds_its_own(tmp_path):
    folder = RunFolder(tmp_path)
    start(folder, date="one")
    start(folder, date="two", resuming=True)
    start(folder, date="three", resuming=True)
    content = json.loads(folder.environment.read_text())
    assert content["date"] == "one"
    assert [entry["date"] for entry in content["resumed"]] == ["two", "three"]
    assert not list(tmp_path.glob("recipe.before-resume-*"))


def test_a_resume_with_another_recipe_keeps_the_earlier_ones(tmp_path):
    folder = RunFolder(tmp_path)
    for number, resuming in ((1, False), (2, True), (3, True)):
        start(folder, recipe=f"seed: {number}\n", resuming=resuming)
    assert folder.recipe.read_text() == "seed: 3\n"
    assert [(tmp_path / f"recipe.before-resume-{n}.yaml").read_text() for n in (1, 2)] == ["seed: 1\n", "seed: 2\n"]


def test_resuming_where_nothing_is_starts_a_run(tmp_path):
    folder = RunFolder(tmp_path / "new")
    start(folder, resuming=True)
    assert json.loads(folder.environment.read_text())["resumed"] == []


def test_a_full_disk_is_told_with_the_folder_even_where_the_system_names_no_file(tmp_path, monkeypatch):
    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")  # a failing write or fsync knows no name

    monkeypatch.setattr("adadistill.core.training.run_folder.os.fsync", no_space)
    with pytest.raises(RunFolderError, match=rf"cannot write the run folder {tmp_path}: .*No space left on device"):
        RunFolder(tmp_path).start(recipe_yaml="seed: 1\n", environment={}, resuming=False)


def test_a_recipe_that_is_no_longer_text_does_not_keep_a_run_from_resuming(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(recipe_yaml="seed: 1\n", environment={}, resuming=False)
    folder.recipe.write_bytes(b"seed: \xff\n")  # one bit
    folder.start(recipe_yaml="seed: 1\n", environment={}, resuming=True)
    assert folder.recipe.read_text() == "seed: 1\n"
    assert (tmp_path / "recipe.before-resume-1.yaml").read_text() == "seed: \\xff\n"


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"resumed": 3}', "[" * 100_000])
def test_a_damaged_environment_does_not_keep_a_run_from_resuming(tmp_path, caplog, damaged):
    folder = RunFolder(tmp_path)
    start(folder)
    folder.environment.write_text(damaged)
    start(folder, resuming=True, date="now")
    assert json.loads(folder.environment.read_text())["date"] == "now"
    assert (tmp_path / "environment.damaged.json").read_text() == damaged
    assert "is damaged and was moved" in caplog.text


def test_other_ranks_write_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    start(folder, rank=1)
    assert not folder.path.exists()
    start(folder)
    start(folder, rank=1)  # not refused: rank 0 of the same start may have been quicker


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        start(RunFolder(tmp_path / "run"))
    with pytest.raises(RunFolderError, match=r"cannot write the run folder.*Not a directory"):
        start(RunFolder(tmp_path / "run" / "inside"))


def test_the_environment_tells_versions_and_devices_and_is_json():
    environment = json.loads(json.dumps(describe_environment(world_size=2, argv=["train", "my recipe.yaml"])))
    assert environment["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert environment["world_size"] == 2
    assert environment["command"] == "train 'my recipe.yaml'"
    for key in (
        "date",
        "commit",
        "python",
        "numpy",
        "dali",
        "simplejpeg",
        "cuda",
        "driver",
        "devices",
        "cpu_count",
        "threads",
    ):
        assert key in environment
    assert len(environment["devices"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_nothing_of_the_process_environment_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "wandb-value-1234")
    monkeypatch.setenv("HF_TOKEN", "hf-value-5678")
    monkeypatch.setenv("ORDINARY", "ordinary-value")
    argv = ["train", "log=wandb-value-1234", "url=https://me:hf-value-5678@host/x"]
    folder = RunFolder(tmp_path)
    folder.start(recipe_yaml=RECIPE, environment=describe_environment(world_size=1, argv=argv), resuming=False)
    for path in (folder.recipe, folder.environment):
        for secret in ("wandb-value", "hf-value", "ordinary-value", "me:"):
            assert secret not in path.read_text()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--wandb-api-key abc recipe.yaml", "--wandb-api-key [redacted] recipe.yaml"),
        ("--token=abc", "--token=[redacted]"),
        ("log.wandb_token=abc optim.lr=0.1", "log.wandb_token=[redacted] optim.lr=0.1"),
        ("'password: a b c'", "'password:[redacted]'"),
        ("data.records=s3://me:pw@host/a.rec?b=1", "data.records=s3://[redacted]@host/a.rec?b=1"),
        ("https://h/x?sig=abc&a=1&access_token=d", "https://h/x?sig=[redacted]&a=1&access_token=[redacted]"),
        ("recipe.yaml data.records=/data/tokens/train.rec", "recipe.yaml data.records=/data/tokens/train.rec"),
        ("head.margin=0.4 --resume auto mail=a@b", "head.margin=0.4 --resume auto mail=a@b"),
    ],
)
def test_secrets_on_the_command_line_are_blotted_out_and_nothing_else(argv, expected):
    assert redact_arguments(shlex.split(argv)) == shlex.split(expected)


def test_a_password_in_the_recipe_is_left_out_and_ordinary_recipes_are_not_touched(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    start(folder, recipe="records: https://me:secret@host/train.rec\n")
    assert folder.recipe.read_text() == "records: https://[redacted]@host/train.rec\n"
    assert "a password in a URL was left out" in caplog.text
    ordinary = "# see https://host/page?a=1#b and a@b\nrecords: /data/secret_tokens/train.rec\n"
    assert redact_urls(ordinary) == ordinary


def test_the_commit_is_that_of_this_checkout_or_none(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "core").mkdir()
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "core" / "training" / "run_folder.py"))
    assert run_folder.source_commit.__wrapped__() is None
    git("init", "-q")
    assert run_folder.source_commit.__wrapped__() is None, "no commit yet"
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    assert run_folder.source_commit.__wrapped__() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert run_folder.source_commit.__wrapped__() == git("rev-parse", "HEAD") + "+changes"
    (tmp_path / "inside" / "core").mkdir(parents=True)
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "inside" / "core" / "training" / "run_folder.py"))
    assert run_folder.source_commit.__wrapped__() is None, (
        "a copy inside another repository is not that repository's commit"
    )
