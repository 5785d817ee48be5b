"""The commands around caches: what they print, their exit codes, and how a build leaves when it is told to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from forked_python import forked_python
from small_cache import build
from tests_support import ROOT
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.recipe import dump_recipe
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.recipes import cache, cache_teacher, cli

NETWORK = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)
FILES = ("header.json", "embeddings.bin", "blocks.bin")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe beside its records, its teacher, and a finished cache in `cache`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    for name, seed in (("teacher", 3), ("other", 4)):
        save_network(folder / name, build_backbone(NETWORK, 32, generator=seed).eval(), NETWORK, 32)
    path = folder / "recipe.yaml"
    teacher = {"teacher__embeddings": "null", "teacher__checkpoint": folder / "teacher", "teacher__check": "false"}
    path.write_text(dump_recipe(tiny_recipe(folder, teacher__cache=folder / "cache", **teacher)))
    assert cache.main(["build", str(path), "--device", "cpu", "--batch-size", "10"]) == 0
    return path


@pytest.fixture
def copy(recipe: Path, tmp_path: Path) -> Path:
    """The finished cache, to be damaged."""
    return Path(shutil.copytree(recipe.parent / "cache", tmp_path / "copy"))


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_build_prints_rows_size_speed_and_digest_and_says_when_nothing_was_to_do(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [
        "cache",
        "build",
        str(recipe),
        f"teacher.cache={tmp_path}/new",
        "--device",
        "cpu",
        "--batch-size",
        "10",
    ]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    digest = TeacherCache(tmp_path / "new").digest()
    assert f"finished: {tmp_path}/new  48 records x 2 views x 16" in printed
    assert digest in printed
    assert "48 images" in printed
    assert "embeddings/s" in printed

    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "already complete" in printed
    assert digest in printed
    assert cache_teacher.main(arguments[2:]) == 0, "the entry point for torchrun"
    assert "already complete" in capsys.readouterr().out
    assert _bytes(tmp_path / "new") == _bytes(recipe.parent / "cache")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "nowhere.yaml"], "no such file"),
        (["build", "{recipe}", "teacher.cache=null"], "set teacher.cache=FOLDER"),
        (["build", "{recipe}", "--batch-size", "9"], "block_records: 10 stored, 9 wanted"),
        (["build", "{recipe}", "--batch-size", "0"], "must be positive, got 0"),
        (["build", "{recipe}", "--device", "tpu"], "unknown device"),
        (["check", "nowhere"], "no cache at nowhere"),
        (["check", "{cache}", "--recompute", "3"], "--recipe"),
        (["check", "{cache}", "--recipe", "{recipe}", "teacher.checkpoint={folder}/other"], "another teacher"),
        (["check", "{cache}", "teacher.color=bgr", "--recipe", "{recipe}"], "other preprocessing"),
        (["check", "{cache}", "--recipe", "{recipe}", "--recompute", "0"], "must be positive, got 0"),
        (["import", "nowhere.npy", "out", "--records", "{folder}/train.rec"], "nowhere.npy"),
        (["import", "{folder}/pairs.bin", "out", "--records", "{folder}/train.rec"], "no .npy file"),
    ],
)
def test_mistakes_exit_2_with_one_message(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    folder = recipe.parent
    before = _bytes(folder / "cache")
    filled = [text.format(recipe=recipe, folder=folder, cache=folder / "cache") for text in arguments]
    assert cache.main(filled) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())
    assert _bytes(folder / "cache") == before


def test_without_a_verb_the_verbs_are_listed(capsys: pytest.CaptureFixture[str]):
    for arguments, code in (([], 2), (["rebuild"], 2), (["--help"], 0)):
        assert cache.main(arguments) == code
        said = capsys.readouterr()
        assert "adadistill cache check FOLDER" in (said.err if code else said.out)


def test_a_damaged_record_exits_1_and_is_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    body = bytearray((recipe.parent / "train.rec").read_bytes())
    begin = body.index(b"\xff\xd8\xff", len(body) // 2)
    body[begin : begin + 3] = b"\0\0\0"
    (tmp_path / "train.rec").write_bytes(bytes(body))
    overrides = [f"data.records={tmp_path}/train.rec", "data.num_classes=6", f"teacher.cache={tmp_path}/new"]
    assert cache.main(["build", str(recipe), *overrides, "--device", "cpu", "--batch-size", "10"]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path}/train.rec: record " in error
    assert "Traceback" not in error

    assert cache.main(["describe", str(tmp_path / "new")]) == 0
    assert "of 5 blocks are done" in capsys.readouterr().out
    assert cache.main(["check", str(tmp_path / "new")]) == 2
    assert "is not complete" in capsys.readouterr().err


def test_check_reads_everything_and_names_the_damaged_block(copy: Path, capsys: pytest.CaptureFixture[str]):
    assert cache.main(["check", str(copy)]) == 0
    printed = capsys.readouterr().out
    assert "all checksums are right: 5 blocks" in printed
    assert "GB/s" in printed
    assert TeacherCache(copy).digest() in printed

    with (copy / "embeddings.bin").open("r+b") as file:
        file.seek(25 * 2 * 16 * 2)
        file.write(b"\x55\x55")
    assert cache.main(["verify", str(copy)]) == 1, "its former name"
    assert "block 2 (records [20, 30)" in capsys.readouterr().err


def test_check_with_a_recipe_compares_teacher_records_views_and_rows(recipe: Path, capsys: pytest.CaptureFixture[str]):
    check = ["check", str(recipe.parent / "cache"), "--recipe", str(recipe), "--device", "cpu"]
    assert cache.main([*check, "--recompute", "5"]) == 0
    printed = capsys.readouterr().out
    assert "fits recipe tiny: teacher, records and views" in printed
    assert "over 5 records" in printed

    assert cache.main([*check, "teacher.checkpoint=null"]) == 0
    assert "the recipe names no network" in capsys.readouterr().out


def test_check_finds_rows_that_the_teacher_never_said(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    build(tmp_path / "forged", TeacherCache(recipe.parent / "cache").header)
    check = ["check", str(tmp_path / "forged"), "--recipe", str(recipe), "--device", "cpu"]
    assert cache.main(check) == 0, "checksums alone cannot tell"
    assert cache.main([*check, "--recompute", "7"]) == 1
    assert "0.999 is asked for" in capsys.readouterr().err


def test_describe_says_what_a_cache_is_for_people_and_for_programs(recipe: Path, capsys: pytest.CaptureFixture[str]):
    folder = recipe.parent / "cache"
    assert cache.main(["describe", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "48 records x 2 views x 16 float16" in printed
    assert "plain, mirrored" in printed
    assert "checkpoint teacher step 0 mobilefacenet" in printed
    assert "train.rec, 6 identities" in printed

    assert cache.main(["info", str(folder), "--json"]) == 0, "its former name"
    content = json.loads(capsys.readouterr().out)
    assert content["complete"] is True
    assert content["digest"] == TeacherCache(folder).digest()
    assert content["header"] == json.loads((folder / "header.json").read_text())


def test_import_makes_a_cache_that_describe_and_check_accept(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder, out = recipe.parent, tmp_path / "imported"
    arguments = ["import", str(folder / "teacher.npy"), str(out), "--records", str(folder / "train.rec")]
    assert cache.main([*arguments, "--name", "a\x1b[2Jb", "--image-size", "32"]) == 0
    assert "finished:" in capsys.readouterr().out

    assert cache.main(["describe", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "imported a?[2Jb" in printed
    assert "\x1b" not in printed
    assert "preprocessing unknown" in printed

    alone = ["teacher.checkpoint=null", f"teacher.cache={out}"]
    assert cache.main(["check", str(out), "--recipe", str(recipe), *alone]) == 0
    assert cache.main(["check", str(out), "--recipe", str(recipe)]) == 2
    assert "another teacher" in capsys.readouterr().err


def test_rows_of_other_records_exit_2_with_the_reason(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.save(tmp_path / "rows.npy", np.random.RandomState(0).normal(size=(48, 512)))
    arguments = ["import", f"{tmp_path}/rows.npy", f"{tmp_path}/out", "--records", f"{recipe.parent}/train.rec"]
    assert cache.main(arguments) == 2
    assert "do not belong to the records" in capsys.readouterr().err
    assert cache.main([*arguments, "--no-label-check"]) == 0
    assert cache.main(["describe", f"{tmp_path}/out"]) == 0
    assert "label_check left out" in capsys.readouterr().out


def test_a_signal_ends_a_build_after_its_block_and_it_goes_on_later(recipe: Path, tmp_path: Path):
    # Blocks of one record: 48 waits for the disk leave time to be interrupted.
    arguments = ["build", str(recipe), f"teacher.cache={tmp_path}/new", "--device", "cpu", "--batch-size", "1"]
    command = [forked_python(), "-c", "import sys, tests_support; tests_support.make_importable(); "
               "from adadistill.recipes import cache; sys.exit(cache.main(sys.argv[1:]))", *arguments]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    slots = tmp_path / "new" / "blocks.bin"
    while not (slots.exists() and any(slots.read_bytes())):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]

    assert process.returncode == 143, error
    assert "blocks left to do" in error
    assert "Traceback" not in error
    assert 0 < slots.read_bytes().count(bytes(16)) < 48
    assert cache.main(arguments) == 0
    assert len(TeacherCache(tmp_path / "new")) == 48
