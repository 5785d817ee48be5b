"""What commit 569d65e wrote (a recipe, records, a teacher, its cache, packed images, a stopped run) still serves.

`written_before/` was made by that commit: 30 faces of 32 pixels, a teacher of three steps, and a student that was
killed after its checkpoint of step 6 of 9. `uninterrupted.jsonl` is the same student's training without the kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adadistill.core.checkpoints.files import read_manifest, write_manifest_text
from adadistill.recipes import cache, data, evaluate, train

WRITTEN = Path(__file__).parent / "written_before"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = shutil.copytree(WRITTEN, tmp_path / "written")
    monkeypatch.chdir(folder)
    return folder


def losses(metrics: Path) -> dict[int, float]:
    rows = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["loss"] for row in rows if row["event"] == "train"}


@pytest.mark.slow
@pytest.mark.parametrize("images", [[], ["data.packed=planes"]], ids=["records", "packed"])
def test_a_stopped_run_is_finished_as_if_it_had_not_stopped(here: Path, images: list[str]) -> None:
    assert train.main(["recipe.yaml", *images, "--out", "run", "--resume", "auto", "--device", "cpu"]) == 0

    expected, got = losses(here / "uninterrupted.jsonl"), losses(here / "run/metrics.jsonl")
    assert sorted(got) == sorted(expected) == list(range(1, 10))
    for step in expected:  # another processor may round otherwise
        assert got[step] == pytest.approx(expected[step], rel=1e-4), f"step {step}"


def test_a_run_that_stored_no_such_key_goes_on_and_one_of_another_value_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe lies in the checkpoint; what it does not hold counts as its default."""
    checkpoint = here / "run/checkpoints/step-00000006"
    rewrite_recipe(checkpoint, lambda text: text.replace("  decay: all\n", "").replace("  warmup: squared\n", ""))
    assert train.main(["recipe.yaml", "--out", "run", "--resume", "auto", "--device", "cpu"]) == 0

    again = shutil.copytree(WRITTEN, here / "again")
    rewrite_recipe(
        again / "run/checkpoints/step-00000006",
        lambda text: text.replace("gamma: 0.1", "gamma: 0.2").replace("  decay: all\n", "  decay: all\n  lost: 3\n"),
    )
    capsys.readouterr()
    assert train.main(["recipe.yaml", "--out", "again/run", "--resume", "auto", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "optim.gamma: 0.2 != 0.1" in said
    assert "optim.lost: 3 != (no such key)" in said


def rewrite_recipe(checkpoint: Path, change: Callable[[str], str]) -> None:
    """Change the recipe inside a checkpoint, as another version would have written it."""
    path = checkpoint / "state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    assert change(state["recipe"]) != state["recipe"]
    state["recipe"] = change(state["recipe"])
    data = json.dumps(state).encode()
    path.write_bytes(data)
    manifest = read_manifest(checkpoint)
    files = [
        replace(file, size=len(data), sha256=hashlib.sha256(data).hexdigest()) if file.name == path.name else file
        for file in manifest.files
    ]
    (checkpoint / "MANIFEST.json").write_bytes(write_manifest_text(replace(manifest, files=tuple(files))))


def test_a_checkpoint_is_scored_under_the_same_keys(here: Path) -> None:
    assert evaluate.main(["run", "--sets", "records/pairs.bin", "--device", "cpu", "--out", "scores"]) == 0

    then = json.loads((here / "scores.json").read_text(encoding="utf-8"))
    now = json.loads((here / "scores/verification-step-00000006.json").read_text(encoding="utf-8"))
    assert now.keys() >= then.keys()
    assert now["model_sha256"] == then["model_sha256"]
    assert now["sets"]["pairs"].keys() >= then["sets"]["pairs"].keys()
    assert now["sets"]["pairs"]["auc"] == pytest.approx(then["sets"]["pairs"]["auc"], abs=0.02)


def test_the_cache_still_verifies(here: Path) -> None:
    assert cache.main(["verify", "cache"]) == 0


def test_images_are_packed_to_the_same_bytes(here: Path) -> None:
    assert data.main(["pack", "records/train.rec", "packed_now", "--image-size", "32", "--verify"]) == 0

    then = {path.name: path.read_bytes() for path in (here / "planes").iterdir()}
    assert {path.name: path.read_bytes() for path in (here / "packed_now").iterdir()} == then
