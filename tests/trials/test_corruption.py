"""Every way of damaging a checkpoint is seen in every file; and the trial would notice if it were not."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from adadistill.core.checkpoints import list_checkpoints, load_checkpoint
from adadistill.core.checkpoints.checked_files import _CheckedReader
from trials import corruption
from trials.corruption import DAMAGES, damage_each_file, write_checkpoints


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "good"
    write_checkpoints(folder)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_any_file_is_found_and_named(name: str, good: Path, tmp_path: Path):
    outcome = damage_each_file(name, DAMAGES[name], good, tmp_path / "damaged", Random(name))
    files = sorted(path.name for path in list_checkpoints(good)[-1].iterdir())
    assert outcome.trials == sum(file.endswith(".json") or "white space" not in name for file in files)
    assert outcome.held == outcome.trials, outcome.failures


def test_a_trial_notices_damage_that_nobody_finds(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_CheckedReader, "finish", lambda self: None)
    outcome = damage_each_file("unseen", DAMAGES["one bit flipped"], good, tmp_path / "damaged", Random(0))
    assert outcome.held < outcome.trials
    assert "was not passed over" in "".join(outcome.failures)


def test_a_trial_notices_a_text_that_names_another_file_and_a_checkpoint_with_other_bits(good: Path, tmp_path: Path):
    def damage_a_neighbour(path: Path, random: Random) -> list[str]:
        DAMAGES["deleted"](path.with_name("model.safetensors"), random)
        return [path.name]

    outcome = damage_each_file("a neighbour", damage_a_neighbour, good, tmp_path / "damaged", Random(0))
    assert outcome.held == 1, "the file itself"
    assert "does not name" in outcome.failures[0]
    steps = [load_checkpoint(path) for path in list_checkpoints(good)]
    assert "other bits" in corruption._what_is_wrong(good, steps[2], {}) or not corruption._same_bits(*steps[:2])
