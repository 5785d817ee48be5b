"""A share of the trials of hostile input on every format: what a reader makes of it is its content or a named error."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forked_python import forked_python

from trials.child_environment import child_environment
from trials.mutation_kinds.catalogue import KINDS
from trials.mutation_kinds.damage import damage_bytes, damage_text
from trials.mutation_kinds.trial import BrokenPromiseError, judge
from trials.mutations import run

# Every so many of the thousand; odd, as every other one is an attack.
NUMBERS = {"records": 61, "verification_sets": 51, "metadata": 67, "weights": 81, "command_lines": 251}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", KINDS)
def test_a_share_of_the_mutations_of_every_format_holds(tmp_path: Path, name: str):
    kind = KINDS[name]()
    (tmp_path / "originals").mkdir()
    kind.prepare(tmp_path / "originals")
    fell = []
    for number in range(0, 1000, NUMBERS.get(name, 37)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            ending = kind.trial(np.random.default_rng((0, number)), number, folder)
        if not ending.held:
            fell.append(f"{number}: {ending}")
        assert not (tmp_path / "canary").exists(), f"{number}: {ending}"
    assert not fell


def test_a_watched_process_counts_what_it_tried(tmp_path: Path):
    (outcome,) = run(tiny=True, seed=0, folder=tmp_path, kinds=["npy"], trials=30)
    assert outcome.trials == outcome.held == 30 == sum(outcome.outcomes.values())
    assert outcome.outcomes["refused by name"] > 10
    assert outcome.peak_mib is not None
    assert not list(tmp_path.iterdir())


WATCHED = """
import os, sys
from pathlib import Path
from trials.mutation_kinds.trial import Ending
from trials.mutation_kinds.watch import Watch
outside, inside = Path(sys.argv[1]), Path(sys.argv[2])
watch = Watch()
for act in (
    lambda: (outside / "canary").touch(),
    lambda: (outside / "other").touch(),
    lambda: os.system("true"),
    lambda: bytearray(700 << 20),
    lambda: (inside / "own").touch(),
):
    def trial(act=act):
        act()
        return Ending("read", True)
    print(watch.run(inside, outside / "canary", trial).outcome)
"""


def test_what_runs_writes_elsewhere_or_takes_memory_does_not_hold(tmp_path: Path):
    """The watch itself. In a process of its own: its audit hook cannot be taken away."""
    (tmp_path / "inside").mkdir()
    command = [sys.executable, "-c", WATCHED, str(tmp_path), str(tmp_path / "inside")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=child_environment())
    said = done.stdout.split("\n")
    elsewhere = "reached out of its folder"
    assert said[:5] == ["executed", elsewhere, elsewhere, "too much memory", "read"]


def test_an_error_that_does_not_name_the_file_does_not_hold():
    def refuse(text: str) -> str:
        raise ValueError(text)

    assert judge("", lambda: refuse("a.rec is bad"), (), named="a.rec").held
    assert not judge("", lambda: refuse("it is bad"), (), named="a.rec").held
    assert not judge("", lambda: refuse("a.rec" * 10_000), (), named="a.rec").held

    def wrong() -> str:
        raise BrokenPromiseError("other pixels")

    assert judge("", wrong, (), named="a.rec").outcome == "wrong result"
    assert judge("", lambda: str(1 // 0), (), named="").outcome == "another error"
    assert judge("", lambda: "x".encode("ascii").decode("utf-16"), (), named="").outcome == "another error"


def test_mutations_follow_from_their_seed():
    body = bytes(range(256)) * 4
    for mutate in (damage_bytes, damage_text):
        first, again, other = (
            [mutate(np.random.default_rng((seed, n)), body, [body, b"abc"]) for n in range(40)] for seed in (1, 1, 2)
        )
        assert first == again != other
        assert len({kind for kind, _ in first}) > 8


def test_the_command_itself_answers_a_hostile_file_in_one_message(tmp_path: Path):
    """In processes, as users start them; the trials above call the same entry point."""
    (tmp_path / "evil.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.")
    (tmp_path / "bomb.yaml").write_bytes(b"[" * 100_000)
    for command in (["convert", "evil.pth", "out"], ["train", "bomb.yaml"]):
        found = subprocess.run(
            [forked_python(), "-m", "adadistill.recipes.cli", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
        assert command[1] in found.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb.yaml", "evil.pth"]
