"""Building: whatever kills a build and however many processes share it, the finished files are the same bytes."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from small_cache import contents, die, end_of_child, run_in_child, start_child
from small_stores import RECORDS, PackedFace, block_2, build

from adadistill.loaders.block_store.errors import (
    StoreError,
    StoreIncompleteError,
    StoreMissingError,
)

CHANGES_THE_DISK = ("open", "mkdir", "ftruncate", "pwrite", "fsync", "fdatasync", "posix_fallocate", "rename")


def _at_call(number: int, event) -> list[str]:
    """Patch this process's `os` so that the `number`-th call that changes the disk makes `event(call, args)` happen.

    Returns the names of the calls made so far, which goes on growing.
    """
    calls: list[str] = []
    for name in CHANGES_THE_DISK:
        _patch(name, getattr(os, name), number, event, calls)
    return calls


def _patch(name, real, number, event, calls):
    def patched(*args, **kwargs):
        calls.append(name)
        if len(calls) == number:
            event(real, args)
        return real(*args, **kwargs)

    setattr(os, name, patched)


def _die_halfway(real, args):
    """A write that the kill cuts in two; other calls are done, and then the process dies."""
    if real.__name__ == "pwrite":
        handle, body, offset = args
        real(handle, body[: len(body) // 2], offset)
    else:
        real(*args)
    die()


# ---- killed


@pytest.mark.slow
def test_killed_at_any_call_a_build_resumes_to_the_same_bytes(face, tmp_path):
    header = face.header(**face.two_blocks)
    finished = contents(build(face, tmp_path / "finished", header))
    number, killed = 0, True
    while killed:
        number += 3  # a fork takes a tenth of a second; every single call fails in `test_when_any_call_fails_...`
        folder = tmp_path / f"killed-{number}"

        def dying_build(folder=folder, number=number):
            _at_call(number, _die_halfway)
            build(face, folder, header)

        killed = run_in_child(dying_build) == -signal.SIGKILL
        build(face, folder, header)
        assert contents(folder) == finished, f"killed at call {number}"
    assert number > 20, "the build makes more calls than that"


def test_killed_while_a_block_is_written_again_no_slot_vouches_for_mixed_rows(face, tmp_path, caplog):
    number, killed = 0, True
    folder = build(face, tmp_path / "store")
    while killed:
        number += 1

        def dying_write(number=number):
            with face.writer(folder, face.header(), main=True) as writer:
                _at_call(number, lambda real, args: die())
                face.write(writer, 2, seed=number)

        killed = run_in_child(dying_write) == -signal.SIGKILL
        with face.writer(folder, face.header(), main=True) as writer:
            pending = writer.pending().tolist()
            assert pending in ([], [2])
            if pending:
                face.write(writer, 2)
    assert number == 5 + 2 * len(face.header().block_spans(2)), "empty slot, sync, rows, sync, ..., slot, sync"
    assert not caplog.records, "nothing was found damaged: the slot was emptied first"


def _logged_calls(monkeypatch) -> list[tuple[str, str]]:
    """(call, file name) of every later call that decides what a power cut leaves."""
    log: list[tuple[str, str]] = []

    def log_calls_of(name):
        real = getattr(os, name)

        def logged(first, *rest):
            path = first if name == "rename" else os.readlink(f"/proc/self/fd/{first}")
            log.append((name, Path(path).name))
            return real(first, *rest)

        monkeypatch.setattr(os, name, logged)

    for name in ("pwrite", "fsync", "fdatasync", "posix_fallocate", "rename"):
        log_calls_of(name)
    return log


def test_the_header_gets_its_name_when_everything_else_is_on_disk(face, tmp_path, monkeypatch):
    log = _logged_calls(monkeypatch)
    face.writer(tmp_path / "store", face.header(), main=True).close()
    expected = [("pwrite", "header.json.partial"), ("fsync", "header.json.partial")]
    for file in face.header().files():
        expected += [("posix_fallocate", file.name), *[("pwrite", file.name)] * bool(file.head), ("fsync", file.name)]
    assert log == [
        *expected,
        ("posix_fallocate", "blocks.bin"),
        ("fsync", "blocks.bin"),
        ("fsync", "store"),
        ("rename", "header.json.partial"),
        ("fsync", "store"),
        ("fsync", tmp_path.name),
    ]


def test_rows_are_on_disk_before_their_slot_says_so(face, tmp_path, monkeypatch):
    names = [span.name for span in face.header().block_spans(1)]
    written = [(call, name) for name in names for call in ("pwrite", "fdatasync")]
    marked = [("pwrite", "blocks.bin"), ("fdatasync", "blocks.bin")]
    with face.writer(tmp_path / "store", face.header(), main=True) as writer:
        log = _logged_calls(monkeypatch)
        face.write(writer, 1)
        assert log == written + marked
        log.clear()
        face.write(writer, 1, seed=1)
        assert log == marked + written + marked, "first it is marked as not done"


# ---- failing calls


def test_when_any_call_fails_the_error_names_the_store_and_the_build_resumes(tmp_path, monkeypatch):
    face, number, failed = PackedFace(), 0, True
    header = face.header(**face.two_blocks)
    finished = contents(build(face, tmp_path / "finished", header))

    def fail(real, args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    while failed:
        number += 1
        folder = tmp_path / f"failed-{number}"
        with monkeypatch.context() as patch:
            for name in CHANGES_THE_DISK:
                patch.setattr(os, name, getattr(os, name))  # so that leaving the context undoes `_at_call`
            calls = _at_call(number, fail)
            try:
                build(face, folder, header)
                text = None
            except StoreError as error:
                text = str(error)
        failed = len(calls) >= number
        assert text is None or str(folder) in text
        assert failed == (text is not None), "no failing call is passed over"
        build(face, folder, header)
        assert contents(folder) == finished, f"failed at call {number}"
    assert number > 20


def test_a_disk_without_room_says_so_before_any_work_and_leaves_nothing(face, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    header = face.header()
    files = header.files()
    needed = sum(file.size for file in files) + 16 * 5 + len(header.to_bytes())
    with pytest.raises(StoreError, match=rf"No space left.*{files[0].name}.*needs {needed:,} bytes \(23 "):
        face.writer(tmp_path / "new", header, main=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="No space left"):
        face.writer(tmp_path / "empty", header, main=True)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_file_system_that_cannot_reserve_room_or_lock_gives_the_same_bytes(
    face, tmp_path, finished, monkeypatch, caplog
):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refused)
    monkeypatch.setattr(fcntl, "flock", refused)
    assert contents(build(face, tmp_path / "store")) == finished
    assert "this file system has no locks" in caplog.text


def test_a_write_that_fails_names_the_block_and_leaves_it_undone(face, tmp_path, monkeypatch):
    with face.writer(tmp_path / "store", face.header(), main=True) as writer:
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "pwrite", full)
            wanted = rf"block 1 \(records \[5, 10\).*No space left.*start the {face.making} again"
            with pytest.raises(StoreError, match=wanted):
                face.write(writer, 1)
        assert writer.pending().tolist() == [0, 1, 2, 3, 4]


# ---- several processes


@pytest.mark.parametrize("main", [True, False])
def test_a_second_build_is_refused_until_every_writer_of_the_first_is_dead(face, tmp_path, finished, main):
    if not main and not face.header().kind.ranks_lock:
        pytest.skip("ranks that do not speak to each other hold no lock")
    folder = tmp_path / "store"
    first = face.writer(folder, face.header(), main=True)
    ready, tell = os.pipe()

    def hold():
        held = face.writer(folder, face.header(), main=main)
        os.write(tell, b"!")
        time.sleep(60)
        held.close()

    if main:
        first.close()
    pid = start_child(hold)
    assert os.read(ready, 1) == b"!"
    first.close()  # the other one lives on
    with pytest.raises(StoreError, match=f"another {face.making} is running"):
        face.writer(folder, face.header(), main=True)
    os.kill(pid, signal.SIGKILL)
    end_of_child(pid)
    assert contents(build(face, folder)) == finished


def _once(monkeypatch, owner, name, concerns, event):
    """Let `event()` happen just before the first call of `owner.name` that `concerns(*args)`."""
    real, happened = getattr(owner, name), []

    def patched(*args, **kwargs):
        if not happened and concerns(*args):
            happened.append(True)
            event()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    return happened


def test_a_build_that_finishes_while_another_is_about_to_begin_keeps_its_blocks(face, tmp_path, finished, monkeypatch):
    folder = tmp_path / "store"
    begins = lambda path, *_: Path(path).name == "header.json.partial"  # noqa: E731
    happened = _once(monkeypatch, os, "open", begins, lambda: build(face, folder))
    with face.writer(folder, face.header(), main=True) as late:
        assert late.pending().size == 0
    assert happened
    assert contents(folder) == finished


@pytest.mark.parametrize("other", ["finishes", "gives up"])
def test_the_file_that_is_locked_is_the_one_that_has_the_name(face, tmp_path, finished, monkeypatch, other):
    folder = tmp_path / "store"
    event = (lambda: build(face, folder)) if other == "finishes" else (folder / "header.json.partial").unlink
    happened = _once(monkeypatch, fcntl, "flock", lambda *_: True, event)
    assert contents(build(face, folder)) == finished
    assert happened


def test_others_open_what_the_main_process_has_made_and_nothing_else(face, tmp_path):
    folder = tmp_path / "store"
    with pytest.raises(StoreMissingError, match=f"no {face.name} at"):
        face.writer(folder, face.header(), main=False)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(StoreMissingError, match=r"holds no header\.json"):
        face.writer(folder, face.header(), main=False)
    (folder / "header.json.partial").write_bytes(b"")
    with pytest.raises(StoreIncompleteError, match="stopped as it began"):
        face.writer(folder, face.header(), main=False)
    build(face, folder)
    with face.writer(folder, face.header(), main=True):
        with face.writer(folder, face.header(), main=False) as joined:
            assert not joined.pending().size
        with pytest.raises(StoreError, match="block_records: 5 stored, 6 wanted"):
            face.writer(folder, face.header(block_records=6), main=False)


def test_a_writer_that_is_dropped_gives_up_its_lock_and_its_files(face, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    dropped = face.writer(tmp_path / "store", face.header(), main=True)
    del dropped
    build(face, tmp_path / "store")
    assert len(os.listdir("/proc/self/fd")) == before


# ---- what is already there


def test_a_torn_beginning_is_begun_again_without_its_files(face, tmp_path, finished):
    folder = tmp_path / "store"
    for torn in (b"", b'{\n  "block', b"x" * 5000):
        for path in build(face, folder, face.header(**face.begun_anew[1])).iterdir():
            if path.name in ("header.json", "damaged.json"):
                path.unlink()
        (folder / "header.json.partial").write_bytes(torn)
        (folder / face.rows_file).write_bytes(b"left over from a header that asked for more" * 100)
        assert contents(build(face, folder)) == finished
        for path in folder.iterdir():
            path.unlink()


def test_a_folder_with_something_else_is_refused_and_not_touched(face, tmp_path):
    of_others = [
        ("photo.jpg",), (face.rows_file,), (face.rows_file, "blocks.bin"), ("header.json.partial", "photo.jpg"),
        (".hidden",), ("header.json.partial", face.other),
    ]  # fmt: skip
    for number, names in enumerate(of_others):
        folder = tmp_path / f"mine-{number}"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"precious")
        with pytest.raises(StoreError, match=f"not empty and holds no {face.name}"):
            face.writer(folder, face.header(), main=True)
        assert contents(folder) == dict.fromkeys(names, b"precious")


def test_a_strangers_header_is_refused_and_nothing_beside_it_is_touched(face, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    files = {"header.json": b'{"title": "my page"}', "header.json.partial": b"draft", face.rows_file: b"rows"}
    for name, body in files.items():
        (folder / name).write_bytes(body)
    with pytest.raises(StoreError, match=f"no header of a {face.name}"):
        face.writer(folder, face.header(), main=True)
    assert contents(folder) == files
    (tmp_path / "file").write_bytes(b"precious")
    with pytest.raises(StoreError, match=f"is a file; a {face.name} needs a folder"):
        face.writer(tmp_path / "file", face.header(), main=True)
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_writer_does_not_follow_links(face, tmp_path, built):
    for name in ("header.json", face.rows_file, "blocks.bin"):
        folder = build(face, tmp_path / f"store-{name}")
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(StoreError, match="symbolic links"):
            face.writer(folder, face.header(), main=True)
        assert (tmp_path / name).read_bytes() == before
        face.reader(folder).check()  # a reader does: it cannot do harm
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "header.json.partial").touch()
    (begun / face.rows_file).symlink_to(tmp_path / "header.json")
    with pytest.raises(StoreError, match="symbolic links"):
        face.writer(begun, face.header(), main=True)
    assert (tmp_path / "header.json").read_bytes() == (built / "header.json").read_bytes()


def test_another_header_is_refused_with_every_difference_and_nothing_is_written(face, tmp_path, finished):
    folder = build(face, tmp_path / "store")
    other = face.header(block_records=4, records=RECORDS | {"num_records": 23, "fingerprint": "99" * 32})
    with pytest.raises(StoreError, match=f"holds another {face.name} than") as refused:
        face.writer(folder, other, main=True)
    assert "block_records: 5 stored, 4 wanted" in str(refused.value)
    assert f"records.fingerprint: '{'cd' * 32}' stored, '{'99' * 32}' wanted" in str(refused.value)
    assert contents(folder) == finished


# ---- blocks


def test_a_finished_store_has_nothing_pending_and_no_other_files(face, built, finished):
    assert tuple(finished) == face.files
    with face.writer(built, face.header(), main=True) as writer:
        assert writer.pending().dtype == np.int64
        assert writer.pending().size == 0


def test_pending_blocks_can_be_found_in_shares(face, tmp_path):
    with face.writer(tmp_path / "store", face.header(), main=True) as writer:
        face.write(writer, 3)
        assert writer.pending().tolist() == [0, 1, 2, 4]
        assert writer.missing_blocks() == 4
        assert writer.pending(0, 2).tolist() == [0, 1]
        assert writer.pending(2, 5).tolist() == [2, 4]
        assert writer.pending(3, 4).tolist() == []
        assert writer.pending(5).tolist() == []
        for first, stop in ((-1, 2), (3, 2), (0, 6)):
            with pytest.raises(IndexError, match=r"blocks must be in \[0, 5\)"):
                writer.pending(first, stop)


@pytest.mark.parametrize("where", ["rows", "slot", "labels"])
def test_a_damaged_block_is_pending_again_with_a_warning_and_repaired(face, tmp_path, finished, caplog, where):
    if where == "labels" and face.name == "cache":
        pytest.skip("a cache has no labels")
    folder = build(face, tmp_path / "store")
    name, byte = {
        "rows": (face.rows_file, face.byte_of_block_2), "slot": ("blocks.bin", 2 * 16),
        "labels": ("labels.npy", 128 + 8 * 13),
    }[where]  # fmt: skip
    body = bytearray((folder / name).read_bytes())
    body[byte] ^= 4
    (folder / name).write_bytes(body)
    with caplog.at_level(logging.WARNING), face.writer(folder, face.header(), main=True) as writer:
        assert writer.pending().tolist() == [2]
    assert "1 blocks that were done are damaged" in caplog.text
    assert block_2(caplog.text)
    assert contents(build(face, folder)) == finished


def test_a_block_out_of_range_and_a_closed_writer_are_refused(face, tmp_path):
    writer = face.writer(tmp_path / "store", face.header(), main=True)
    for block in (-1, 5):
        with pytest.raises(IndexError, match=rf"got {block}"):
            face.write(writer, block)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.pending()
    with pytest.raises(ValueError, match="is closed"):
        face.write(writer, 0)
