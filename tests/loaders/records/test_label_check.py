"""Labels are compared with what is claimed of them, by every tool and by a launch, and each kind has its sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from adadistill.loaders.dataset_tools.inspection import inspect_path
from adadistill.loaders.dataset_tools.record_check import check_images
from adadistill.loaders.dataset_tools.record_folder.image_lists import read_list
from adadistill.loaders.records import label_check
from adadistill.loaders.records.image_folder import ImageFolder
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.label_check import check_labels
from adadistill.loaders.records.recordio import RecordWriter
from adadistill.recipes.data import main

JPEG = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
SIX = [label for label in range(6) for _ in range(4)]


def plain(folder: Path, labels: Sequence[float], claimed: int | None = None) -> Path:
    """All records are images, one label each."""
    folder.mkdir(exist_ok=True)
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate(labels):
            writer.write(key, JPEG, labels=float(label))
    if claimed is not None:
        (folder / "property").write_text(f"{claimed},16,16\n")
    return folder / "train.rec"


def insightface(folder: Path, labels: Sequence[int], ranges: Sequence[tuple[int, int]] | None = None) -> Path:
    """Images, identity records as face2rec counts them (a new one wherever the label changes), and the header."""
    if ranges is None:
        starts = [k for k in range(len(labels)) if k == 0 or labels[k] != labels[k - 1]]
        ranges = [(a + 1, b + 1) for a, b in zip(starts, [*starts[1:], len(labels)], strict=True)]
    first = len(labels) + 1
    with RecordWriter(folder / "train.rec") as writer:
        for key, label in enumerate(labels, start=1):
            writer.write(key, JPEG, labels=(float(label), 1.0))
        for key, bounds in enumerate(ranges, start=first):
            writer.write(key, b"", labels=tuple(map(float, bounds)))
        writer.write(0, b"", labels=(float(first), float(first + len(ranges))))
    return folder / "train.rec"


def test_what_is_as_claimed_is_only_said(tmp_path: Path):
    for path in (plain(tmp_path / "a", SIX, 6), plain(tmp_path / "b", SIX[::-1]), insightface(tmp_path, SIX)):
        found = check_labels(ImageRecords(path))
        assert found.said == "0 to 5, 6 identities"
        assert (found.beyond, found.odd, found.refused, found.warnings) == ("", "", [], [])


@pytest.mark.parametrize(
    ("labels", "claimed", "stated", "wanted"),
    [
        ([label + 1 for label in SIX], 6, None, r"record 20 .*: label 6 with 6 identities: labels begin at 1\?.*=7"),
        ([*SIX, 6], 6, None, r"record 24 .*: label 6 with 6 identities: .*property; set data\.num_classes=7"),
        ([*SIX, 9], 85742, 6, r"label 9 with 6 identities: labels go up to 9.*data\.num_classes; set .*=10"),
    ],
)
def test_a_label_that_is_no_class_is_named_by_its_first_record(tmp_path, labels, claimed, stated, wanted, capsys):
    path = plain(tmp_path, labels, claimed)
    found = check_labels(ImageRecords(path, num_classes=stated), stated=stated)
    assert re.search(wanted, found.beyond)
    if stated is None:
        assert any(re.search(wanted, problem) for problem in inspect_path(path).problems)
        assert any(re.search(wanted, bad.reason) for bad in check_images(path).bad)
        assert main(["data", "stats", str(path)][1:]) == 1
        assert re.search(wanted, capsys.readouterr().err)


@pytest.mark.parametrize("label", [0.5, -1.0, float("nan"), 2.0**24])
def test_what_is_no_whole_number_is_damage(tmp_path: Path, label: float):
    found = check_labels(ImageRecords(plain(tmp_path, [*SIX, label], 6)))
    assert found.odd.startswith(f"{tmp_path}/train.rec: record 24 ")
    assert (found.outside, found.beyond, found.said) == (1, "", "0 to 5, 6 identities")


@pytest.mark.parametrize(
    ("labels", "claimed", "wanted", "refused"),
    [
        (SIX, 85742, r"^labels 0 to 5, 85,736 identities never appear \(the first: 6\); .* from property", True),
        (SIX, 9, r"^labels 0 to 5, 3 identities never appear", False),
        ([2 * label for label in SIX], 11, r"^labels 0 to 10, 5 identities never appear \(the first: 1\)", False),
        ([label + 1 for label in SIX], None, r"1 identity never appears \(the first: 0\).*labels begin at 1\?", False),
        ([1000 * label for label in SIX], None, r"4,995 identities never appear.*largest label.*--relabel", True),
        ([3] * 9, 6, r"^all images have label 3: one identity", True),
        ([0] * 9, None, r"^all images have label 0: one identity", True),
    ],
)
def test_identities_that_never_appear_are_counted(tmp_path, labels, claimed, wanted, refused, capsys, caplog):
    path = plain(tmp_path, labels, claimed)
    found = check_labels(ImageRecords(path))
    (text,) = found.refused if refused else found.warnings
    assert re.search(wanted, text)
    assert len(found.refused) == refused
    assert any(re.search(wanted, problem) for problem in inspect_path(path).problems)
    reasons = "".join(bad.reason for bad in check_images(path).bad)
    told = reasons + caplog.text
    assert re.search(wanted.removeprefix("^"), told)
    assert main(["stats", str(path)]) == 0
    assert re.search("problem: .*" + wanted.removeprefix("^"), capsys.readouterr().out)


def test_whoever_states_the_number_may_have_a_small_subset(tmp_path: Path):
    records = ImageRecords(plain(tmp_path, SIX, 85742), num_classes=85742)
    found = check_labels(records, stated=85742)
    assert (found.refused, len(found.warnings)) == ([], 1)


def test_identity_records_of_an_unsorted_list_are_not_believed(tmp_path: Path):
    path = insightface(tmp_path, [number % 6 for number in range(24)])
    wanted = r"label 0 has 4 identity records: the list was not sorted by identity.*24 .*data\.num_classes=6"
    (text,) = check_labels(ImageRecords(path)).refused
    assert re.search(wanted, text)
    (tmp_path / "property").write_text("6,16,16\n")
    found = check_labels(ImageRecords(path))
    assert (found.refused, len(found.warnings)) == ([], 1)


@pytest.mark.parametrize(
    ("ranges", "wanted"),
    [
        ([(1 + 4 * n, 5 + 4 * n) for n in range(6)], r"record 1 \(key 2\).* has label 1, .* an image of label 0"),
        ([(1, 13)], r"record 12 \(key 13\).* is in the range of no identity record"),
    ],
)
def test_ranges_that_contradict_labels_are_named(tmp_path: Path, ranges, wanted):
    path = insightface(tmp_path, [number % 6 for number in range(24)], ranges)
    (tmp_path / "property").write_text("6,16,16\n")
    (text,) = check_labels(ImageRecords(path)).warnings
    assert re.search(wanted, text)


def test_a_damaged_record_and_one_of_several_parts_hide_no_label(tmp_path: Path):
    magic = 0xCED7230A.to_bytes(4, "little")
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key, label in enumerate([0, 1, 1, 2]):
            writer.write(key, b"\xff\xd8\xff\xe0" + (magic * 3 if label == 2 else bytes(12)), labels=float(label))
    (tmp_path / "property").write_text("2,16,16\n")
    with (tmp_path / "train.rec").open("r+b") as file:
        file.write(bytes(4))  # of record 0
    found = check_labels(ImageRecords(tmp_path / "train.rec"))
    assert "record 3 " in found.beyond
    assert found.said == "1 to 2, 2 identities"


def test_a_look_that_is_cut_short_has_seen_a_sample_and_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(label_check, "_SPREAD", 8)
    monkeypatch.setattr(label_check, "_CHUNK", 16)
    labels = np.sort(np.arange(4000) % 500)
    assert "8 of 4,000 records" in check_labels(ImageRecords(plain(tmp_path / "a", labels, 500)), seconds=0.0).said
    shifted = ImageRecords(plain(tmp_path / "b", labels + 1, 500))
    assert "label 500 with 500 identities: " in check_labels(shifted, seconds=0.0).beyond
    (copied,) = check_labels(ImageRecords(plain(tmp_path / "c", labels, 85742)), seconds=0.0).refused
    assert copied.startswith(
        "labels in 8 of 4,000 records are 0 to 499, the number of 85,742 is from property. Another"
    )
    order = np.random.default_rng(0).permutation(labels)
    order[np.argmax(order == 0)] = 500  # one record of a shuffled file: only reading all of them finds it
    hidden = ImageRecords(plain(tmp_path / "d", order, 500))
    assert "label 500 with 500 identities: " in check_labels(hidden, seconds=60.0).beyond


def test_a_folder_of_one_identity_and_labels_that_are_held_elsewhere(tmp_path: Path):
    (tmp_path / "set" / "me").mkdir(parents=True)
    (tmp_path / "set" / "me" / "1.jpg").write_bytes(JPEG)
    folder = ImageFolder(tmp_path / "set")
    assert check_labels(folder).refused[0].startswith("all images have label 0: one identity")
    assert check_labels(folder, needs_several=False).refused == []
    records = ImageRecords(plain(tmp_path / "a", SIX, 6))
    found = check_labels(records, np.array([*SIX[:-1], 6]))
    assert "record 23 " in found.beyond
    assert check_labels(records, np.array([-1, *SIX[1:]])).said == "0 to 5, 6 identities"


def test_a_property_file_may_begin_with_a_byte_order_mark(tmp_path: Path):
    path = plain(tmp_path, SIX)
    big_endian = b"\xfe\xff" + "6,16,16".encode("utf-16-be")
    for text in ("6,16,16\n".encode("utf-8-sig"), "6,16,16\r\n".encode("utf-16"), big_endian):
        path.with_name("property").write_bytes(text)
        assert ImageRecords(path).num_classes == 6
        assert inspect_path(path).problems == []


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.lst").write_bytes(b"\xef\xbb\xbf7\t1\tx/1.jpg\r\n8\t0\tx/2.jpg\r\n")
    assert [(one.key, one.labels) for one in list(read_list(tmp_path / "a.lst"))] == [(7, (1.0,)), (8, (0.0,))]
