"""Both layouts say the same, and whatever is wrong with them is named when they are opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pyarrow", reason="pyarrow (extra arrow) is not installed")

from small_ijb import SmallIjb, small_ijb, write_original, write_prepared

from adadistill.loaders.evaluation_sets.ijb.sets import IjbSet, open_ijb
from adadistill.loaders.evaluation_sets.image_sets import ImageSetError, pixel_blocks
from adadistill.loaders.safe_pickle import TorchMetadataError, read_torch_metadata


@pytest.fixture(scope="module")
def small() -> SmallIjb:
    return small_ijb()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, small: SmallIjb) -> Path:
    """Both layouts, not to be changed."""
    folder = tmp_path_factory.mktemp("sets")
    write_original(folder / "IJBC", small)
    write_prepared(folder / "IJBC_gt_aligned", small)
    return folder


@pytest.fixture
def original(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(written / "IJBC", tmp_path / "IJBC"))


@pytest.fixture
def prepared(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(written / "IJBC_gt_aligned", tmp_path / "IJBC_gt_aligned"))


def _pixels(opened: IjbSet) -> np.ndarray:
    count = len(opened.images)
    return np.concatenate(list(pixel_blocks(opened.images, [(0, 5), (5, count)], threads=2)))


def test_both_layouts_hold_the_same_pixels_templates_and_protocols(written: Path, small: SmallIjb):
    original, prepared = open_ijb(written / "IJBC"), open_ijb(written / "IJBC_gt_aligned")
    assert (original.name, prepared.name) == ("IJBC", "IJBC_gt_aligned")
    assert original.annotations.counts == prepared.annotations.counts
    rows = np.random.default_rng(5).permutation(len(small.names))  # row i of the prepared set is image rows[i]
    np.testing.assert_array_equal(_pixels(original)[rows], _pixels(prepared))
    for name in ("templates", "medias", "detector_scores"):
        np.testing.assert_array_equal(getattr(original.annotations, name)[rows], getattr(prepared.annotations, name))
    for name in ("template_ids", "first", "second", "same"):
        np.testing.assert_array_equal(getattr(original.annotations, name), getattr(prepared.annotations, name))
    for one, other in zip(
        (*original.annotations.galleries, original.annotations.probes),
        (*prepared.annotations.galleries, prepared.annotations.probes),
        strict=True,
    ):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.templates, other.templates)
        np.testing.assert_array_equal(one.subjects, other.subjects)


def test_places_lead_back_to_the_numbers_in_the_files(written: Path, small: SmallIjb):
    opened = open_ijb(written / "IJBC")
    assert "469,375" in (opened.unlike_published() or "")
    known = opened.annotations
    np.testing.assert_array_equal(known.template_ids[known.templates], small.templates)
    pairs = np.stack([known.template_ids[known.first], known.template_ids[known.second], known.same], axis=1)
    np.testing.assert_array_equal(pairs, small.pairs)
    assert known.probes is not None
    assert [(known.template_ids[place], subject) for place, subject in
            zip(known.probes.templates, known.probes.subjects, strict=True)] == small.probes  # fmt: skip


def test_sets_are_told_apart_by_their_hash(written: Path, original: Path):
    one, same = (open_ijb(folder).sha256() for folder in (written / "IJBC", original))
    _edit("ijbc_template_pair_label.txt", lambda lines: lines[:-1])(original)
    assert one == same != open_ijb(original).sha256()


def test_a_set_without_csv_files_has_no_1n_protocol_and_one_with_some_is_refused(prepared: Path):
    (prepared / GALLERY).unlink()
    with pytest.raises(FileNotFoundError, match="gallery_G1"):
        open_ijb(prepared)
    for path in prepared.glob("*.csv"):
        path.unlink()
    assert open_ijb(prepared).annotations.probes is None


def _edit(name: str, change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "meta" / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return damage


def _listed_twice(folder: Path) -> None:
    for name in (TID, POINTS):
        _edit(name, lambda lines: [*lines, lines[2]])(folder)


BAD = ImageSetError
TID, POINTS, PAIRS = "ijbc_face_tid_mid.txt", "ijbc_name_5pts_score.txt", "ijbc_template_pair_label.txt"
GALLERY = "ijbc_1N_gallery_G1.csv"


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (_edit(TID, lambda lines: lines[:-1]), BAD, "lines.*belong together"),
        (_edit(TID, lambda lines: [lines[1], lines[0], *lines[2:]]), BAD, "line 1 is"),
        (_edit(TID, lambda lines: [*lines[:3], "4.jpg 7", *lines[4:]]), BAD, "line 4: 2 columns"),
        (_edit(TID, lambda lines: [*lines[:3], "4.jpg 7 x", *lines[4:]]), BAD, r"tid_mid\.txt, up to line"),
        (_edit(TID, lambda lines: [*lines[:3], "4.jpg 7.5 1", *lines[4:]]), BAD, "line 4: template and medium"),
        (_edit(TID, lambda lines: ["../1.jpg 1 1", *lines[1:]]), BAD, "line 1: .*names no file"),
        (_edit(POINTS, lambda lines: [lines[0].rsplit(" ", 1)[0] + " nan", *lines[1:]]), BAD, "score of image 0"),
        (_listed_twice, BAD, r"3\.jpg is listed twice"),
        (_edit(POINTS, lambda lines: ["1.jpg" + " 5.0" * 11, *lines[1:]]), BAD, "landmarks of picture 0"),
        (_edit(PAIRS, lambda lines: [*lines, "10 999999 0"]), BAD, "entry 72 .*template 999999"),
        (_edit(PAIRS, lambda lines: [*lines, "10 100 2"]), BAD, "label of pair 72"),
        (_edit(PAIRS, lambda lines: [*lines[:5], "10 100", "0 10 100 0", *lines[7:]]), BAD, "line 6"),
        (_edit(PAIRS, lambda lines: [line[:-1] + "0" for line in lines]), BAD, "all 72 pairs"),
        (_edit(PAIRS, lambda lines: []), BAD, "is empty"),
        (_edit(TID, lambda lines: ["", *lines[:3], " ", "4.jpg 7", *lines[4:]]), BAD, "line 6: 2 columns"),
        (lambda folder: (folder / "loose_crop" / "3.jpg").write_bytes(b""), BAD, r"3\.jpg: has 0 bytes.*1 of"),
        (lambda folder: (folder / "meta" / TID).write_text("1.jpg 1 1", encoding="utf-16"), BAD, "UTF-16"),
        (_edit(GALLERY, lambda lines: lines[1:]), BAD, "not with a header"),
        (_edit(GALLERY, lambda lines: [*lines, "77777,500,a"]), BAD, "template 77777"),
        (_edit(GALLERY, lambda lines: [*lines, "10,501,a"]), BAD, "template 10 has subjects 500, 501"),
        (_edit(GALLERY, lambda lines: [*lines, "13,500,a"]), BAD, "a subject has two templates"),
        (lambda folder: (folder / "loose_crop" / "3.jpg").unlink(), FileNotFoundError, r"3\.jpg is missing"),
        (lambda folder: (folder / "meta" / PAIRS).unlink(), FileNotFoundError, "pair_label"),
        (lambda folder: (folder / "meta" / TID).unlink(), BAD, "neither"),
    ],
)
def test_a_broken_original_set_is_named(
    original: Path, damage: Callable[[Path], None], kind: type[Exception], said: str
):
    damage(original)
    with pytest.raises(kind, match=said):
        open_ijb(original)


def test_blank_lines_ends_of_lines_and_marks_change_nothing(original: Path):
    folder = original
    expected = open_ijb(folder).sha256()
    files = [folder / "meta" / name for name in (TID, POINTS, PAIRS, GALLERY, "ijbc_1N_probe_mixed.csv")]
    as_written = {path: path.read_text() for path in files}
    changes: dict[str, Callable[[str], str]] = {
        "blank lines": lambda text: text + " \t\n\n",
        "no last newline": lambda text: text.removesuffix("\n"),
        "CRLF": lambda text: text.replace("\n", "\r\n"),
        "blank between": lambda text: text.replace("\n", " \n\n"),
        "tabs": lambda text: text.replace(" ", "\t  "),
        "BOM": lambda text: "\ufeff" + text,
    }
    for what, change in changes.items():
        for path, text in as_written.items():
            path.write_bytes(change(text).encode())
        assert open_ijb(folder).sha256() == expected, what


def _metadata(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = read_torch_metadata(folder / "metadata.pt")
        torch.save(change(content) or content, folder / "metadata.pt")

    return damage


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (_metadata(lambda found: found.pop("medias") is None), BAD, "has no medias"),
        (_metadata(lambda found: found.update(medias=found["medias"][:-1])), BAD, "one of each for every image"),
        (_metadata(lambda found: {k: v[:-1] for k, v in found.items()}), BAD, "speaks of"),
        (_metadata(lambda found: found.update(label=found["label"][:-1])), BAD, "labels"),
        (_metadata(lambda found: found.update(p1=["a"] * len(found["p1"]))), BAD, "not a row of numbers"),
        (_metadata(lambda found: found.update(p1=found["p1"] + 0.5)), BAD, "other than whole"),
        (_metadata(lambda found: found.update(p1=found["p1"] + 1)), BAD, "has no images"),
        (_metadata(lambda found: found.update(p1=Path("x"))), TorchMetadataError, "names the global"),
        (lambda folder: (folder / "metadata.pt").write_bytes(b"PK"), TorchMetadataError, "cut short"),
        (lambda folder: (folder / "metadata.pt").unlink(), FileNotFoundError, r"metadata\.pt"),
    ],
)
def test_a_broken_prepared_set_is_named(
    prepared: Path, damage: Callable[[Path], None], kind: type[Exception], said: str
):
    damage(prepared)
    with pytest.raises(kind, match=said):
        open_ijb(prepared)


def test_prepared_images_of_another_size_are_refused_and_not_scaled(written: Path):
    opened = open_ijb(written / "IJBC_gt_aligned")
    with pytest.raises(ImageSetError, match="aligned for its own size"):
        next(pixel_blocks(opened.images, [(0, 2)], image_size=96))
