"""Reading checkpoints: every flipped bit is seen, the previous one is used, hostile directories are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from adadistill.core.checkpoints import CheckpointWriter, Snapshot
from adadistill.core.checkpoints.files import (
    CheckpointError,
    Manifest,
    list_checkpoints,
    load_checkpoint,
    newest_valid_checkpoint,
    peek_checkpoint,
    resolve_checkpoint,
    verify_checkpoint,
    write_manifest_text,
)

FILES = (
    "MANIFEST.json",
    "centres-00-of-01.safetensors",
    "model.safetensors",
    "optimiser.json",
    "optimiser.safetensors",
    "rank-00-of-01.json",
    "state.json",
)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with the checkpoints of steps 1, 2 and 3; each tensor holds the step."""
    with CheckpointWriter(tmp_path / "checkpoints", keep=3) as writer:
        for step in (1, 2, 3):
            writer.save(step, snapshot_of(step))
    return tmp_path


def snapshot_of(step: int) -> Snapshot:
    return Snapshot(
        model={"weight": torch.full((4, 3), float(step))},
        optimiser={"momentum.weight": torch.full((4, 3), float(step))},
        optimiser_json={"lr": 0.1},
        row_sharded={"centres": torch.full((5, 2), float(step))},
        rank_state={"rng": "00ff"},
        state={"step": step},
    )


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_the_newest_valid_checkpoint_is_loaded(run):
    checkpoint, skipped = newest_valid_checkpoint(run)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.state, skipped) == (3, {"step": 3}, [])
    assert torch.equal(checkpoint.row_sharded["centres"], torch.full((5, 2), 3.0))
    assert sorted(path.name for path in checkpoint.path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_in_any_file_is_named_and_the_previous_checkpoint_used(run, name):
    path = step_folder(run, 3) / name
    body = path.read_bytes()
    for position in range(0, len(body), max(1, len(body) // 16)):
        flipped = bytearray(body)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)

        checkpoint, skipped = newest_valid_checkpoint(run)

        assert checkpoint is not None
        assert checkpoint.step == 2
        assert [entry[0] for entry in skipped] == [step_folder(run, 3)]
        assert name in skipped[0][1]
        with pytest.raises(CheckpointError, match=name):
            verify_checkpoint(step_folder(run, 3))


def test_a_flip_anywhere_in_a_manifest_is_seen(run):
    path = step_folder(run, 3) / "MANIFEST.json"
    body = path.read_bytes()
    for bit in range(0, len(body) * 8, 13):  # coprime to 8, so that every position within a byte has its turn
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_checkpoint(step_folder(run, 3), model_only=True)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_truncated_or_longer_file_is_named(run, name):
    path = step_folder(run, 3) / name
    body = path.read_bytes()
    for damaged in (body[:-1], body[: len(body) // 2], b"", body + b"\0", None):
        path.unlink(missing_ok=True)
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name) as loaded:
            load_checkpoint(step_folder(run, 3))
        with pytest.raises(CheckpointError) as peeked:
            peek_checkpoint(step_folder(run, 3))
        assert str(peeked.value) == str(loaded.value)
        assert resolve_checkpoint(run) == step_folder(run, 2)


def test_a_glance_at_a_checkpoint_gives_its_state_without_reading_a_tensor(run):
    model = step_folder(run, 3) / "model.safetensors"
    model.write_bytes(bytes(model.stat().st_size))
    glance = peek_checkpoint(step_folder(run, 3))
    assert (glance.step, glance.state, glance.model) == (3, {"step": 3}, {})


def test_loading_the_model_alone_reads_nothing_else(run):
    (step_folder(run, 3) / "centres-00-of-01.safetensors").unlink()
    checkpoint = load_checkpoint(step_folder(run, 3), model_only=True)
    assert torch.equal(checkpoint.model["weight"], torch.full((4, 3), 3.0))
    assert checkpoint.row_sharded == {}


def test_a_path_may_be_a_checkpoint_a_run_or_its_checkpoints_folder(run):
    newest = step_folder(run, 3)
    assert resolve_checkpoint(newest) == newest
    assert resolve_checkpoint(run) == newest
    assert resolve_checkpoint(run / "checkpoints") == newest
    shutil.copytree(newest, run / "teacher")
    assert resolve_checkpoint(run / "teacher") == run / "teacher"
    assert load_checkpoint(run / "teacher").step == 3


def test_a_path_without_a_valid_checkpoint_says_why(run, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        resolve_checkpoint(tmp_path / "nowhere")
    for step in (1, 2, 3):
        (step_folder(run, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)step-00000003: state.json is missing.*step-00000001"):
        resolve_checkpoint(run)
    assert newest_valid_checkpoint(tmp_path / "nowhere") == (None, [])


def test_only_directories_with_our_names_are_listed(run):
    folder = run / "checkpoints"
    for name in (".tmp-step-00000009-abc-1", "step-9", "best", ".trash-step-00000001-abc-1", "step-00000009x"):
        (folder / name).mkdir()
    (folder / "step-00000010").write_text("a file")
    (folder / "step-00000011").symlink_to(step_folder(run, 3))
    assert [path.name for path in list_checkpoints(run)] == ["step-00000001", "step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("link", "is a symbolic link, which is not followed"), ("file", "is no checkpoint directory")],
)
def test_what_is_called_like_a_checkpoint_and_is_no_directory_is_passed_over_by_name(run, kind, reason):
    last = step_folder(run, 3)
    last.rename(run / "moved")
    if kind == "link":
        last.symlink_to(run / "moved")
    else:
        last.write_text("what a copy that went wrong left")
    checkpoint, skipped = newest_valid_checkpoint(run)
    assert checkpoint is not None
    assert checkpoint.step == 2
    ((path, told),) = skipped
    assert path == last
    assert str(last) in told
    assert reason in told
    assert resolve_checkpoint(run) == step_folder(run, 2)
    assert list_checkpoints(run) == [step_folder(run, 1), step_folder(run, 2)], "nor is it ever deleted"


def test_steps_are_ordered_by_number_also_past_eight_digits(tmp_path):
    for name in ("step-100000000", "step-99999999", "step-00000001"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001", "step-99999999", "step-100000000"]


def test_a_checkpoint_renamed_to_another_step_is_refused(run):
    step_folder(run, 3).rename(step_folder(run, 7))
    with pytest.raises(CheckpointError, match="of step 3, the directory is named for 7"):
        verify_checkpoint(step_folder(run, 7))


def forge(folder: Path, **changes: object) -> None:
    """Write a manifest with consistent hashes over changed content, as someone hostile would."""
    content = json.loads((folder / "MANIFEST.json").read_text())
    content.update(changes)
    records = [_Entry(**entry) if isinstance(entry, dict) else entry for entry in content["files"]]
    manifest = Manifest(step=content["step"], world_size=content["world_size"], attempt="x-1", files=tuple(records))
    (folder / "MANIFEST.json").write_bytes(write_manifest_text(manifest))


class _Entry:
    """A file record with any content."""

    def __init__(self, name: object, size: object, sha256: object) -> None:
        self.name, self.size, self.sha256 = name, size, sha256


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "MANIFEST.json").read_text())["files"]


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b\0", ".hidden", "MANIFEST.json", 3]
)
def test_names_that_leave_the_directory_are_refused(run, name):
    folder = step_folder(run, 3)
    files = entries(folder)
    (run / "checkpoints" / "secret").write_bytes(b"x")
    files[0]["name"] = name
    forge(folder, files=files)
    with pytest.raises(CheckpointError, match="no plain file name"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("size", [-1, 1 << 60, 1.5, "12", True, None])
def test_absurd_sizes_are_refused(run, size):
    folder = step_folder(run, 3)
    files = entries(folder)
    files[0]["size"] = size
    forge(folder, files=files)
    with pytest.raises(CheckpointError, match="gives size of"):
        verify_checkpoint(folder)


def test_a_terabyte_that_the_file_does_not_have_takes_no_memory(run):
    folder = step_folder(run, 3)
    files = entries(folder)
    for entry in files:
        entry["size"] = 1 << 40
    forge(folder, files=files)
    with pytest.raises(CheckpointError, match="1099511627776 expected"):
        load_checkpoint(folder)


def test_symbolic_links_in_a_checkpoint_are_refused(run, tmp_path):
    folder = step_folder(run, 3)
    for name in FILES:
        elsewhere = tmp_path / name
        shutil.move(folder / name, elsewhere)
        os.symlink(elsewhere, folder / name)
        with pytest.raises(CheckpointError, match=f"{name} is a symbolic link"):
            load_checkpoint(folder)
        (folder / name).unlink()
        shutil.move(elsewhere, folder / name)


def test_files_that_do_not_make_up_one_checkpoint_are_refused(run):
    folder = step_folder(run, 3)
    original = entries(folder)
    forge(folder, files=[entry for entry in original if entry["name"] != "optimiser.json"])
    for read in (load_checkpoint, verify_checkpoint):
        with pytest.raises(CheckpointError, match=r"lacks optimiser\.json"):
            read(folder)
    forge(folder, files=[*original, {"name": "extra.pt", "size": 1, "sha256": "0" * 64}])
    with pytest.raises(CheckpointError, match=r"unknown extra\.pt"):
        load_checkpoint(folder)
    forge(folder, files=[*original, original[0]])
    with pytest.raises(CheckpointError, match="lists a file twice"):
        load_checkpoint(folder)
    forge(folder, files=original, world_size=2)
    with pytest.raises(CheckpointError, match=r"lacks|unknown"):
        load_checkpoint(folder)
    forge(folder, files=original, world_size=10**9)
    with pytest.raises(CheckpointError, match="for 1000000000 ranks"):
        load_checkpoint(folder)


def test_another_format_or_version_is_refused_by_that_name(run):
    path = step_folder(run, 3) / "MANIFEST.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(CheckpointError, match="version 2; this release reads version 1"):
        load_checkpoint(step_folder(run, 3))
    path.write_text(json.dumps(content | {"format": "other"}))
    with pytest.raises(CheckpointError, match="format 'other'"):
        load_checkpoint(step_folder(run, 3))


@pytest.mark.parametrize("body", [b"", b"[]", b"\x80\x04K\x01.", b"[" * 100_000, b'{"format": 1e999}', b"9" * 10_000])
def test_manifests_that_are_none_are_refused(run, body):
    (step_folder(run, 3) / "MANIFEST.json").write_bytes(body)
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json"):
        load_checkpoint(step_folder(run, 3))


@pytest.mark.parametrize("key", ["format", "version", "attempt", "step", "extra"])
def test_what_a_manifest_says_is_not_repeated_at_length(run, key):
    content = json.loads((step_folder(run, 3) / "MANIFEST.json").read_text())
    content[key] = "x" * 1_000_000 if key != "extra" else [[["x"] * 1000] * 1000]
    (step_folder(run, 3) / "MANIFEST.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as caught:
        verify_checkpoint(step_folder(run, 3))
    assert len(str(caught.value)) < 1000


def test_something_else_at_the_path_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        load_checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing")
    (tmp_path / "step-00000001").mkdir()
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json is missing"):
        verify_checkpoint(tmp_path / "step-00000001")
