"""Reading: the rows that were written, by record and view, from any process, and only from a sound cache."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_cache import block_rows, build, contents, run_in_child, signed, small_header, unit_rows

from adadistill.loaders.teacher_cache import (
    MIRRORED,
    PLAIN,
    CacheDamagedError,
    CacheFormatError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
    CacheView,
    TeacherCache,
    create_or_resume,
)

ROWS = unit_rows(small_header())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("caches") / "cache")


@pytest.fixture(scope="module")
def cache(folder) -> TeacherCache:
    return TeacherCache(folder)


# ---- gathering


@given(picks=st.lists(st.tuples(st.integers(0, 22), st.integers(0, 1)), max_size=40), use_out=st.booleans())
def test_gathered_rows_are_those_of_plain_indexing(cache, picks, use_out):
    ids, views = (np.array([pick[axis] for pick in picks], np.int64) for axis in (0, 1))
    out = np.full((len(picks), 8), np.nan, np.float16) if use_out else None
    found = cache.gather(ids, views, out)
    assert found.dtype == np.float16
    assert found.shape == (len(picks), 8)
    assert (found is out) == use_out
    np.testing.assert_array_equal(found, ROWS[ids, views])


def test_no_records_give_no_rows(cache):
    none = np.array([], np.int64)
    assert cache.gather(none, none).shape == (0, 8)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_any_integers_are_taken_as_ids(cache, dtype):
    ids, views = np.array([22, 0, 7], dtype), np.array([1, 0, 1], dtype)
    np.testing.assert_array_equal(cache.gather(ids, views), ROWS[[22, 0, 7], [1, 0, 1]])


def test_rows_go_into_a_part_of_a_larger_array(cache):
    whole = np.zeros((6, 20), np.float16)
    cache.gather(np.array([3, 4]), np.array([0, 1]), out=whole[1:5:2, 4:12])
    np.testing.assert_array_equal(whole[1:5:2, 4:12], ROWS[[3, 4], [0, 1]])
    assert np.count_nonzero(whole) == 16


@pytest.mark.parametrize(
    ("ids", "views", "named"),
    [
        ([0, 23, 5], [0, 0, 0], r"record ids must be in \[0, 23\), got 23$"),
        ([-1, 3, 99], [0, 0, 0], r"record ids .*got -1, 99$"),
        (range(100, 109), [0] * 9, r"got 100, 101, 102, 103, 104 and 4 more"),
        ([1], [2], r"view columns must be in \[0, 2\), got 2$"),
        ([1], [-1], r"view columns .*got -1$"),
    ],
)
def test_ids_and_views_out_of_range_are_named_and_nothing_is_read(cache, ids, views, named):
    out = np.zeros((len(ids), 8), np.float16)
    with pytest.raises(IndexError, match=named):
        cache.gather(np.array(ids), np.array(views), out)
    assert not out.any()


def test_huge_unsigned_ids_do_not_wrap_around(cache):
    with pytest.raises(IndexError, match="18446744073709551615"):
        cache.gather(np.array([2**64 - 1], np.uint64), np.array([0]))


@pytest.mark.parametrize(
    ("ids", "views", "reason"),
    [
        (np.zeros((2, 2), np.int64), np.zeros(4, np.int64), r"record ids must be \(n,\) integers, got int64 \(2, 2\)"),
        (np.zeros(2), np.zeros(2, np.int64), "record ids .* got float64"),
        (np.zeros(2, np.int64), np.zeros(2, bool), "view columns .* got bool"),
        (np.zeros(2, np.int64), np.zeros(3, np.int64), "one view for each record id, got 3 for 2"),
    ],
)
def test_what_are_no_ids_is_refused(cache, ids, views, reason):
    with pytest.raises(ValueError, match=reason):
        cache.gather(ids, views)


def test_an_out_that_does_not_fit_is_refused(cache):
    ids = np.array([1, 2])
    locked = np.zeros((2, 8), np.float16)
    locked.flags.writeable = False
    for out in (np.zeros((2, 8), np.float32), np.zeros((3, 8), np.float16), np.zeros((2, 4), np.float16), locked):
        with pytest.raises(ValueError, match=r"out must be writeable float16 \(2, 8\)"):
            cache.gather(ids, ids % 2, out)


def test_rows_handed_out_are_copies(cache):
    first = cache.gather(np.array([4]), np.array([0]))
    first[:] = 0.0
    np.testing.assert_array_equal(cache.gather(np.array([4]), np.array([0])), ROWS[[4], [0]])


# ---- processes, threads, memory


def test_a_pickled_copy_reads_the_same_from_another_directory(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder.parent)
    sent = pickle.dumps(TeacherCache("cache"))
    assert len(sent) < 1000, "the rows do not travel"
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(sent)
    np.testing.assert_array_equal(copy.gather(np.arange(23), np.ones(23, np.int64)), ROWS[:, 1])


def test_a_pickled_copy_of_a_cache_that_was_replaced_is_refused(tmp_path):
    sent = pickle.dumps(TeacherCache(build(tmp_path / "cache")))
    shutil.rmtree(tmp_path / "cache")
    build(tmp_path / "cache", seed=1)
    with pytest.raises(CacheMismatchError, match="was replaced while it was in use"):
        pickle.loads(sent)


def test_a_forked_process_reads_the_same(cache):
    def read():
        np.testing.assert_array_equal(cache.gather(np.arange(23), np.zeros(23, np.int64)), ROWS[:, 0])
        cache.verify()

    assert run_in_child(read) == 0
    cache.verify()  # the child closed its own descriptors only


def test_threads_read_at_the_same_time(cache):
    def read(seed):
        ids = np.random.default_rng(seed).integers(0, 23, 500)
        np.testing.assert_array_equal(cache.gather(ids, ids % 2), ROWS[ids, ids % 2])
        cache.verify()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(40)))


def test_nothing_of_the_rows_is_held_in_memory(tmp_path):
    header = small_header(num_records=16_384, embedding_dim=512, block_records=4096)  # 32 MiB
    build(tmp_path / "cache", header)

    def read():
        before = _private_kib()
        cache = TeacherCache(tmp_path / "cache")
        cache.verify()
        out = np.empty((1024, 512), np.float16)
        for start in range(0, 16_384, 1024):
            cache.gather(np.arange(start, start + 1024), np.ones(1024, np.int64), out)
        grown = _private_kib() - before
        assert grown < 8 * 1024, f"{grown} KiB"

    assert run_in_child(read) == 0


def _private_kib() -> int:
    """Memory of this process that is not shared with a file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    pytest.skip("this kernel does not tell private memory apart")


def test_a_dropped_cache_closes_its_file(folder):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        TeacherCache(folder)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_cache_in_a_folder_that_cannot_be_written_is_read(tmp_path):
    folder = build(tmp_path / "cache")
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555)
    try:
        TeacherCache(folder).verify()
    finally:
        folder.chmod(0o755)


# ---- checking


def test_verify_tells_its_progress_and_checks_the_blocks_it_was_given(tmp_path):
    folder = build(tmp_path / "cache")
    cache = TeacherCache(folder)
    seen: list[int] = []
    cache.verify(progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    _flip(folder / "embeddings.bin", 3 * 160 + 31)
    seen.clear()
    cache.verify(0, 3, progress=seen.append)
    cache.verify(4, progress=seen.append)
    assert seen == [1, 2, 3, 1]
    with pytest.raises(
        CacheDamagedError,
        match=r"embeddings\.bin: block 3 \(records \[15, 20\), bytes \[480, 640\) .* is damaged: crc32 .* expected",
    ):
        cache.verify(2)
    with pytest.raises(CacheDamagedError, match="adadistill cache build RECIPE"):
        cache.verify()
    for first, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(IndexError, match=r"\[0, 5\)"):
            cache.verify(first, stop)


def test_a_file_cut_after_opening_is_found_by_verify(tmp_path):
    folder = build(tmp_path / "cache")
    cache = TeacherCache(folder)
    os.truncate(folder / "embeddings.bin", 23 * 32 - 1)
    with pytest.raises(CacheDamagedError, match=r"block 4 .* the file ends before"):
        cache.verify()


def test_an_unfinished_cache_says_how_much_is_done(tmp_path):
    header = small_header()
    with create_or_resume(tmp_path / "cache", header, main=True) as writer:
        for block in (0, 1, 3):
            writer.write_block(block, block_rows(header, ROWS, block))
    with pytest.raises(
        CacheIncompleteError, match=r"3 of 5 blocks are done, the first missing one is block 2 \(records \[10, 15\)"
    ):
        TeacherCache(tmp_path / "cache")


def test_what_is_no_cache_is_missing(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, reason in (("nowhere", "does not exist"), ("file", "is a file"), ("empty", r"holds no header\.json")):
        with pytest.raises(
            CacheMissingError, match=f"no cache at .*{name}: it {reason}.*adadistill cache build RECIPE"
        ):
            TeacherCache(tmp_path / name)


def test_a_cache_killed_at_its_beginning_is_incomplete(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "header.json.partial").write_bytes(b"{")
    with pytest.raises(CacheIncompleteError, match="stopped as it began"):
        TeacherCache(tmp_path / "cache")


@pytest.mark.parametrize("name", ["header.json", "embeddings.bin", "blocks.bin"])
def test_pipes_and_folders_in_place_of_files_are_refused(tmp_path, name):
    folder = build(tmp_path / "cache")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CacheDamagedError, match=f"{name} is no regular file"):
        TeacherCache(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CacheDamagedError, match=f"{name} is no regular file"):
        TeacherCache(folder)


@pytest.mark.parametrize("seed", range(300))
def test_every_damage_is_refused_with_its_own_error(tmp_path, folder, seed):
    rng = np.random.default_rng(seed)
    victim = tmp_path / "cache"
    shutil.copytree(folder, victim)
    kind = list(DAMAGES)[seed % len(DAMAGES)]
    damage, errors = DAMAGES[kind]
    damage(victim, rng)
    with pytest.raises(errors) as refused:
        TeacherCache(victim).verify()
    assert type(refused.value) in errors, kind
    assert str(victim) in str(refused.value)


def _flip(path: Path, byte: int, bit: int = 0) -> None:
    body = bytearray(path.read_bytes())
    body[byte] ^= 1 << bit
    path.write_bytes(body)


def _flip_somewhere(name):
    def damage(folder, rng):
        path = folder / name
        _flip(path, int(rng.integers(path.stat().st_size)), int(rng.integers(8)))

    return damage


def _cut(name):
    def damage(folder, rng):
        path = folder / name
        os.truncate(path, int(rng.integers(path.stat().st_size)))

    return damage


def _extend(name):
    def damage(folder, rng):
        with (folder / name).open("ab") as file:
            file.write(rng.bytes(int(rng.integers(1, 40))))

    return damage


def _remove(name):
    return lambda folder, rng: (folder / name).unlink()


def _empty_slot(folder, rng):
    block = int(rng.integers(5))
    body = bytearray((folder / "blocks.bin").read_bytes())
    body[16 * block : 16 * block + 16] = bytes(16)
    (folder / "blocks.bin").write_bytes(body)


def _exchange_slots(folder, rng):
    first, second = rng.choice(5, 2, replace=False).tolist()
    body = (folder / "blocks.bin").read_bytes()
    slots = [body[16 * block : 16 * block + 16] for block in range(5)]
    slots[first], slots[second] = slots[second], slots[first]
    (folder / "blocks.bin").write_bytes(b"".join(slots))


def _exchange_blocks(folder, rng):
    first, second = rng.choice(4, 2, replace=False).tolist()
    body = (folder / "embeddings.bin").read_bytes()
    blocks = [body[160 * block : 160 * block + 160] for block in range(5)]
    blocks[first], blocks[second] = blocks[second], blocks[first]
    (folder / "embeddings.bin").write_bytes(b"".join(blocks))


def _zero_rows(folder, rng):
    body = bytearray((folder / "embeddings.bin").read_bytes())
    start = int(rng.integers(len(body) - 16))
    body[start : start + 16] = bytes(16)
    (folder / "embeddings.bin").write_bytes(body)


def _files_of_another_cache(*names):
    """Sound files of the same sizes, of another teacher (its rows differ too)."""

    def damage(folder, rng):
        header = small_header(built={"precision": "float32", "decoder": f"cpu{rng.integers(1000)}"})
        other = build(folder.with_name("other"), header, seed=int(rng.integers(1, 1000)))
        for name in names:
            shutil.copy(other / name, folder / name)

    return damage


def _resign(folder, rng):
    """Another teacher written into the header, with a right sha256."""
    content = json.loads((folder / "header.json").read_bytes())
    del content["header_sha256"]
    content["teacher"]["sha256"] = rng.bytes(32).hex()
    (folder / "header.json").write_bytes(signed(content, indent=2))


_DAMAGED = (CacheDamagedError,)
DAMAGES = {
    "header flipped": (_flip_somewhere("header.json"), (CacheDamagedError, CacheFormatError)),
    "rows flipped": (_flip_somewhere("embeddings.bin"), _DAMAGED),
    "slots flipped": (_flip_somewhere("blocks.bin"), _DAMAGED),
    "header cut": (_cut("header.json"), _DAMAGED),
    "rows cut": (_cut("embeddings.bin"), _DAMAGED),
    "slots cut": (_cut("blocks.bin"), _DAMAGED),
    "header extended": (_extend("header.json"), _DAMAGED),
    "rows extended": (_extend("embeddings.bin"), _DAMAGED),
    "slots extended": (_extend("blocks.bin"), _DAMAGED),
    "header removed": (_remove("header.json"), (CacheMissingError,)),
    "rows removed": (_remove("embeddings.bin"), _DAMAGED),
    "slots removed": (_remove("blocks.bin"), _DAMAGED),
    "slot emptied": (_empty_slot, (CacheIncompleteError,)),
    "slots exchanged": (_exchange_slots, _DAMAGED),
    "blocks exchanged": (_exchange_blocks, _DAMAGED),
    "rows zeroed": (_zero_rows, _DAMAGED),
    "another cache's header": (_files_of_another_cache("header.json"), _DAMAGED),
    "another cache's rows": (_files_of_another_cache("embeddings.bin"), _DAMAGED),
    "another cache's slots": (_files_of_another_cache("blocks.bin"), _DAMAGED),
    "another cache's rows and slots": (_files_of_another_cache("embeddings.bin", "blocks.bin"), _DAMAGED),
    "header and rows of another": (_files_of_another_cache("header.json", "embeddings.bin"), _DAMAGED),
    "another teacher written in": (_resign, _DAMAGED),
}


# ---- what it is


def test_the_digest_names_the_content(tmp_path, cache):
    assert TeacherCache(build(tmp_path / "same")).digest() == cache.digest()
    assert TeacherCache(build(tmp_path / "rows", seed=1)).digest() != cache.digest()
    assert TeacherCache(build(tmp_path / "built", small_header(built={}))).digest() != cache.digest()
    assert len(cache.digest()) == 64


def test_columns_of_many_views_are_found_and_read(tmp_path):
    augmented = [CacheView(kind="augmented", seed=3, view=number, policy='{"crop":0.2}') for number in range(4)]
    header = small_header(views=(augmented[2], PLAIN, augmented[0], MIRRORED, augmented[1]))
    cache = TeacherCache(build(tmp_path / "cache", header))
    rows = unit_rows(header)
    assert [cache.column(view) for view in (PLAIN, MIRRORED, *augmented)] == [1, 3, 2, 4, 0, None]
    ids, views = np.arange(23), np.arange(23) % 5
    np.testing.assert_array_equal(cache.gather(ids, views), rows[ids, views])


def test_a_cache_can_be_read_by_the_page_on_the_format_alone(folder):
    files = contents(folder)
    header = json.loads(files["header.json"])
    blank = files["header.json"].replace(header["header_sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == header["header_sha256"]
    n, v, d, block = header["num_records"], len(header["views"]), header["embedding_dim"], header["block_records"]
    assert len(files["embeddings.bin"]) == n * v * d * 2
    for index in range(-(-n // block)):
        crc32, number, tag, own = struct.unpack_from("<II4sI", files["blocks.bin"], 16 * index)
        assert number == index
        assert tag == bytes.fromhex(header["header_sha256"])[:4]
        assert own == zlib.crc32(files["blocks.bin"][16 * index : 16 * index + 12])
        assert crc32 == zlib.crc32(files["embeddings.bin"][index * block * v * d * 2 : (index + 1) * block * v * d * 2])
    np.testing.assert_array_equal(np.frombuffer(files["embeddings.bin"], "<f2").reshape(n, v, d), ROWS)


def test_a_cache_written_by_another_program_is_read_and_continued(tmp_path):
    """By the page on the format alone, its header in another style, one block left undone."""
    content = json.loads(small_header().to_bytes())
    del content["header_sha256"]
    text = signed(content, separators=(",", ":"))
    tag = bytes.fromhex(json.loads(text)["header_sha256"])[:4]
    data, slots = ROWS.tobytes(), b""
    for index in range(5):
        first = struct.pack("<II4s", zlib.crc32(data[160 * index : 160 * index + 160]), index, tag)
        slots += first + struct.pack("<I", zlib.crc32(first))
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, body in (("header.json", text), ("embeddings.bin", data), ("blocks.bin", slots[:64] + bytes(16))):
        (folder / name).write_bytes(body)
    with create_or_resume(folder, small_header(), main=True) as writer:
        assert writer.pending().tolist() == [4]
        writer.write_block(4, ROWS[20:])
    assert (folder / "header.json").read_bytes() == text
    assert (folder / "blocks.bin").read_bytes() == slots
    TeacherCache(folder).verify()
