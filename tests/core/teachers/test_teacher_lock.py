"""The lock file keeps every entry, says what is wrong with it, and is never half written."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from adadistill.core.teachers import TeacherError
from adadistill.core.teachers.teacher_lock import (
    MAX_LOCK_BYTES,
    LockEntry,
    add_entry,
    check_writable,
    read_lock,
)

COMMIT = "0123456789abcdef" * 2 + "01234567"
SHA = "ab" * 32
HUB = LockEntry(revision=COMMIT, files={"model.safetensors": SHA, "pretrained_model/model.yaml": "cd" * 32})
FOLDER = LockEntry(revision=None, files={"model.pt": SHA})


def _document(**changes: object) -> dict[str, object]:
    return {"version": 1, "teachers": {"a/b": {"revision": COMMIT, "files": {"model.pt": SHA}}}, **changes}


def _entry(**changes: object) -> dict[str, object]:
    return _document(teachers={"a/b": {"revision": COMMIT, "files": {"model.pt": SHA}, **changes}})


def test_what_is_added_is_read_back_in_one_order_and_leaves_nothing_beside(tmp_path: Path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    assert read_lock(one) == {}
    for lock, order in ((one, (("b/b", HUB), ("a", FOLDER))), (other, (("a", FOLDER), ("b/b", HUB)))):
        for name, entry in order:
            add_entry(lock, name, entry)
    assert read_lock(one) == {"b/b": HUB, "a": FOLDER}
    assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "other.json"]


def test_permissions_are_those_of_an_ordinary_file_and_are_kept(tmp_path: Path):
    lock = tmp_path / "teachers.lock.json"
    add_entry(lock, "a/a", HUB)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o644
    lock.chmod(0o664)
    add_entry(lock, "b/b", HUB)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o664


def test_another_entry_of_the_same_source_is_refused_with_both(tmp_path: Path):
    lock = tmp_path / "teachers.lock.json"
    add_entry(lock, "a/a", HUB)
    moved = LockEntry(revision="f" * 40, files=HUB.files)
    with pytest.raises(
        TeacherError, match=rf"another run has just locked `a/a` to revision {COMMIT} .* found revision f"
    ):
        add_entry(lock, "a/a", moved)
    assert read_lock(lock) == {"a/a": HUB}


def _add_many(lock: Path, writer: int, count: int) -> None:
    for number in range(count):
        add_entry(lock, f"writer{writer}/teacher{number}", FOLDER)


def test_writers_at_the_same_time_lose_no_entry(tmp_path: Path):
    lock, writers, count = tmp_path / "teachers.lock.json", 3, 6
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(lock, writer, count)) for writer in range(writers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * writers
    expected = {f"writer{writer}/teacher{number}" for writer in range(writers) for number in range(count)}
    assert read_lock(lock).keys() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["teachers.lock.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock = tmp_path / "teachers.lock.json"
    add_entry(lock, "a/a", HUB)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TeacherError, match="cannot be written: No space left on device"):
        add_entry(lock, "b/b", HUB)
    assert read_lock(lock) == {"a/a": HUB}
    assert [path.name for path in tmp_path.iterdir()] == ["teachers.lock.json"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[" * 200_000, "nested too deeply|recursion"),
        (b'{"teachers": {}}', "it has no `version`"),
        (b'{"version": 1, "version": 1, "teachers": {}}', "the key `version` occurs twice"),
        (
            b'{"version": 1, "teachers": {"a/b": {"revision": null, "files": {"model.pt": "0", "model.pt": "1"}}}}',
            "the key `model.pt` occurs twice",
        ),
        (_document(version=2), "it has version 2, this program reads version 1"),
        (_document(extra=1), "must have `version` and `teachers`, and nothing else"),
        (_document(teachers={"a/b": "x"}), "entry `a/b`: it must have `revision` and `files`"),
        (_entry(revision="main"), "revision must be a commit of 40 hex digits or null, got `main`"),
        (_entry(files={}), "files must map names to sha256"),
        (_entry(files={"model.pt": "ab"}), "the sha256 of `model.pt` must be 64 hex digits, got `ab`"),
    ],
)
def test_what_is_no_lock_file_is_refused_with_its_reason(tmp_path: Path, document: object, message: str):
    lock = tmp_path / "teachers.lock.json"
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    lock.write_bytes(body)
    with pytest.raises(TeacherError, match=message) as error:
        read_lock(lock)
    assert str(lock) in str(error.value)
    with pytest.raises(TeacherError, match=message):
        add_entry(lock, "c/d", HUB)
    assert lock.read_bytes() == body


def test_a_file_beyond_the_limit_and_a_pipe_are_refused_and_not_read(tmp_path: Path):
    lock = tmp_path / "teachers.lock.json"
    with lock.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it all would not end well
    with pytest.raises(TeacherError, match=f"larger than {MAX_LOCK_BYTES:,} bytes"):
        read_lock(lock)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(TeacherError, match="no regular file"):
        read_lock(tmp_path / "pipe.json")


def test_a_lock_file_that_cannot_be_written_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(TeacherError, match=r"there is no folder .*missing"):
        check_writable(tmp_path / "missing" / "teachers.lock.json")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write where a mode says no
    with pytest.raises(TeacherError, match="its folder cannot be written"):
        check_writable(tmp_path / "teachers.lock.json")
