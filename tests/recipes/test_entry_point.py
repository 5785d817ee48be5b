"""Entry points: streams that are closed, full or read by nobody; errors and their codes; `~`; `python -OO`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from forked_python import forked_python
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.checkpoints import CheckpointError
from adadistill.core.checkpoints.attempt import CheckpointWriteError
from adadistill.core.recipe import dump_recipe, load_recipe
from adadistill.core.training.stop_signal import StopRequested
from adadistill.loaders.block_store.errors import StoreDamagedError, StoreError
from adadistill.loaders.records.recordio import BadMagicError
from adadistill.recipes.cli import VERBS
from adadistill.recipes.data import VERBS as DATA_VERBS
from adadistill.recipes.entry_point import NOBODY_READS, entry_point


def shell(line: str, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit code and text of standard error, which a line of bash may have sent elsewhere."""
    closes = "<&-" in line or ">&-" in line  # what is forked gets streams that are open
    program = f"'{sys.executable if closes else forked_python()}' -m adadistill.recipes"
    done = subprocess.run(
        ["bash", "-c", line.replace("AD", program)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stderr.decode()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder)
    (folder / "recipe.yaml").write_text(dump_recipe(tiny_recipe(folder)))
    return folder


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("verb", ["cli --help", "recipe_tools ls", "cli recipes show demo_teacher"])
def test_a_reader_that_goes_away_ends_a_printing_verb_quietly(verb: str, unbuffered: str, tmp_path: Path):
    line = f"AD.{verb} | true; exit ${{PIPESTATUS[0]}}"
    assert shell(line, tmp_path, PYTHONUNBUFFERED=unbuffered) == (NOBODY_READS, "")


@pytest.mark.parametrize("verb", ["cli --help", "cli recipes ls"])
@pytest.mark.parametrize("target", ["> /dev/full", "1< /dev/null"])
def test_output_that_cannot_be_written_is_one_sentence_and_a_failure(verb: str, target: str, tmp_path: Path):
    code, told = shell(f"AD.{verb} {target}", tmp_path)
    assert code == 1
    assert told.count("\n") == 1
    assert "standard output cannot be written" in told


def test_full_and_closed_streams_cost_no_refusal_its_code(tmp_path: Path):
    refused = "cli recipes show nothing"
    for verb, target in (
        (refused, "2> /dev/full"), (refused, "2>&1 | true; exit ${PIPESTATUS[0]}"), (refused, "0<&- 1>&- 2>&-"),
        ("cli nothing", "2>&-"), ("cli nothing", "1>&- 2>&-"),
    ):  # fmt: skip
        assert shell(f"AD.{verb} {target}", tmp_path) == (2, "")


STREAMLESS = """
import os, sys
for number in range(3):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None
from adadistill.recipes import train
sys.exit(train.main())
"""
"""A process that started with closed streams, as Python shows them, out of one that is forked with open ones."""


@pytest.mark.parametrize("target", ["closed", "> /dev/full 2> /dev/full", "2>&1 | true; exit ${PIPESTATUS[0]}"])
def test_training_goes_on_and_ends_well_when_nobody_takes_what_it_says(target: str, tiny: Path, tmp_path: Path):
    told = [f"{tiny}/recipe.yaml", "--out", "run", "--device", "cpu"]
    if target == "closed":
        code = subprocess.run([forked_python(), "-c", STREAMLESS, *told], cwd=tmp_path, check=False).returncode
    else:
        code, _ = shell(f"AD.train '{told[0]}' {' '.join(told[1:])} {target}", tmp_path)
    assert code == 0
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
    for file in (tmp_path / "run").rglob("*.json*"):
        assert b"images of" not in file.read_bytes(), "a log line, where the number of a stream was"


def test_text_beyond_the_locale_is_printed_and_names_keep_their_bytes(tmp_path: Path):
    code = "from adadistill.recipes.entry_point import guard_streams; guard_streams(); print('\\xe4', '\\udcc3')"
    for locale, printed in (({"LC_ALL": "C"}, b"\\xe4 \xc3\n"), ({"PYTHONIOENCODING": "utf-8"}, b"\xc3\xa4 \\udcc3\n")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **locale},
            capture_output=True,
            check=True,
        )
        assert done.stdout == printed


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BadMagicError("x.rec", 8, "reason"), 1, "BadMagicError: "),
        (CheckpointWriteError("x"), 1, ""),
        (CheckpointError("x"), 2, ""),
        (StoreDamagedError("x"), 1, ""),
        (StoreError("x"), 2, ""),
        (FileNotFoundError("x"), 2, ""),
        (MemoryError("x"), 1, "out of memory"),
        (ModuleNotFoundError("No module named 'onnx'", name="onnx"), 2, "pip install 'adadistill[onnx]'"),
        (ModuleNotFoundError("No module named 'h2'", name="h2"), 2, "pip install 'h2'"),
        (ImportError("libcuda.so.1: cannot open shared object file"), 2, "libcuda.so.1"),
        (StopRequested(143, "all is saved"), 143, "all is saved; go on"),
    ],
)
def test_an_error_has_one_exit_code_wherever_it_is_raised(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
):
    @entry_point("verb", after_stop="go on")
    def main(_: Sequence[str]) -> int:
        raise error

    assert main([]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), KeyError("x"), ImportError("cannot import name", name="adadistill.core")]
)
def test_a_mistake_of_ours_keeps_its_traceback(error: Exception):
    @entry_point("verb")
    def main(_: Sequence[str]) -> int:
        raise error

    with pytest.raises(type(error)):
        main([])


def test_a_tilde_is_the_home_folder_in_options_and_in_every_key_of_a_recipe(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen: list[str] = []

    @entry_point("verb")
    def main(argv: Sequence[str]) -> None:
        seen.extend(argv)

    main(["~/a", "--out=~/b c", "x~/y", "--name=~nobody-of-this-name/z"])
    assert seen == [f"{tmp_path}/a", f"--out={tmp_path}/b c", "x~/y", "--name=~nobody-of-this-name/z"]

    recipe = load_recipe(
        tiny / "recipe.yaml",
        ["data.records=~/train.rec", "data.index=~/a b.idx", "teacher.embeddings=~/t.npy", "evaluation.sets=[~/p.bin]"],
    )
    assert (recipe.data.records, recipe.data.index) == (f"{tmp_path}/train.rec", f"{tmp_path}/a b.idx")
    assert recipe.teacher is not None
    assert recipe.teacher.embeddings == f"{tmp_path}/t.npy"
    assert recipe.evaluation.sets == (f"{tmp_path}/p.bin",)


def test_help_of_every_verb_is_printed_without_docstrings():
    verbs = [[verb] for verb in VERBS] + [["data", verb] for verb in DATA_VERBS] + [["bench", "scaling"]]
    code = f"""
import contextlib, io, sys
from adadistill.recipes import cli
for verb in {verbs!r}:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            cli.main([*verb, "--help"])
        except SystemExit:
            pass
"""
    code += "    if 'None' in said.getvalue() or not said.getvalue().strip(): sys.exit(f'{verb}: {said.getvalue()}')\n"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
