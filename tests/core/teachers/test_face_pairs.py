"""Pairs are of whom their flags say, chosen without chance, and little is read of large files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from drawn_faces import SIDE, faces, write_faces

from adadistill.core.teachers.face_pairs import (
    LEAST_PAIRS,
    couples_of,
    pairs_of_records,
    pairs_of_set,
    record_couples,
    sampled_ids,
)
from adadistill.core.teachers.interface import TeacherError
from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
from adadistill.loaders.pixels import decode_image


def test_pairs_of_records_are_of_whom_their_flags_say(tmp_path):
    records = write_faces(tmp_path / "faces", 30, 3)
    who = {decode_image(records.read(i).body, where="").tobytes(): records.read(i).label for i in range(len(records))}
    assert len(who) == 90  # every image is unlike every other, so pixels tell whose they are

    found = pairs_of_records(records, image_size=SIDE, pairs=25)

    labels = np.array([who[image.tobytes()] for image in found.images_u8.numpy()])
    assert found.images_u8.shape == (50, SIDE, SIDE, 3)
    assert len({image.tobytes() for image in found.images_u8.numpy()}) == 50  # no image twice
    assert np.array_equal(labels[found.pairs[:, 0]] == labels[found.pairs[:, 1]], found.same)
    assert found.same.sum() == 25
    assert (~found.same).sum() == 25 * 8
    assert len(np.unique(labels[::2])) == 25  # with 30 identities nobody comes twice


def test_few_identities_with_many_images_come_again_only_after_all_came(tmp_path):
    records = write_faces(tmp_path / "faces", 5, 10)
    found, again = (pairs_of_records(records, image_size=SIDE, pairs=400) for _ in range(2))
    assert found.same.sum() == 25  # every image in one couple
    assert (~found.same).sum() >= LEAST_PAIRS
    assert torch.equal(found.images_u8, again.images_u8), "equal arguments give equal pairs"
    assert np.array_equal(found.pairs, again.pairs)


@pytest.mark.parametrize(("people", "images"), [(60, 1), (19, 2)])
def test_records_without_enough_pairs_are_refused_with_the_counts(tmp_path, people, images):
    records = write_faces(tmp_path / "faces", people, images)
    with pytest.raises(TeacherError, match=rf"{people * images} records of {people} identities .* teacher.color_set"):
        pairs_of_records(records, image_size=SIDE)


@pytest.mark.parametrize("records", [1, 65536, 65537, 5_800_000])
def test_of_large_files_evenly_spread_windows_are_looked_at(records):
    ids = sampled_ids(records, 65536)
    assert len(ids) <= 65536
    assert ids[0] == 0
    assert ids[-1] == records - 1
    assert (np.diff(ids) > 0).all()
    assert (np.diff(ids) == 1).mean() >= 0.98 if records > 1 else True  # neighbours, where sorted files have couples


def test_pairs_of_a_set_are_evenly_spread_over_both_kinds(tmp_path):
    pixels = faces(100, 2, red=1.0, blue=1.0).reshape(200, SIDE, SIDE, 3)
    same = np.arange(100) % 4 == 0
    write_verification_bin(tmp_path / "set.bin", [simplejpeg.encode_jpeg(image) for image in pixels], same)

    everything = pairs_of_set(tmp_path / "set.bin", image_size=SIDE)
    some = pairs_of_set(tmp_path / "set.bin", image_size=SIDE, pairs=40)

    assert np.array_equal(everything.same, same)
    assert np.array_equal(everything.pairs, np.arange(200).reshape(100, 2))
    assert everything.origin == "set.bin"
    assert (some.same.sum(), (~some.same).sum()) == (20, 20)
    rows = {image.tobytes() for image in everything.images_u8.numpy()}
    assert all(image.tobytes() in rows for image in some.images_u8.numpy())


def test_a_set_of_one_kind_is_refused(tmp_path):
    image = simplejpeg.encode_jpeg(faces(1, 1, red=1.0, blue=1.0)[0, 0])
    write_verification_bin(tmp_path / "set.bin", [image] * 60, [True] * 30)
    with pytest.raises(TeacherError, match="30 same and 0 different pairs; 20 of each"):
        pairs_of_set(tmp_path / "set.bin", image_size=SIDE)


def test_couples_are_nested_and_every_identity_comes_before_any_comes_again():
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
    places, first = couples_of(labels, 10)
    assert places.tolist() == [[0, 4], [6, 7], [8, 11], [1, 3], [9, 10]]
    assert first == 3
    assert couples_of(labels, 2)[0].tolist() == [[0, 4], [8, 11]]
    assert couples_of(np.array([4, 5]), 3)[0].shape == (0, 2)
    assert couples_of(np.array([], dtype=np.int64), 3)[0].shape == (0, 2)


class Numbers:
    """Labels alone, of a file that is too large for a test."""

    path = Path("large.rec")

    def __init__(self, labels: np.ndarray) -> None:
        self.labels_, self.read_ = labels, 0

    def __len__(self) -> int:
        return len(self.labels_)

    def read(self, record_id: int):
        self.read_ += 1
        return type("Image", (), {"label": int(self.labels_[record_id])})()


@pytest.mark.parametrize("shuffled", [False, True])
def test_of_large_files_couples_are_whole_identities_and_little_is_read(shuffled: bool):
    labels = np.repeat(np.arange(4000), 50)
    if shuffled:
        labels = np.random.default_rng(0).permutation(labels)
    records = Numbers(labels)
    couples = record_couples(records, most=64)  # type: ignore[arg-type]
    assert couples.first == len(np.unique(couples.labels)) == 64
    assert (labels[couples.ids] == couples.labels[:, None]).all()
    assert records.read_ <= 4096 + 16384
    if not shuffled:
        assert (couples.ids[:, 1] - couples.ids[:, 0] == 49).all(), "the first and the last of the file"
