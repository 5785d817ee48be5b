"""A share of the trials of hostile input on every format: what a reader makes of it is its content or a named error."""

from __future__ import annotations

import logging
import signal
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from forked_python import forked_python

from adadistill.core.checkpoints import list_checkpoints, load_checkpoint
from adadistill.core.checkpoints.checked_files import _CheckedReader
from trials import mutations
from trials.targets.checkpoints import WAYS, what_is_wrong
from trials.targets.damage import TEXT
from trials.targets.table import TARGETS
from trials.targets.target import (
    BrokenPromiseError,
    Material,
    Mutant,
    Original,
    Target,
    judge,
    mutate,
    try_one,
    write_files,
)
from trials.training_process import child_environment

# Every so many trials; odd, as every other one is an attack.
STEPS = {"recipes": 97, "metadata": 97, "weights": 97, "command_lines": 83, "checkpoints": 101}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_a_share_of_the_mutations_of_every_format_holds(tmp_path: Path, name: str):
    target = TARGETS[name]
    (tmp_path / "originals").mkdir()
    material = target.make(tmp_path / "originals")
    fell = []
    for number in range(0, target.trials, STEPS.get(name, 61)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            verdict = try_one(target, material, 0, number, folder)
        if not verdict.held:
            fell.append(f"{number}: {verdict}")
        assert not (tmp_path / "canary").exists(), f"{number}: {verdict}"
    assert not fell


def test_every_damage_to_a_checkpoint_is_found_and_a_trial_notices_if_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = TARGETS["checkpoints"]
    material = target.make(tmp_path / "originals")
    (original,) = material.originals
    assert set(original.lies) > set(WAYS)
    for way in original.lies:
        files = dict(original.files)
        original.lies[way](Random(way), files)
        verdict = judge(target, material, Mutant(original, way, files, tmp_path / way))
        assert verdict.held, verdict
    saved = [load_checkpoint(path) for path in list_checkpoints(tmp_path / "originals")]
    folder = tmp_path / "originals" / "checkpoints"
    assert what_is_wrong(folder, saved[2], {}) == ""
    assert "used 3 for 2" in what_is_wrong(folder, saved[1], {})
    assert "was not passed over" in what_is_wrong(folder, saved[2], {"step-00000003": ["state.json"]})
    (tmp_path / "deleted" / "checkpoints").rename(tmp_path / "checkpoints")
    assert "does not name" in what_is_wrong(tmp_path, saved[1], {"step-00000003": ["no such file"]})
    monkeypatch.setattr(_CheckedReader, "finish", lambda self: None)
    files = dict(original.files)
    WAYS["one bit flipped"](Random(0), files, "checkpoints/step-00000003/model.safetensors")
    verdict = judge(target, material, Mutant(original, "", files, tmp_path / "unseen"))
    assert "was not passed over" in verdict.note


def test_a_watched_process_counts_what_it_tried(tmp_path: Path):
    (tally,) = mutations.run(tiny=True, seed=0, folder=tmp_path, targets=["npy"], python=forked_python())
    assert tally.trials == tally.held == 20
    assert tally.outcomes["refused by name"] > 5
    assert tally.peak_mib is not None
    assert not list(tmp_path.iterdir())


WATCHED = """
import os, sys, time
from pathlib import Path
from trials import watch as module
from trials.targets.target import Verdict
outside, inside = Path(sys.argv[1]), Path(sys.argv[2])
watch = module.Watch()
for act in (
    lambda: (outside / "canary").touch(),
    lambda: (outside / "other").touch(),
    lambda: os.system("true"),
    lambda: bytearray(700 << 20),
    lambda: (inside / "own").touch() or setattr(module, "MAX_SECONDS", 1),
    lambda: time.sleep(60),
):
    def trial(act=act):
        act()
        return Verdict("read", True)
    print(watch.run(inside, outside / "canary", trial).outcome, flush=True)
"""


def test_what_runs_writes_elsewhere_takes_memory_or_hangs_does_not_hold(tmp_path: Path):
    """The watch itself. In a process of its own: its audit hook cannot be taken away."""
    (tmp_path / "inside").mkdir()
    command = [forked_python(), "-c", WATCHED, str(tmp_path), str(tmp_path / "inside")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=child_environment())
    elsewhere = "reached out of its folder"
    assert done.stdout.splitlines() == ["executed", elsewhere, elsewhere, "too much memory", "read"]
    assert done.returncode == -signal.SIGALRM


def test_an_error_that_does_not_name_the_file_does_not_hold(tmp_path: Path):
    def outcome(error: Exception) -> str:
        def read(mutant: Mutant) -> str:
            raise error

        original = Original("", {}, "a.rec")
        return judge(Target("", "", "", (), lambda _: material), material := Material([original], read),
                     Mutant(original, "", {}, tmp_path)).outcome  # fmt: skip

    assert outcome(ValueError("a.rec is bad")) == "refused by name"
    assert outcome(ValueError("it is bad")) == "refused without the file's name"
    assert outcome(ValueError("a.rec" * 10_000)) == "refused at great length"
    assert outcome(BrokenPromiseError("other pixels")) == "wrong result"
    assert outcome(ZeroDivisionError("a.rec")) == outcome(UnicodeError("a.rec")) == "another error"


def test_a_trial_follows_from_its_seed_and_its_number():
    body = bytes(range(256)) * 4
    originals = [Original("one", {"a": body, "b": b"abc"}, "a", hit=["a", "b"])]
    material = Material(originals, lambda mutant: "", damages=TEXT)
    first, again, other = ([mutate(material, Random(f"{seed}/{n}"), n)[1:] for n in range(40)] for seed in (1, 1, 2))
    assert first == again != other
    assert len({damage for damage, _ in first}) > 8


def test_the_command_itself_answers_a_hostile_file_in_one_message(tmp_path: Path):
    """In processes, as users start them; the trials above call the same entry point."""
    write_files(tmp_path, {"evil.pth": b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R."})
    write_files(tmp_path, {"bomb.yaml": b"[" * 100_000})
    for command in (["convert", "evil.pth", "out"], ["train", "bomb.yaml"]):
        found = subprocess.run(
            [forked_python(), "-m", "adadistill.recipes.cli", *command],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
        assert command[1] in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.yaml", "evil.pth"]
