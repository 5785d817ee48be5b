"""The colour order of a teacher is found by trying both, decided only on evidence, and the same on every rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from drawn_faces import SIDE, faces, write_faces
from tiny_training import PlainStudent
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.teachers import color_check
from adadistill.core.teachers.color_check import resolve_color, score_color_orders
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.face_pairs import FacePairs
from adadistill.core.teachers.interface import LoadedTeacher, TeacherError, TeacherIdentity
from adadistill.core.teachers.preprocessing import Color, Preprocessing
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError, write_verification_bin
from adadistill.loaders.records.image_records import ImageRecords

TESTS = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")
AUTO = TeacherConfig(checkpoint="unused", color="auto")


class FirstChannel(nn.Module):
    """Sees nothing but its first input channel: red in one order, blue in the other."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0].flatten(1)


class Reversed(nn.Module):
    """The same network, trained on the other order."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.flip(1))


class Grey(nn.Module):
    """Blind to colour: the mean of the channels, for a network of random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.body = PlainStudent()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1))


def teacher(body: nn.Module, stated: Color | None = None) -> LoadedTeacher:
    identity = TeacherIdentity(
        kind="weights",
        name="faces.pth",
        arch="mobilefacenet",
        sha256="0" * 64,
        embedding_dim=16,
        image_size=SIDE,
        preprocessing=Preprocessing(color=stated or "rgb"),
    )
    return LoadedTeacher(body.eval(), identity, stated)


def couples(people: int, *, red: float, blue: float, seed: int = 0) -> FacePairs:
    """A couple of images of each person, compared within and with the next person."""
    images = torch.from_numpy(faces(people, 2, red=red, blue=blue, seed=seed).reshape(-1, SIDE, SIDE, 3))
    first = 2 * np.arange(people)
    pairs = np.concatenate([np.stack([first, first + 1], 1), np.stack([first, (first + 3) % len(images)], 1)])
    return FacePairs(images, pairs, np.arange(len(pairs)) < people, "drawn faces")


# --- scores ------------------------------------------------------------------------------------------------------


def test_the_order_that_shows_more_of_who_it_is_wins():
    result = score_color_orders(teacher(FirstChannel()), couples(100, red=0.5, blue=1.0), device=CPU)

    assert result.better == "rgb"
    assert result.z > 3.0
    assert result.rgb.separation > result.bgr.separation
    assert result.rgb.auc > result.bgr.auc
    assert result.rgb.same_cosine - result.rgb.different_cosine > 0.5
    assert (result.same_pairs, result.different_pairs) == (100, 100)


def test_a_network_of_the_other_order_gets_the_same_scores_the_other_way_round():
    pairs, body = couples(60, red=0.3, blue=1.5), PlainStudent()
    ours = score_color_orders(teacher(body), pairs, device=CPU, batch_size=7)
    theirs = score_color_orders(teacher(Reversed(body)), pairs, device=CPU, batch_size=7)
    assert (theirs.rgb, theirs.bgr, theirs.z) == (ours.bgr, ours.rgb, -ours.z)
    bgr = replace(teacher(body), identity=replace(teacher(body).identity, preprocessing=Preprocessing(color="bgr")))
    assert score_color_orders(bgr, pairs, device=CPU, batch_size=7) == ours, "the order that it has now is of no matter"


def test_a_network_blind_to_colour_stays_undecided():
    result = score_color_orders(teacher(Grey()), couples(150, red=0.3, blue=2.0), device=CPU)
    assert result.better is None
    assert abs(result.gap) < 1e-4


def test_a_difference_too_small_to_matter_decides_nothing_however_consistent_it_is():
    class MostlyGreen(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images[:, 1] + 1e-3 * images[:, 0]).flatten(1)

    pairs = couples(200, red=0.1, blue=0.1)
    pairs.images_u8[..., 2] = 128  # nothing to see
    result = score_color_orders(teacher(MostlyGreen()), pairs, device=CPU)
    assert result.z > 3.0
    assert 0.0 < result.gap < 0.01
    assert result.better is None


@pytest.mark.parametrize("strangers", [1, 5])
def test_z_knows_the_size_of_chance_where_both_orders_are_equally_good(strangers):
    """Both channels carry equally noisy copies of the same faces. Comparisons of one image are no more evidence."""
    z, first = [], 2 * np.arange(40)
    for seed in range(40):
        base = couples(40, red=1.0, blue=1.0, seed=seed)
        met = [np.stack([first, (first + 2 * step + 1) % 80], 1) for step in range(1, strangers + 1)]
        pairs = np.concatenate([np.stack([first, first + 1], 1), *met])
        faces = FacePairs(base.images_u8, pairs, np.arange(len(pairs)) < 40, "drawn faces")
        z.append(score_color_orders(teacher(FirstChannel()), faces, device=CPU).z)
    assert 0.5 < np.std(z) < 1.35  # 40 draws know a deviation to 11 %; the bootstrap errs to the careful side
    assert np.mean(np.abs(z) >= 3.0) <= 0.025


def test_a_network_that_gives_nan_is_refused():
    body = PlainStudent()
    with torch.no_grad():
        body.linear.bias[0] = float("nan")
    with pytest.raises(TeacherError, match=r"faces\.pth gives NaN or infinity for 60 of 60 images"):
        score_color_orders(teacher(body), couples(30, red=1.0, blue=1.0), device=CPU)


def test_embeddings_that_are_all_alike_or_zero_score_nothing():
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.new_zeros(len(images), 4)

    result = score_color_orders(teacher(Constant()), couples(30, red=1.0, blue=1.0), device=CPU)
    assert (result.better, result.z, result.rgb.separation, result.rgb.auc) == (None, 0.0, 0.0, 0.5)


# --- decisions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> ImageRecords:
    """Faces whose red tells much more than their blue."""
    return write_faces(tmp_path_factory.mktemp("records") / "faces", 60, 2)


def resolve(loaded: LoadedTeacher, config: TeacherConfig, records: ImageRecords):
    return resolve_color(loaded, config, records=records, image_size=SIDE, ranks=Ranks())


def test_the_better_order_is_taken_where_neither_recipe_nor_source_objects(records):
    loaded = teacher(FirstChannel())
    assert resolve(loaded, TeacherConfig(checkpoint="unused", color="bgr"), records) == (loaded, None)
    for stated in (None, "rgb"):
        found, result = resolve(teacher(FirstChannel(), stated), AUTO, records)
        assert result.better == found.identity.preprocessing.color == "rgb"
    found, result = resolve(teacher(Reversed(FirstChannel())), AUTO, records)
    assert result.better == found.identity.preprocessing.color == "bgr"
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(found.network()(images), images[:, 0].flatten(1))  # the network now gets what it was made for


def test_a_source_that_the_scores_contradict_is_refused_with_both_scores(records):
    with pytest.raises(TeacherError) as caught:
        resolve(teacher(FirstChannel(), stated="bgr"), AUTO, records)
    text = str(caught.value)
    assert "faces.pth: its source states bgr, but rgb tells people apart better on records of train.rec" in text
    assert "set teacher.color=rgb" in text
    assert text.count("d' ") >= 2


def test_undecided_scores_leave_the_stated_order_with_a_warning_and_a_silent_source_is_refused(records, caplog):
    found, result = resolve(teacher(Grey(), "bgr"), AUTO, records)
    assert result.better is None
    assert found.identity.preprocessing.color == "bgr"
    assert "bgr stands, as its source states" in caplog.text
    with pytest.raises(TeacherError, match=r"set teacher\.color to rgb or bgr"):
        resolve(teacher(Grey()), AUTO, records)


# --- whose colours are swapped -------------------------------------------------------------------------------------


def write_set(path: Path, *, red: float, blue: float) -> str:
    pixels = faces(80, 2, red=red, blue=blue, seed=5).reshape(160, SIDE, SIDE, 3)
    pixels[1::4] = np.roll(pixels[1::4], 1, axis=0)  # every second pair shows two people
    bodies = [simplejpeg.encode_jpeg(image, quality=100, colorsubsampling="444") for image in pixels]
    write_verification_bin(path, bodies, np.arange(80) % 2 == 1)
    return str(path)


def test_a_recipe_can_name_the_set_to_score_on(tmp_path, records):
    config = replace(AUTO, color_set=write_set(tmp_path / "set.bin", red=0.5, blue=3.0))
    _, result = resolve(teacher(FirstChannel()), config, records)
    assert (result.origin, result.better) == ("set.bin", "rgb")
    (tmp_path / "set.bin").write_bytes(b"not a set")
    with pytest.raises(VerificationSetError):
        resolve(teacher(FirstChannel()), config, records)


@pytest.fixture(scope="module")
def swapped(tmp_path_factory) -> ImageRecords:
    """The faces of `records` with red and blue swapped."""
    return write_faces(tmp_path_factory.mktemp("swapped") / "faces", 60, 2, red=3.0, blue=0.5)


@pytest.mark.parametrize("stated", ["rgb", None])
def test_sets_tell_swapped_records_from_a_teacher_of_the_other_order(tmp_path, swapped, stated):
    sets = [str(tmp_path / "not there.bin"), write_set(tmp_path / "lfw.bin", red=0.5, blue=3.0)]
    with pytest.raises(TeacherError) as caught:
        resolve_color(teacher(FirstChannel(), stated), AUTO, records=swapped, image_size=SIDE, ranks=Ranks(), sets=sets)
    text = str(caught.value)
    assert "On lfw.bin it tells people apart better in rgb" in text
    assert (
        "red and blue are swapped in " + ("records of train.rec. Keep teacher.color=rgb" if stated else "either")
        in text
    )
    assert "teacher.color=bgr" not in text


def test_where_the_sets_say_so_too_the_teacher_is_of_the_other_order(tmp_path, swapped):
    sets = [write_set(tmp_path / "lfw.bin", red=3.0, blue=0.5)]
    with pytest.raises(TeacherError, match=r"lfw\.bin says bgr too \(z = [0-9.]+\): set teacher\.color=bgr"):
        resolve_color(teacher(FirstChannel(), "rgb"), AUTO, records=swapped, image_size=SIDE, ranks=Ranks(), sets=sets)
    silent = teacher(FirstChannel())
    found, _ = resolve_color(silent, AUTO, records=swapped, image_size=SIDE, ranks=Ranks(), sets=sets)
    assert found.identity.preprocessing.color == "bgr"


def test_without_a_second_witness_both_readings_are_given(swapped):
    with pytest.raises(TeacherError) as caught:
        resolve(teacher(FirstChannel(), "rgb"), AUTO, swapped)
    text = str(caught.value)
    assert "Either the teacher was trained on bgr: then set teacher.color=bgr" in text
    assert "Or red and blue are swapped in records of train.rec" in text
    assert "data inspect" in text


def test_records_speak_where_a_set_is_scored(tmp_path, swapped):
    config = replace(AUTO, color_set=write_set(tmp_path / "lfw.bin", red=0.5, blue=3.0))
    with pytest.raises(TeacherError, match=r"swapped in records of train\.rec\. Keep teacher\.color=rgb"):
        resolve(teacher(FirstChannel(), "rgb"), config, swapped)


# --- ranks -------------------------------------------------------------------------------------------------------


def test_a_rank_takes_rank_0s_word_whatever_it_would_find_itself(monkeypatch, records):
    _, of_rank_0 = resolve(teacher(FirstChannel()), AUTO, records)
    monkeypatch.setattr(color_check, "run_on_main", lambda score, ranks: (of_rank_0, None))
    found, result = resolve(teacher(Reversed(FirstChannel())), AUTO, records)  # it would find bgr
    assert result is of_rank_0
    assert found.identity.preprocessing.color == "rgb"


def test_records_without_enough_pairs_are_refused(tmp_path):
    with pytest.raises(TeacherError, match="30 records of 30 identities"):
        resolve(teacher(FirstChannel()), AUTO, write_faces(tmp_path / "faces", 30, 1))
