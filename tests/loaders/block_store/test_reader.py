"""Reading: from any process, only from a sound store; whatever happened to its files is said with the right error."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_cache import run_in_child, signed
from small_stores import CacheFace, Face, build

from adadistill.loaders.block_store.errors import (
    StoreDamagedError,
    StoreError,
    StoreIncompleteError,
    StoreMissingError,
)

EVERY = range(23)
Damage = Callable[[Face, Path, Any], None]


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built, tmp_path / "store"))


# ---- processes, threads, memory


def test_a_pickled_copy_reads_the_same_from_another_directory(face, built, monkeypatch, tmp_path):
    monkeypatch.chdir(built.parent)
    sent = pickle.dumps(face.reader(built.name))
    assert len(sent) < 1000, "the rows do not travel"
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(face.gathered(pickle.loads(sent), EVERY), face.expected(EVERY))


def test_a_pickled_copy_of_a_store_that_was_replaced_is_refused(face, folder):
    sent = pickle.dumps(face.reader(folder))
    shutil.rmtree(folder)
    build(face, folder, seed=1)
    with pytest.raises(StoreError, match="was replaced while it was in use"):
        pickle.loads(sent)


def test_forked_processes_and_threads_read_the_same(face, built):
    store = face.reader(built)

    def read(seed=0):
        ids = np.random.default_rng(seed).integers(0, 23, 100)
        np.testing.assert_array_equal(face.gathered(store, ids), face.expected(ids))
        store.check()

    assert run_in_child(read) == 0
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(12)))


def test_nothing_of_the_rows_is_held_in_memory(tmp_path):
    face = CacheFace()
    folder = build(
        face, tmp_path / "store", face.header(num_records=500, embedding_dim=2048, block_records=250)
    )  # 4 MB
    tracemalloc.start()
    try:
        store = face.reader(folder)
        store.check()
        face.gathered(store, np.arange(100))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20, "a buffer of 1 MB, and what was asked for"
    finally:
        tracemalloc.stop()


def test_the_digest_names_the_content(face, built, tmp_path):
    digest = face.reader(built).digest()
    assert len(digest) == 64
    assert face.reader(build(face, tmp_path / "same")).digest() == digest
    assert face.reader(build(face, tmp_path / "rows", seed=1)).digest() != digest
    assert face.reader(build(face, tmp_path / "blocks", face.header(block_records=4))).digest() != digest
    assert len(face.reader(built)) == 23


# ---- checking


def test_check_tells_its_progress_and_reads_the_blocks_it_was_given(face, folder):
    store = face.reader(folder)
    seen: list[int] = []
    store.check(progress=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    _edit("rows", lambda body, rng: body.__setitem__(face.byte_of_block_2, body[face.byte_of_block_2] ^ 1))(
        face, folder, None
    )
    seen.clear()
    store.check(0, 2, progress=seen.append)
    store.check(3, progress=seen.append)
    assert seen == [1, 2, 1, 2]
    wanted = rf"{face.rows_file}: block 2 \(records \[10, 15\)\).* damaged: crc32 .* expected.*{face.command}"
    with pytest.raises(StoreDamagedError, match=wanted):
        store.check(1)
    for first, stop in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(IndexError, match=r"\[0, 5\)"):
            store.check(first, stop)


def test_a_file_cut_after_opening_is_found_by_check(face, folder):
    store = face.reader(folder)
    os.truncate(folder / face.rows_file, face.byte_of_block_2)
    with pytest.raises(StoreDamagedError, match=r"block 2 .* the file ends before"):
        store.check()


def test_an_unfinished_store_says_how_much_is_done(face, tmp_path):
    with face.writer(tmp_path / "store", face.header(), main=True) as writer:
        for block in (0, 1, 3):
            face.write(writer, block)
    wanted = rf"3 of 5 blocks are done, the first missing one is block 2 \(records \[10, 15\).*{face.command}"
    with pytest.raises(StoreIncompleteError, match=wanted):
        face.reader(tmp_path / "store")


def test_what_is_no_store_is_missing_and_a_beginning_is_incomplete(face, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, reason in (("nowhere", "does not exist"), ("file", "is a file"), ("empty", r"holds no header\.json")):
        with pytest.raises(StoreMissingError, match=f"no {face.name} at .*{name}: it {reason}.*{face.command}"):
            face.reader(tmp_path / name)
    (tmp_path / "empty" / "header.json.partial").write_bytes(b"{")
    with pytest.raises(StoreIncompleteError, match=f"its {face.making} was stopped as it began"):
        face.reader(tmp_path / "empty")


def test_pipes_and_folders_in_place_of_files_are_refused(face, folder):
    for name in ("header.json", face.rows_file, "blocks.bin"):
        body = (folder / name).read_bytes()
        for make, remove in ((os.mkfifo, os.unlink), (os.mkdir, os.rmdir)):
            (folder / name).unlink()
            make(folder / name)
            with pytest.raises(StoreDamagedError, match=f"{name} is no regular file"):
                face.reader(folder)
            remove(folder / name)
            (folder / name).write_bytes(body)


def _named(face: Face, name: str) -> str:
    return face.rows_file if name == "rows" else name


def _edit(name: str, change: Callable[[bytearray, Any], object]) -> Damage:
    """Change the bytes of one file."""

    def damage(face, folder, rng):
        body = bytearray((folder / _named(face, name)).read_bytes())
        change(body, rng)
        (folder / _named(face, name)).write_bytes(body)

    return damage


def _flip_somewhere(name: str) -> Damage:
    def flip(body, rng):
        body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))

    return _edit(name, flip)


def _cut(name: str) -> Damage:
    return _edit(name, lambda body, rng: body.__delitem__(slice(int(rng.integers(len(body))), None)))


def _extend(name: str) -> Damage:
    return _edit(name, lambda body, rng: body.extend(rng.bytes(int(rng.integers(1, 40)))))


def _remove(name: str) -> Damage:
    return lambda face, folder, rng: (folder / _named(face, name)).unlink()


def _swap(body: bytearray, first: slice, second: slice) -> None:
    body[first], body[second] = body[second], body[first]


def _exchange_blocks(face, folder, rng):
    two, three = (face.header().block_spans(block)[0].bytes for block in (2, 3))
    swap = lambda body, rng: _swap(body, slice(two.start, two.stop), slice(three.start, three.stop))  # noqa: E731
    _edit("rows", swap)(face, folder, rng)


def _files_of_another(*names: str) -> Damage:
    """Sound files of the same sizes, of other records (the rows differ too)."""

    def damage(face, folder, rng):
        records = dict(face.header().records) | {"fingerprint": rng.bytes(32).hex()}
        other = build(face, folder.with_name("other"), face.header(records=records), seed=int(rng.integers(1, 1000)))
        for name in names:
            shutil.copy(other / _named(face, name), folder / _named(face, name))

    return damage


def _resign(face, folder, rng):
    """Other records written into the header, with a right sha256."""
    content = json.loads((folder / "header.json").read_bytes())
    del content["header_sha256"]
    content["records"]["fingerprint"] = rng.bytes(32).hex()
    (folder / "header.json").write_bytes(signed(content, indent=2))


_DAMAGED = (StoreDamagedError,)
DAMAGES = {
    "header flipped": (_flip_somewhere("header.json"), (StoreDamagedError, StoreError)),
    "rows flipped": (_flip_somewhere("rows"), _DAMAGED),
    "slots flipped": (_flip_somewhere("blocks.bin"), _DAMAGED),
    "header cut": (_cut("header.json"), _DAMAGED),
    "rows cut": (_cut("rows"), _DAMAGED),
    "slots cut": (_cut("blocks.bin"), _DAMAGED),
    "header extended": (_extend("header.json"), _DAMAGED),
    "rows extended": (_extend("rows"), _DAMAGED),
    "slots extended": (_extend("blocks.bin"), _DAMAGED),
    "header removed": (_remove("header.json"), (StoreMissingError,)),
    "rows removed": (_remove("rows"), _DAMAGED),
    "slots removed": (_remove("blocks.bin"), _DAMAGED),
    "slot emptied": (
        _edit("blocks.bin", lambda body, rng: body.__setitem__(slice(48, 64), bytes(16))),
        (StoreIncompleteError,),
    ),
    "slots exchanged": (_edit("blocks.bin", lambda body, rng: _swap(body, slice(0, 16), slice(48, 64))), _DAMAGED),
    "blocks exchanged": (_exchange_blocks, _DAMAGED),
    "another store's header": (_files_of_another("header.json"), _DAMAGED),
    "another store's rows": (_files_of_another("rows"), _DAMAGED),
    "another store's slots": (_files_of_another("blocks.bin"), _DAMAGED),
    "another store's rows and slots": (_files_of_another("rows", "blocks.bin"), _DAMAGED),
    "header and rows of another": (_files_of_another("header.json", "rows"), _DAMAGED),
    "other records written in": (_resign, _DAMAGED),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_refused_with_its_own_error(face, built, tmp_path, kind):
    damage, errors = DAMAGES[kind]
    for seed in range(3):
        rng = np.random.default_rng([seed, len(kind)])
        victim = shutil.copytree(built, tmp_path / f"{seed}" / "store")
        damage(face, victim, rng)
        with pytest.raises(errors) as refused:
            face.reader(victim).check()
        assert type(refused.value) in errors, (kind, seed)
        assert str(victim) in str(refused.value)
