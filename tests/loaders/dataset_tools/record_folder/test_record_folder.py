"""Records to a folder and back are the same bytes, whatever was in them; what changed in between is told."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adadistill.loaders.dataset_tools.record_folder.errors import FolderChangedError, RecordFolderError
from adadistill.loaders.dataset_tools.record_folder.folder_to_records import folder_to_records
from adadistill.loaders.dataset_tools.record_folder.raw_records import RawRecord, float_to_bits
from adadistill.loaders.dataset_tools.record_folder.records_to_folder import records_to_folder
from adadistill.loaders.folders import ImageFolderError
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import (
    MAGIC,
    BadBodyError,
    BadLabelError,
    RecordError,
    StaleIndexError,
    write_insightface_records,
)

MAGIC_BYTES = struct.pack("<I", MAGIC)
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8")


def jpeg(seed: int, side: int = 16) -> bytes:
    return simplejpeg.encode_jpeg(np.random.RandomState(seed).randint(0, 256, (side, side, 3), dtype=np.uint8))


def write_insightface(folder: Path, counts: tuple[int, ...] = (2, 1, 3)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return write_insightface_records(
        folder, [(label, jpeg(number)) for number, label in enumerate(labels)], image_size=(16, 16)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_records(folder: Path, stored: list[tuple[int | None, bytes]], order: str) -> Path:
    """A `.rec` of framed records as they are, and an `.idx` of those that have a key."""
    path, lines, offset = folder / "train.rec", [], 0
    for key, body in stored:
        if key is not None:
            lines.append((key, offset))
        offset += len(body)
    path.write_bytes(b"".join(body for _, body in stored))
    if order == "random":
        random.Random(0).shuffle(lines)
    lines = sorted(lines) if order == "key" else lines
    end = "" if order == "random" else "\n"
    path.with_suffix(".idx").write_text("\n".join(f"{key}\t{offset}" for key, offset in lines) + end)
    return path


@st.composite
def odd_bodies(draw: st.DrawFn) -> bytes:
    """Images of several formats, with the magic at multiples of 4 and elsewhere, of any length modulo 4."""
    pieces = st.sampled_from([MAGIC_BYTES, b"\0", b"ab", b"1234", MAGIC_BYTES[:2], b""])
    return draw(st.sampled_from(BEGINNINGS)) + b"".join(draw(st.lists(pieces, max_size=8)))


@st.composite
def odd_records(draw: st.DrawFn) -> RawRecord:
    """Flags 0 to 3, labels of every kind behind the first, large ids, empty bodies, records cut as nobody cuts them."""
    flag = draw(st.integers(0, 3))
    identity = float_to_bits(draw(st.integers(0, 12)))
    others = draw(st.lists(st.integers(0, (1 << 32) - 1), min_size=max(flag - 1, 0), max_size=max(flag - 1, 0)))
    ids = st.one_of(st.integers(0, 9), st.integers(0, (1 << 64) - 1))
    body = b"" if draw(st.integers(0, 4)) == 0 else draw(odd_bodies())
    cuts = None
    if draw(st.booleans()) and MAGIC_BYTES not in body and body:
        cuts = (24 + 4 * flag + len(body),)  # what the usual cut gives too
    return RawRecord(
        flag=flag,
        label_bits=identity if flag == 0 else draw(st.sampled_from([0, 0x7FC00001, 1 << 31])),
        labels=(identity, *others) if flag else (),
        id=draw(ids),
        id2=draw(ids),
        body=body,
        cuts=cuts,
    )


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(odd_records(), max_size=8), data=st.data())
def test_odd_records_come_back_as_they_were(tmp_path_factory, records: list[RawRecord], data: st.DataObject):
    folder = tmp_path_factory.mktemp("odd")
    keys = data.draw(st.permutations(range(0, 3 * len(records), 3)))
    holes = data.draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records)))
    stored = [(None if hole else key, one.to_bytes()) for one, key, hole in zip(records, keys, holes, strict=True)]
    source = write_records(folder, stored, data.draw(st.sampled_from(["key", "file", "random"])))
    (folder / "property").write_bytes(b"13,112,112\r\nmade by \xff\n")
    before = contents(folder)

    records_to_folder(source, folder / "images")
    folder_to_records(folder / "images", folder / "again")

    assert contents(folder / "again") == before
    assert {name: body for name, body in contents(folder).items() if "/" not in name} == before
    shutil.rmtree(folder)


def test_a_record_that_was_cut_where_nobody_cuts_comes_back_cut_there(tmp_path: Path):
    body = b"\xff\xd8\xff\xe0" + MAGIC_BYTES + b"abcd"
    whole = RawRecord(0, float_to_bits(1), (), 7, 0, body, cuts=(24 + len(body),))  # one part, which holds the magic
    usual = RawRecord(0, float_to_bits(1), (), 8, 0, body)
    assert len(whole.to_bytes()) != len(usual.to_bytes())
    source = write_records(tmp_path, [(0, whole.to_bytes()), (1, usual.to_bytes())], "key")
    records_to_folder(source, tmp_path / "images")
    folder_to_records(tmp_path / "images", tmp_path / "again")
    assert (tmp_path / "again" / "train.rec").read_bytes() == source.read_bytes()


def test_files_without_an_index_come_back_without_one(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    source.with_suffix(".idx").unlink()
    records_to_folder(source, tmp_path / "images")
    folder_to_records(tmp_path / "images", tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_folders_are_named_by_labels_json_where_its_names_are_good(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    (tmp_path / "a" / "labels.json").write_text('["ann", "bob", "cy"]')
    records_to_folder(source, tmp_path / "good")
    assert sorted(path.name for path in (tmp_path / "good").iterdir() if path.is_dir()) == ["ann", "bob", "cy"]
    folder_to_records(tmp_path / "good", tmp_path / "b")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    for bad in ('["..", "a/b", "cy"]', '["ann", "ANN", "bob"]', '["ann"]', "[" * 100_000, '{"a": 1}'):
        (tmp_path / "a" / "labels.json").write_text(bad)
        shutil.rmtree(tmp_path / "plain", ignore_errors=True)
        records_to_folder(source, tmp_path / "plain")
        assert sorted(path.name for path in (tmp_path / "plain").iterdir() if path.is_dir()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "label", [-1.0, 0.5, float("nan"), float("inf"), 2.0**24], ids=["negative", "half", "nan", "inf", "2^24"]
)
@pytest.mark.parametrize("flag", [0, 2])
def test_labels_that_name_no_identity_are_refused_before_anything_is_written(tmp_path: Path, label: float, flag: int):
    bits = int(np.float32(label).view(np.uint32))
    odd = RawRecord(flag, 0 if flag else bits, (bits, 0)[:flag], 2, 0, jpeg(1))
    good = RawRecord(0, 0, (), 1, 0, jpeg(0))
    source = write_records(tmp_path, [(5, good.to_bytes()), (9, odd.to_bytes())], "key")
    with pytest.raises(BadLabelError, match=r"\(key 9\).*names no folder"):
        records_to_folder(source, tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_damage_in_the_records_or_their_index_is_named(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    for text, message in [
        ("1\t2\n", "where no record begins"),
        ("1\t0\n2\t0\n", "twice"),
        ("x\n", "expected"),
        ("9" * 100, "expected"),
        ("-1\t0\n", "expected"),
    ]:
        source.with_suffix(".idx").write_text(text)
        with pytest.raises(StaleIndexError, match=message):
            records_to_folder(source, tmp_path / "images")
    source.with_suffix(".idx").unlink()
    body = source.read_bytes()
    source.write_bytes(body[:-20])
    with pytest.raises(RecordError):
        records_to_folder(source, tmp_path / "images")
    source.write_bytes(RawRecord(0, 0, (), 0, 0, b"no image").to_bytes())
    with pytest.raises(BadBodyError, match="begins like no image"):
        records_to_folder(source, tmp_path / "images")
    assert contents(tmp_path / "images").keys() <= {".records.unfinished", ".records.jsonl.partial"}


def test_unpacking_goes_on_where_it_was_stopped_and_mends_torn_files(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    records_to_folder(source, tmp_path / "whole")
    asked = iter([False] * 4 + [True])
    assert records_to_folder(source, tmp_path / "b", stop=lambda: next(asked)).stopped
    assert not (tmp_path / "b" / ".records.jsonl").exists()
    images = sorted((tmp_path / "b").rglob("*.jpg"))
    assert len(images) == 4
    body = images[1].read_bytes()
    images[1].write_bytes(body[:100])  # as a kill leaves it
    images[2].write_bytes(bytes(300))  # as a power cut may
    done = records_to_folder(source, tmp_path / "b")
    assert (done.images, done.kept_images, done.stopped) == (6, 2, False)
    assert contents(tmp_path / "b") == contents(tmp_path / "whole")
    images[0].unlink()
    assert records_to_folder(source, tmp_path / "b").kept_images == 5  # a finished folder is made whole again
    assert contents(tmp_path / "b") == contents(tmp_path / "whole")


def test_nothing_that_is_there_is_written_over(tmp_path: Path):
    source = write_insightface(tmp_path / "a")
    other = write_insightface(tmp_path / "other", (1, 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(RecordFolderError, match="none of them is written over"):
        records_to_folder(source, tmp_path / "mine")
    with pytest.raises(RecordFolderError, match="none of them is written over"):
        records_to_folder(source, source.parent)
    asked = iter([False] * 3 + [True])
    records_to_folder(source, tmp_path / "b", stop=lambda: next(asked))
    with pytest.raises(RecordFolderError, match="unfinished conversion of other records"):
        records_to_folder(other, tmp_path / "b")
    image = min((tmp_path / "b").rglob("*.jpg"))
    image.write_bytes(jpeg(99))
    with pytest.raises(RecordFolderError, match="holds another image than its record"):
        records_to_folder(source, tmp_path / "b")
    assert image.read_bytes() == jpeg(99)
    image.unlink()
    image.symlink_to(tmp_path / "mine" / "letter.txt")
    with pytest.raises(RecordFolderError, match="no file of ours"):
        records_to_folder(source, tmp_path / "b")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    records_to_folder(source, tmp_path / "c")
    with pytest.raises(RecordFolderError, match="images of other records"):
        records_to_folder(other, tmp_path / "c")


def _remove(folder: Path) -> None:
    (folder / "1" / "03.jpg").unlink()


def _add(folder: Path) -> None:
    (folder / "1" / "new.png").write_bytes(jpeg(5))


def _grow(folder: Path) -> None:
    (folder / "1" / "03.jpg").write_bytes(jpeg(5) + b"1")


def _edit(folder: Path) -> None:
    path = folder / "1" / "03.jpg"
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")


def _edit_copy(folder: Path) -> None:
    (folder / ".records.property").write_text("4,16,16\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_remove, r"1 missing \('1/03.jpg'\)"),
        (_add, r"1 added \('1/new.png'\)"),
        (_grow, r"1 of another size \('1/03.jpg'\)"),
        (_edit, r"03.jpg is not the image that the manifest names"),
        (_edit_copy, r"\.records\.property is missing, or not the copy"),
    ],
)
def test_a_folder_that_changed_is_converted_by_names_only_when_told(tmp_path: Path, change, message: str):
    records_to_folder(write_insightface(tmp_path / "a", (2, 4, 5)), tmp_path / "b")
    change(tmp_path / "b")
    with pytest.raises(FolderChangedError, match=message) as caught:
        folder_to_records(tmp_path / "b", tmp_path / "c")
    assert "--ignore-manifest" in str(caught.value)
    assert not (tmp_path / "c" / "train.rec").exists()
    made = folder_to_records(tmp_path / "b", tmp_path / "d", ignore_manifest=True)
    images = sorted(path for path in (tmp_path / "b").rglob("*") if path.suffix in (".jpg", ".png"))
    assert made.images == len(images)
    records = ImageRecords(made.path)
    assert [records.read(number).body for number in range(len(records))] == [path.read_bytes() for path in images]


def test_a_plain_folder_is_what_insightface_s_layout_makes_of_it(tmp_path: Path):
    samples = [(0, jpeg(0)), (0, jpeg(1)), (1, jpeg(2))]
    for name, body in [("ann/1.jpg", 0), ("ann/2.JPG", 1), ("bob/0.jpeg", 2)]:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(jpeg(body))
    for ignored in ("ann/notes.txt", "ann/.hidden.jpg", ".cache/x.jpg", "readme.jpg"):
        (tmp_path / "set" / ignored).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / ignored).write_bytes(b"?")
    (tmp_path / "set" / "empty").mkdir()
    before = contents(tmp_path / "set")
    folder_to_records(tmp_path / "set", tmp_path / "out")
    (tmp_path / "wanted").mkdir()
    write_insightface_records(tmp_path / "wanted", samples, image_size=(16, 16))
    made = contents(tmp_path / "out")
    assert json.loads(made.pop("labels.json")) == ["ann", "bob"]
    assert made == contents(tmp_path / "wanted")
    assert contents(tmp_path / "set") == before


def test_a_conversion_that_was_cut_anywhere_ends_as_if_it_had_not_been(tmp_path: Path):
    for number in range(12):
        path = tmp_path / "set" / f"{number // 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    folder_to_records(tmp_path / "set", tmp_path / "whole")
    wanted = contents(tmp_path / "whole")
    draw = random.Random(0)
    resumed = set()
    for trial in range(16):
        out = tmp_path / f"out{trial}"
        asked = iter([False] * draw.randrange(16) + [True])
        cut = {"stop": lambda asked=asked: next(asked), "safe_point_bytes": draw.choice([1, 2000, 1 << 20])}
        assert folder_to_records(tmp_path / "set", out, **cut).stopped
        for name in draw.choice([["rec.partial"], ["rec.journal"], ["rec.partial", "rec.journal"], []]):
            path = out / f"train.{name}"
            body = path.read_bytes()
            damage = draw.randrange(3)
            if damage == 0:
                path.write_bytes(body[: draw.randrange(len(body) + 1)])
            elif damage == 1:
                path.write_bytes(body + draw.randbytes(draw.randrange(1, 50)))  # a write that was not journalled
            elif name == "rec.partial" and body:
                place = draw.randrange(len(body))
                path.write_bytes(body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :])
        resumed.add(folder_to_records(tmp_path / "set", out).resumed_records)
        assert contents(out) == wanted, trial
    assert len(resumed) > 5


def test_a_kill_between_the_last_steps_is_finished_by_the_next_call(tmp_path: Path, monkeypatch):
    from adadistill.loaders.dataset_tools.record_folder import resumable_writer

    write_insightface(tmp_path / "a")
    records_to_folder(tmp_path / "a" / "train.rec", tmp_path / "b")
    wanted = contents(tmp_path / "a")
    for step in ("_write_atomically", "sync_folder", "write_text_atomically"):
        calls = iter(range(10))

        def fail(*_: object, calls=calls, step=step) -> None:
            if step != "sync_folder" or next(calls) == 1:  # the first one begins the journal
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(resumable_writer, step, fail)
            with pytest.raises(KeyboardInterrupt):
                folder_to_records(tmp_path / "b", tmp_path / step)
        assert contents(tmp_path / step) != wanted
        folder_to_records(tmp_path / "b", tmp_path / step)
        assert contents(tmp_path / step) == wanted


def test_another_plan_does_not_go_on_and_records_that_are_there_stay(tmp_path: Path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    for number in range(4):
        (tmp_path / "set" / "a" / f"{number}.jpg").write_bytes(jpeg(number))
    asked = iter([False, False, True])
    folder_to_records(tmp_path / "set", tmp_path / "out", stop=lambda: next(asked))
    (tmp_path / "set" / "a" / "9.jpg").write_bytes(jpeg(9))
    with pytest.raises(RecordFolderError, match="--restart throws its work away"):
        folder_to_records(tmp_path / "set", tmp_path / "out")
    assert folder_to_records(tmp_path / "set", tmp_path / "out", restart=True).images == 5
    with pytest.raises(FileExistsError, match="exists already"):
        folder_to_records(tmp_path / "set", tmp_path / "out")
    (tmp_path / "out" / "train.rec.journal").touch()  # of a call that was killed at once
    before = (tmp_path / "out" / "train.rec").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        folder_to_records(tmp_path / "set", tmp_path / "out")
    assert (tmp_path / "out" / "train.rec").read_bytes() == before
    (tmp_path / "set" / "a" / "9.jpg").unlink()
    assert folder_to_records(tmp_path / "set", tmp_path / "out", overwrite=True).images == 4
    with pytest.raises(ValueError, match="only read"):
        folder_to_records(tmp_path / "set", tmp_path / "set" / "out")


def test_bad_images_are_named_and_leave_nothing_behind(tmp_path: Path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "0.jpg").write_bytes(jpeg(0))
    for body in (b"", b"GIF89a" + bytes(40), b"text"):
        (tmp_path / "set" / "a" / "1.jpg").write_bytes(body)
        with pytest.raises(ValueError, match=r"1\.jpg: neither JPEG nor PNG"):
            folder_to_records(tmp_path / "set", tmp_path / "out")
        assert contents(tmp_path / "out") == {} if (tmp_path / "out").exists() else True
    (tmp_path / "set" / "a" / "1.jpg").write_bytes(jpeg(1, 24))
    with pytest.raises(RecordFolderError, match="24 x 24 pixels, 16 a side were asked for"):
        folder_to_records(tmp_path / "set", tmp_path / "out", image_side=16)
    (tmp_path / "set" / "a" / "1.jpg").unlink()
    (tmp_path / "set" / "a" / "1.jpg").symlink_to("/etc/hostname")
    with pytest.raises(ImageFolderError, match="leads out of"):
        folder_to_records(tmp_path / "set", tmp_path / "out")
    (tmp_path / "bare").mkdir()
    with pytest.raises(RecordFolderError, match="no labelled images"):
        folder_to_records(tmp_path / "bare", tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        folder_to_records(tmp_path / "nowhere", tmp_path / "out")


def test_an_unfinished_folder_is_not_taken_for_a_whole_one(tmp_path: Path):
    asked = iter([False] * 3 + [True])
    source = write_insightface(tmp_path / "a")
    records_to_folder(source, tmp_path / "b", stop=lambda: next(asked))
    with pytest.raises(RecordFolderError, match="unfinished conversion and lacks images"):
        folder_to_records(tmp_path / "b", tmp_path / "c")
    assert folder_to_records(tmp_path / "b", tmp_path / "c", ignore_manifest=True).images == 3


def test_a_folder_that_changes_meanwhile_is_told(tmp_path: Path):
    for name in ("a/1.jpg", "b/2.jpg", "b/3.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(jpeg(0))

    def meddle(done: int, _total: int) -> None:
        if done == 1:
            (tmp_path / "set" / "b" / "0.jpg").write_bytes(jpeg(1))

    with pytest.raises(RecordFolderError, match="changed while it was converted"):
        folder_to_records(tmp_path / "set", tmp_path / "out", progress=meddle)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_costs_nothing_that_was_written(tmp_path: Path, monkeypatch):
    source = write_insightface(tmp_path / "a", (4, 4))
    records_to_folder(source, tmp_path / "b")
    written = iter(range(20))
    whole = RawRecord.to_bytes

    def fill(record: RawRecord) -> bytes:
        if next(written) == 5:
            raise OSError(28, "No space left on device")
        return whole(record)

    with monkeypatch.context() as patched:
        patched.setattr(RawRecord, "to_bytes", fill)
        with pytest.raises(OSError, match="No space left"):
            folder_to_records(tmp_path / "b", tmp_path / "c", safe_point_bytes=1)
    assert folder_to_records(tmp_path / "b", tmp_path / "c").resumed_records == 5
    assert contents(tmp_path / "c") == contents(tmp_path / "a")


def test_a_full_disk_is_told_at_the_door(tmp_path: Path, monkeypatch):
    source = write_insightface(tmp_path / "a")
    records_to_folder(source, tmp_path / "b")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match=r"the disk has 0\.000 GB free"):
        folder_to_records(tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c").exists() or not any((tmp_path / "c").iterdir())


@pytest.mark.parametrize("flag_labels", [(3.0,), (3.0, 1.0, 0.25)])
def test_a_list_gives_keys_labels_and_order(tmp_path: Path, flag_labels: tuple[float, ...]):
    (tmp_path / "set" / "x").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "set" / "x" / f"{number}.jpg").write_bytes(jpeg(number))
    labels = "\t".join(f"{label:f}" for label in flag_labels)
    (tmp_path / "a.lst").write_text("".join(f"{key}\t{labels}\tx/{n}.jpg\n" for n, key in enumerate((7, 2, 9))))
    made = folder_to_records(tmp_path / "set", tmp_path / "out", lst=tmp_path / "a.lst")
    records = ImageRecords(made.path)
    assert records.index.keys.tolist() == [7, 2, 9]
    assert [records.read(number) for number in range(3)] == [
        type(records.read(0))(3, jpeg(number)) for number in range(3)
    ]
    assert (tmp_path / "out" / "property").read_text() == "4,16,16\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\t1\t../a.jpg", "no path within"),
        ("0\t1\t/etc/passwd", "no path within"),
        ("1\tx/0.jpg\t0", "insightface's own"),
        ("0\t-1\tx.jpg", "no whole number"),
        ("0\tnan\tx.jpg", "is no line"),
        ("0\t1\tnone.jpg", "1 images that are not in"),
        ("0\t1\ta.jpg\n0\t1\ta.jpg", "key 0 is used twice"),
        ("", "holds no lines"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path: Path, line: str, message: str):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "a.lst").write_text(line)
    with pytest.raises(RecordFolderError, match=message):
        folder_to_records(tmp_path / "set", tmp_path / "out", lst=tmp_path / "a.lst")


@pytest.mark.realdata
def test_a_list_makes_of_images_what_mxnet_made_of_them(tmp_path: Path, data_dir: Path):
    source = data_dir / "recordio" / "faces8" / "train.rec"
    records = ImageRecords(source)
    names = [line.split("\t")[-1] for line in source.with_suffix(".lst").read_text().splitlines()]
    for number, name in enumerate(names):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(records.read(number).body)
    made = folder_to_records(tmp_path / "set", tmp_path / "out", lst=source.with_suffix(".lst"))
    assert made.path.read_bytes() == source.read_bytes()
    assert made.path.with_suffix(".idx").read_bytes() == source.with_suffix(".idx").read_bytes()
