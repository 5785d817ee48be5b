"""Building: whatever kills a build and however many processes share it, the finished files are the same bytes."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_cache import (
    NAMES,
    TEACHER,
    block_rows,
    build,
    contents,
    die,
    end_of_child,
    run_in_child,
    small_header,
    start_child,
    unit_rows,
)

from adadistill.loaders.teacher_cache import (
    PLAIN,
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
    TeacherCache,
    create_or_resume,
    writer,
)

CHANGES_THE_DISK = ("open", "mkdir", "ftruncate", "pwrite", "fsync", "fdatasync", "posix_fallocate", "rename")


@pytest.fixture
def finished(tmp_path) -> dict[str, bytes]:
    """What an uninterrupted build leaves."""
    return contents(build(tmp_path / "finished"))


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


def _die_before(real, args):
    die()


def _die_halfway(real, args):
    """A write that the kill cuts in two; other calls are done and then the process dies."""
    if real.__name__ == "pwrite":
        handle, body, offset = args
        real(handle, body[: len(body) // 2], offset)
    else:
        real(*args)
    die()


# ---- killed


@pytest.mark.parametrize("death", [_die_before, _die_halfway])
def test_killed_at_any_call_a_build_resumes_to_the_same_bytes(tmp_path, finished, death):
    number, killed = 0, True
    while killed:
        number += 1
        folder = tmp_path / f"killed-{number}"

        def dying_build(folder=folder, number=number):
            _at_call(number, death)
            build(folder)

        killed = run_in_child(dying_build) == -signal.SIGKILL
        build(folder)
        assert contents(folder) == finished, f"killed at call {number}"
    assert number > 30, "the build makes more calls than that"


def test_killed_thirty_times_a_build_ends_with_the_same_bytes_and_repeats_one_block_a_kill(tmp_path):
    header = small_header(num_records=200)  # 40 blocks
    rows = unit_rows(header)
    expected = contents(build(tmp_path / "finished", header))
    folder, log = tmp_path / "killed", tmp_path / "computed"
    rng = np.random.default_rng(0)

    def dying_build(number):
        with create_or_resume(folder, header, main=True) as cache, log.open("ab", buffering=0) as computed:
            _at_call(number, _die_halfway)
            for block in cache.pending().tolist():
                computed.write(bytes([block]))
                cache.write_block(block, block_rows(header, rows, block))

    kills = 0
    while run_in_child(lambda: dying_build(int(rng.integers(1, 9)))) == -signal.SIGKILL:
        kills += 1
    assert contents(folder) == expected
    assert kills >= 30
    computed = log.read_bytes()
    assert set(computed) == set(range(40))
    assert len(computed) <= 40 + kills, "a kill costs one block at most"


def test_killed_from_outside_at_random_moments_a_build_resumes_to_the_same_bytes(tmp_path):
    header = small_header(num_records=1000)
    expected = contents(build(tmp_path / "finished", header))
    folder = tmp_path / "killed"
    rng = np.random.default_rng(1)
    for _ in range(10):
        pid = start_child(lambda: build(folder, header))
        time.sleep(float(rng.uniform(0.0, 0.03)))
        os.kill(pid, signal.SIGKILL)
        end_of_child(pid)
    build(folder, header)
    assert contents(folder) == expected


def test_killed_while_a_block_is_written_again_no_slot_vouches_for_mixed_rows(tmp_path, caplog):
    header = small_header()
    other = unit_rows(header, seed=9)
    number, killed = 0, True
    while killed:
        number += 1
        folder = build(tmp_path / f"rewritten-{number}")

        def dying_write(folder=folder, number=number):
            with create_or_resume(folder, header, main=True) as cache:
                _at_call(number, _die_before)
                cache.write_block(2, block_rows(header, other, 2))

        killed = run_in_child(dying_write) == -signal.SIGKILL
        with create_or_resume(folder, header, main=True) as cache:
            assert cache.pending().tolist() in ([], [2])
    assert number == 7, "empty slot, sync, rows, sync, slot, sync"
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


def test_the_header_gets_its_name_when_everything_else_is_on_disk(tmp_path, monkeypatch):
    log = _logged_calls(monkeypatch)
    create_or_resume(tmp_path / "cache", small_header(), main=True).close()
    assert log == [
        ("pwrite", "header.json.partial"),
        ("fsync", "header.json.partial"),
        ("posix_fallocate", "embeddings.bin"),
        ("fsync", "embeddings.bin"),
        ("posix_fallocate", "blocks.bin"),
        ("fsync", "blocks.bin"),
        ("fsync", "cache"),
        ("rename", "header.json.partial"),
        ("fsync", "cache"),
        ("fsync", tmp_path.name),
    ]


def test_rows_are_on_disk_before_their_slot_says_so(tmp_path, monkeypatch):
    header = small_header()
    written = [("pwrite", "embeddings.bin"), ("fdatasync", "embeddings.bin")]
    marked = [("pwrite", "blocks.bin"), ("fdatasync", "blocks.bin")]
    with create_or_resume(tmp_path / "cache", header, main=True) as cache:
        log = _logged_calls(monkeypatch)
        cache.write_block(1, block_rows(header, unit_rows(header), 1))
        assert log == written + marked
        log.clear()
        cache.write_block(1, block_rows(header, unit_rows(header, seed=1), 1))
        assert log == marked + written + marked, "first it is marked as not done"


# ---- failing calls


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_when_any_call_fails_the_error_names_the_cache_and_the_build_resumes(tmp_path, finished, monkeypatch, code):
    number, failed = 0, True

    def fail(real, args):
        raise OSError(code, os.strerror(code))

    while failed:
        number += 1
        folder = tmp_path / f"failed-{number}"
        with monkeypatch.context() as patch:
            for name in CHANGES_THE_DISK:
                patch.setattr(os, name, getattr(os, name))  # so that leaving the context undoes `_at_call`
            calls = _at_call(number, fail)
            try:
                build(folder)
                text = None
            except CacheError as error:
                text = str(error)
        failed = len(calls) >= number
        assert text is None or str(folder) in text
        assert failed == (text is not None), "no failing call is passed over"
        build(folder)
        assert contents(folder) == finished, f"failed at call {number}"
    assert number > 30


def test_a_disk_without_room_says_so_before_any_work_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    header = small_header()
    needed = header.data_bytes + 16 * 5 + len(header.to_bytes())
    with pytest.raises(CacheError, match=rf"No space left.*embeddings\.bin.*needs {needed:,} bytes"):
        create_or_resume(tmp_path / "new", header, main=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheError, match="No space left"):
        create_or_resume(tmp_path / "empty", header, main=True)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_limit_on_file_sizes_is_met_when_the_cache_is_begun(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(CacheError, match="It needs 3,"):
            create_or_resume(tmp_path / "cache", small_header(num_records=100_000, block_records=100), main=True)

    assert run_in_child(limited) == 0
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_room_gives_the_same_bytes(tmp_path, finished, monkeypatch, code):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    assert contents(build(tmp_path / "cache")) == finished


def test_the_whole_size_is_on_disk_from_the_beginning(tmp_path):
    header = small_header(num_records=100_000, block_records=1000)
    with create_or_resume(tmp_path / "cache", header, main=True):
        found = (tmp_path / "cache" / "embeddings.bin").stat()
    assert found.st_size == header.data_bytes
    assert found.st_blocks * 512 >= header.data_bytes, "room is reserved, not only promised"


def test_a_write_that_fails_names_the_block_and_leaves_it_undone(tmp_path, monkeypatch):
    header = small_header()
    with create_or_resume(tmp_path / "cache", header, main=True) as cache:
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(os, "pwrite", full)
            with pytest.raises(CacheError, match=r"block 1 \(records \[5, 10\).*No space left.*start the build again"):
                cache.write_block(1, block_rows(header, unit_rows(header), 1))
        assert cache.pending().tolist() == [0, 1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it():
    with tempfile.TemporaryDirectory() as place:  # outside tmp_path, which other users cannot enter
        folder = Path(place) / "cache"
        folder.mkdir()
        Path(place).chmod(0o755)
        folder.chmod(0o555)

        def as_nobody():
            if os.geteuid() == 0:  # root writes anywhere
                os.setegid(65534)
                os.seteuid(65534)
            with pytest.raises(CacheError, match=f"{folder} cannot be written.*Permission denied"):
                create_or_resume(folder, small_header(), main=True)

        assert run_in_child(as_nobody) == 0
        assert list(folder.iterdir()) == []


# ---- several processes


def test_processes_that_share_the_blocks_write_the_same_bytes(tmp_path, finished):
    header = small_header()
    rows = unit_rows(header)
    folder = tmp_path / "cache"

    def write_share(rank):
        with create_or_resume(folder, header, main=False) as cache:
            for block in cache.pending().tolist()[::-1]:
                if block % 3 == rank:
                    cache.write_block(block, block_rows(header, rows, block))

    with create_or_resume(folder, header, main=True) as cache:
        children = [start_child(lambda rank=rank: write_share(rank)) for rank in (1, 2)]
        for block in (0, 3):
            cache.write_block(block, block_rows(header, rows, block))
        assert [end_of_child(pid) for pid in children] == [0, 0]
    assert contents(folder) == finished


def test_threads_write_different_blocks_at_the_same_time(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    header = small_header(num_records=400)
    rows = unit_rows(header)
    expected = contents(build(tmp_path / "finished", header))
    with create_or_resume(tmp_path / "cache", header, main=True) as cache, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda block: cache.write_block(block, block_rows(header, rows, block)), range(80)))
    assert contents(tmp_path / "cache") == expected


@pytest.mark.parametrize("main", [True, False])
def test_a_second_build_is_refused_until_every_writer_of_the_first_is_dead(tmp_path, finished, main):
    folder = tmp_path / "cache"
    first = create_or_resume(folder, small_header(), main=True)
    ready, tell = os.pipe()

    def hold():
        held = create_or_resume(folder, small_header(), main=main)
        os.write(tell, b"!")
        time.sleep(60)
        held.close()

    if main:
        first.close()
    pid = start_child(hold)
    assert os.read(ready, 1) == b"!"
    first.close()  # the other one lives on
    with pytest.raises(CacheError, match="another build is running"):
        create_or_resume(folder, small_header(), main=True)
    os.kill(pid, signal.SIGKILL)
    end_of_child(pid)
    assert contents(build(folder)) == finished


def test_of_builds_that_begin_together_one_at_a_time_gets_the_folder(tmp_path, finished):
    for attempt in range(8):
        folder = tmp_path / f"cache-{attempt}"
        go, tell = os.pipe()

        def begin(folder=folder, go=go, tell=tell):
            os.close(tell)
            os.read(go, 1)  # until the parent closes its end
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            build(folder)

        children = [start_child(begin) for _ in range(4)]
        os.close(tell)
        ends = [end_of_child(pid) for pid in children]
        os.close(go)
        assert 0 in ends
        assert set(ends) <= {0, 3}
        assert contents(folder) == finished


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


def test_a_build_that_finishes_while_another_is_about_to_begin_keeps_its_blocks(tmp_path, finished, monkeypatch):
    folder = tmp_path / "cache"
    happened = _once(
        monkeypatch, os, "open", lambda path, *_: Path(path).name == "header.json.partial", lambda: build(folder)
    )
    with create_or_resume(folder, small_header(), main=True) as late:
        assert late.pending().size == 0
    assert happened
    assert contents(folder) == finished


@pytest.mark.parametrize("other", ["finishes", "gives up"])
def test_the_file_that_is_locked_is_the_one_that_has_the_name(tmp_path, finished, monkeypatch, other):
    folder = tmp_path / "cache"
    event = (lambda: build(folder)) if other == "finishes" else (folder / "header.json.partial").unlink
    happened = _once(monkeypatch, writer.fcntl, "flock", lambda *_: True, event)
    assert contents(build(folder)) == finished
    assert happened


@pytest.mark.parametrize("torn", [b"", b'{\n  "block', b"x" * 5000])
def test_a_torn_beginning_is_begun_again(tmp_path, finished, torn):
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "header.json.partial").write_bytes(torn)
    (folder / "embeddings.bin").write_bytes(b"left over from a header that asked for more" * 100)
    assert contents(build(folder)) == finished


def test_a_build_that_lost_the_race_and_was_killed_leaves_nothing(tmp_path, finished):
    folder = tmp_path / "cache"
    create_or_resume(folder, small_header(), main=True).close()
    (folder / "header.json.partial").write_bytes(b"")
    assert contents(build(folder)) == finished


def test_others_open_what_the_main_process_has_made_and_nothing_else(tmp_path):
    with pytest.raises(CacheMissingError, match="no cache at"):
        create_or_resume(tmp_path / "cache", small_header(), main=False)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    with pytest.raises(CacheMissingError, match=r"holds no header\.json"):
        create_or_resume(tmp_path / "cache", small_header(), main=False)
    (tmp_path / "cache" / "header.json.partial").write_bytes(b"")
    with pytest.raises(CacheIncompleteError, match="stopped as it began"):
        create_or_resume(tmp_path / "cache", small_header(), main=False)
    build(tmp_path / "cache")
    with create_or_resume(tmp_path / "cache", small_header(), main=True):
        with create_or_resume(tmp_path / "cache", small_header(), main=False) as joined:
            assert not joined.pending().size
        with pytest.raises(CacheMismatchError, match="block_records: 5 stored, 6 wanted"):
            create_or_resume(tmp_path / "cache", small_header(block_records=6), main=False)


def test_a_file_system_without_locks_is_written_with_a_warning(tmp_path, finished, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(writer.fcntl, "flock", no_locks)
    assert contents(build(tmp_path / "cache")) == finished
    assert "this file system has no locks" in caplog.text


def test_a_writer_that_is_dropped_gives_up_its_lock(tmp_path):
    dropped = create_or_resume(tmp_path / "cache", small_header(), main=True)
    del dropped
    build(tmp_path / "cache")


# ---- what is already there


@pytest.mark.parametrize(
    "names",
    [
        ("photo.jpg",),
        ("embeddings.bin",),
        ("embeddings.bin", "blocks.bin"),
        ("header.json.partial", "photo.jpg"),
        (".hidden",),
    ],
)
def test_a_folder_with_something_else_is_refused_and_not_touched(tmp_path, names):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"precious")
    with pytest.raises(CacheError, match="not empty and holds no cache"):
        create_or_resume(folder, small_header(), main=True)
    assert contents(folder) == dict.fromkeys(names, b"precious")


def test_a_strangers_header_is_refused_and_nothing_beside_it_is_touched(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    files = {"header.json": b'{"title": "my page"}', "header.json.partial": b"draft", "embeddings.bin": b"rows"}
    for name, body in files.items():
        (folder / name).write_bytes(body)
    with pytest.raises(CacheFormatError, match="no header of a cache"):
        create_or_resume(folder, small_header(), main=True)
    assert contents(folder) == files


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "cache").write_bytes(b"precious")
    with pytest.raises(CacheError, match="is a file; a cache needs a folder"):
        create_or_resume(tmp_path / "cache", small_header(), main=True)
    assert (tmp_path / "cache").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["header.json", "embeddings.bin", "blocks.bin"])
def test_a_writer_does_not_follow_links(tmp_path, name):
    folder = build(tmp_path / "cache")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(CacheError, match="symbolic links"):
        create_or_resume(folder, small_header(), main=True)
    assert (tmp_path / "elsewhere").read_bytes() == before
    TeacherCache(folder).verify()  # a reader does: it cannot do harm


def test_a_beginning_with_a_planted_link_does_not_write_through_it(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (folder / "header.json.partial").touch()
    (folder / "embeddings.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="symbolic links"):
        create_or_resume(folder, small_header(), main=True)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_a_folder_made_beforehand_and_missing_parents_are_fine(tmp_path, finished):
    (tmp_path / "empty").mkdir()
    assert contents(build(tmp_path / "empty")) == finished
    assert contents(build(tmp_path / "a" / "b" / "c")) == finished


def test_another_header_is_refused_with_every_difference_and_nothing_is_written(tmp_path, finished):
    folder = build(tmp_path / "cache")
    other = replace(
        small_header(), views=(PLAIN,), teacher=TEACHER | {"sha256": "99" * 32}, built={"precision": "bfloat16"}
    )
    with pytest.raises(CacheMismatchError) as refused:
        create_or_resume(folder, other, main=True)
    for difference in (
        f"teacher.sha256: '{'ab' * 32}' stored, '{'99' * 32}' wanted",
        "built.precision: 'float32' stored, 'bfloat16' wanted",
        "built.decoder: 'cpu' stored, nothing wanted",
        "views: ",
    ):
        assert difference in str(refused.value)
    assert contents(folder) == finished


@pytest.mark.parametrize("name", ["embeddings.bin", "blocks.bin"])
@pytest.mark.parametrize("change", [-1, 1, None])
def test_a_build_with_a_file_of_a_wrong_size_is_refused(tmp_path, name, change):
    folder = build(tmp_path / "cache")
    path = folder / name
    if change is None:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + change)
    with pytest.raises(CacheDamagedError, match=name):
        create_or_resume(folder, small_header(), main=True)


# ---- blocks


def test_a_finished_cache_has_nothing_pending_and_three_files(tmp_path):
    folder = build(tmp_path / "cache")
    assert tuple(contents(folder)) == NAMES
    with create_or_resume(folder, small_header(), main=True) as cache:
        assert cache.pending().dtype == np.int64
        assert cache.pending().size == 0


def test_pending_blocks_can_be_found_in_shares(tmp_path):
    header = small_header()
    with create_or_resume(tmp_path / "cache", header, main=True) as cache:
        cache.write_block(3, block_rows(header, unit_rows(header), 3))
        assert cache.pending().tolist() == [0, 1, 2, 4]
        assert cache.pending(0, 2).tolist() == [0, 1]
        assert cache.pending(2, 5).tolist() == [2, 4]
        assert cache.pending(3, 4).tolist() == []
        assert cache.pending(5).tolist() == []
        for first, stop in ((-1, 2), (3, 2), (0, 6)):
            with pytest.raises(IndexError, match=r"blocks must be in \[0, 5\)"):
                cache.pending(first, stop)


@pytest.mark.parametrize(
    ("name", "byte"), [("embeddings.bin", 2 * 5 * 32 + 7), ("blocks.bin", 2 * 16), ("blocks.bin", 2 * 16 + 9)]
)
def test_a_damaged_block_is_pending_again_with_a_warning_and_repaired(tmp_path, finished, caplog, name, byte):
    folder = build(tmp_path / "cache")
    body = bytearray((folder / name).read_bytes())
    body[byte] ^= 4
    (folder / name).write_bytes(body)
    with caplog.at_level(logging.WARNING), create_or_resume(folder, small_header(), main=True) as cache:
        assert cache.pending().tolist() == [2]
    assert "1 blocks that were done are damaged" in caplog.text
    assert "block 2 (records [10, 15), bytes [320, 480) of embeddings.bin)" in caplog.text
    assert contents(build(folder)) == finished


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (np.zeros((5, 2, 8), np.float32), r"float16 \(5, 2, 8\), got float32"),
        (np.zeros((3, 2, 8), np.float16), r"got float16 \(3, 2, 8\)"),
        (np.zeros((5, 16), np.float16), r"got float16 \(5, 16\)"),
        ([[1.0]], "got list"),
    ],
)
def test_rows_of_a_wrong_shape_or_dtype_are_refused(tmp_path, rows, reason):
    with (
        create_or_resume(tmp_path / "cache", small_header(), main=True) as cache,
        pytest.raises(ValueError, match=f"block 1 needs {reason}" if "float16 " in reason[:8] else reason),
    ):
        cache.write_block(1, rows)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.0, "has norm"),
        (2.0, "has norm"),
        (float("nan"), "holds values that are not finite"),
        (float("inf"), "holds values that are not finite"),
    ],
)
def test_rows_that_are_no_unit_vectors_are_refused_with_record_and_view(tmp_path, value, reason):
    header = small_header()
    rows = unit_rows(header)[5:10].copy()
    rows[3, 1] = 0.0
    rows[3, 1, 4] = value
    with create_or_resume(tmp_path / "cache", header, main=True) as cache:
        with pytest.raises(CacheError, match=rf"record 8, view 1 \(mirrored\) {reason}"):
            cache.write_block(1, rows)
        assert cache.pending().tolist() == [0, 1, 2, 3, 4]


def test_norms_may_be_off_by_their_tolerance_and_no_more(tmp_path):
    header = small_header(num_records=1, views=(PLAIN,))
    with create_or_resume(tmp_path / "cache", header, main=True) as cache:
        row = np.zeros((1, 1, 8), np.float16)
        for norm in (0.9955, 1.0045):
            row[0, 0, 0] = norm
            cache.write_block(0, row)
        for norm in (0.9945, 1.0055):
            row[0, 0, 0] = norm
            with pytest.raises(CacheError, match="has norm"):
                cache.write_block(0, row)


def test_every_row_of_a_large_block_is_checked(tmp_path):
    header = small_header(num_records=3000, block_records=3000)
    rows = unit_rows(header)
    rows[2999, 1] *= np.float16(0.5)
    with (
        create_or_resume(tmp_path / "cache", header, main=True) as cache,
        pytest.raises(CacheError, match="record 2999, view 1"),
    ):
        cache.write_block(0, rows)


@pytest.mark.parametrize("block", [-1, 5])
def test_a_block_out_of_range_is_refused(tmp_path, block):
    with (
        create_or_resume(tmp_path / "cache", small_header(), main=True) as cache,
        pytest.raises(IndexError, match=rf"got {block}"),
    ):
        cache.write_block(block, np.zeros((5, 2, 8), np.float16))


def test_rows_need_not_be_contiguous_nor_little_endian_in_memory(tmp_path, finished):
    header = small_header()
    rows = np.asfortranarray(unit_rows(header))
    with create_or_resume(tmp_path / "cache", header, main=True) as cache:
        for block in range(5):
            cache.write_block(block, block_rows(header, rows, block))
    assert contents(tmp_path / "cache") == finished


def test_a_closed_writer_refuses_and_closes_again(tmp_path):
    cache = create_or_resume(tmp_path / "cache", small_header(), main=True)
    cache.close()
    cache.close()
    with pytest.raises(ValueError, match="is closed"):
        cache.pending()
    with pytest.raises(ValueError, match="is closed"):
        cache.write_block(0, np.zeros((5, 2, 8), np.float16))
