"""A teacher is tried on the people of the records before anything is learned from it, wherever it comes from."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import small_cache
import torch
from tiny_training import tiny_recipe, write_tiny_records
from torch import nn

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.precision import resolve_precision
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.teachers import LoadedTeacher, TeacherError, TeacherIdentity, build_teacher, record_binding
from adadistill.core.teachers.cache_build import build_cache
from adadistill.core.teachers.knows_people import check_network, knows_people
from adadistill.core.teachers.people_score import people_score
from adadistill.core.teachers.preprocessing import Preprocessing
from adadistill.core.training.run import run_training
from adadistill.core.training.stop_signal import StopSignal
from adadistill.loaders.block_store.errors import StoreIncompleteError
from adadistill.loaders.block_store.teacher_cache import TeacherCache
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import write_insightface_records

SIDE, PEOPLE, IMAGES, DIM = 32, 60, 2, 16
NETWORK = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=DIM)


def write_faces(folder: Path, labels: list[int]) -> Path:
    """Images of which the left half tells who it is."""
    draw = np.random.default_rng(0)
    who = draw.normal(size=(max(labels) + 1, 8, 4, 1))
    samples = []
    for label in labels:
        grey = np.concatenate([who[label] + 0.2 * draw.normal(size=(8, 4, 1)), draw.normal(size=(8, 4, 1))], axis=1)
        pixels = np.clip(128 + 40 * grey, 0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1).repeat(3, 2)
        samples.append((label, simplejpeg.encode_jpeg(pixels, quality=100)))
    folder.mkdir(parents=True, exist_ok=True)
    return write_insightface_records(folder, samples, image_size=(SIDE, SIDE))


class LeftHalf(nn.Module):
    """Sees who it is: the left half in blocks, or what stands in the middle of a mirrored image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, ::4, :16:4].flatten(1)


class Constant(nn.Module):
    def __init__(self, value: float, spread: float = 0.0) -> None:
        super().__init__()
        self.value, self.spread = value, spread

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.value + self.spread * images[:, 0, ::4, :16:4].flatten(1)


def loaded(body: nn.Module) -> LoadedTeacher:
    identity = TeacherIdentity(
        kind="weights", name="faces.pth", arch="mobilefacenet", sha256="0" * 64, embedding_dim=DIM, image_size=SIDE,
        preprocessing=Preprocessing(),
    )  # fmt: skip
    return LoadedTeacher(body.eval(), identity, None)


def look(body: nn.Module, records: ImageRecords) -> None:
    check_network(loaded(body), records=records, image_size=SIDE, ranks=Ranks())


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> ImageRecords:
    return ImageRecords(write_faces(tmp_path_factory.mktemp("faces"), sorted([*range(PEOPLE)] * IMAGES)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_records(folder, identities=24, images=4)
    return folder


# --- networks ----------------------------------------------------------------------------------------------------


def test_a_network_that_knows_them_passes(faces: ImageRecords, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    look(LeftHalf(), faces)
    assert "knows the people of train.rec: mean cosine" in caplog.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (Constant(1.0), "one and the same embedding for everybody: mean cosine 1.0000"),
        (Constant(0.0), "gives zero for 120 of 120 images"),
        (Constant(float("nan")), "gives NaN or infinity for 120 of 120 images"),
    ],
)
def test_a_network_that_knows_nobody_is_refused(faces: ImageRecords, body: nn.Module, message: str):
    with pytest.raises(TeacherError, match=rf"teacher faces\.pth .*{message}"):
        look(body, faces)


def test_an_untrained_network_is_refused(tiny: Path):
    body = build_backbone(NETWORK, SIDE, generator=1)
    with pytest.raises(TeacherError, match=r"faces\.pth does not know the people of .*teacher\.check=false"):
        look(body, ImageRecords(tiny / "train.rec"))


def test_labels_that_are_not_theirs_are_given_as_the_other_reason(tmp_path: Path, faces: ImageRecords):
    order = np.random.RandomState(0).permutation(len(faces))
    bodies = [(faces.read(place).label, faces.read(int(other)).body) for place, other in enumerate(order)]
    mixed = ImageRecords(write_insightface_records(tmp_path, bodies, image_size=(SIDE, SIDE)))
    with pytest.raises(TeacherError, match="or the labels are not theirs"):
        look(LeftHalf(), mixed)


def test_where_nobody_has_two_images_mirror_images_are_tried_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    singles = ImageRecords(write_faces(tmp_path, list(range(40))))

    class Symmetric(LeftHalf):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) + super().forward(images.flip(3))

    look(Symmetric(), singles)
    assert "no two images are of one identity (40 records of 40 identities looked at)" in caplog.text
    with pytest.raises(TeacherError, match="not know"):
        look(LeftHalf(), singles)  # an image and its mirror image are strangers to it
    with pytest.raises(TeacherError, match="one and the same"):
        look(Constant(1.0), singles)


def test_one_identity_alone_cannot_be_tried_and_damaged_records_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    look(LeftHalf(), ImageRecords(write_faces(tmp_path, [0] * 8)))
    assert "cannot be tried on" in caplog.text
    path = write_faces(tmp_path / "damaged", sorted([*range(PEOPLE)] * IMAGES))
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xd8\xff")
    content[place : place + 3] = b"\0\0\0"
    path.write_bytes(content)
    look(LeftHalf(), ImageRecords(path))


# --- training and caches -----------------------------------------------------------------------------------------


def network_recipe(folder: Path, data: Path, **more: object) -> Recipe:
    network = build_backbone(NETWORK, SIDE, generator=3).eval()
    save_network(folder / "untrained", network, NETWORK, SIDE)
    teacher = {"teacher__embeddings": "null", "teacher__checkpoint": folder / "untrained"}
    return tiny_recipe(data, **teacher, **{"optim__epochs": 1, "optim__milestones": "[]", **more})


def test_training_and_a_cache_are_not_begun_unless_told_not_to_ask(tiny: Path, tmp_path: Path):
    with pytest.raises(TeacherError, match="does not know the people"):
        run_training(network_recipe(tmp_path / "a", tiny), tmp_path / "run", ranks=Ranks())
    assert not (tmp_path / "run").exists()
    unasked = network_recipe(tmp_path / "b", tiny, teacher__check="false")
    assert run_training(unasked, tmp_path / "run", ranks=Ranks()).metrics
    recipe = network_recipe(tmp_path / "c", tiny, teacher__cache=tmp_path / "cache")
    with pytest.raises(TeacherError, match="does not know the people"):
        build_cache(recipe, ranks=Ranks(), stop=StopSignal(), batch_size=16)
    with pytest.raises(StoreIncompleteError):
        TeacherCache(tmp_path / "cache")


# --- rows --------------------------------------------------------------------------------------------------------


def rows_of(kind: str, good: np.ndarray) -> np.ndarray:
    draw = np.random.default_rng(1)
    noise = draw.normal(size=good.shape)
    return {
        "random": noise,
        "constant": np.ones_like(good),
        "shuffled": good[draw.permutation(len(good))],
        "shifted": np.roll(good, 1, axis=0),
        "another view": np.stack([good[:, 0], good[draw.permutation(len(good)), 1]], axis=1),
    }[kind].astype(np.float16)


def build(recipe: Recipe) -> None:
    assert recipe.teacher is not None
    build_teacher(
        recipe.teacher, records=ImageRecords(recipe.data.records), data=recipe.data,
        augmentation=recipe_augmentation(recipe), embedding_dim=DIM,
        precision=resolve_precision("float32", torch.device("cpu")), ranks=Ranks(),
    )  # fmt: skip


def save_cache(folder: Path, rows: np.ndarray, records: ImageRecords) -> None:
    header = small_cache.small_header(
        num_records=len(rows), embedding_dim=DIM, block_records=64, records=record_binding(records), built={}
    )
    wide = rows.astype(np.float64)
    small_cache.build(folder, header, rows=wide / np.linalg.norm(wide, axis=2, keepdims=True))


@pytest.mark.parametrize("kind", ["random", "constant", "shuffled", "shifted", "another view"])
def test_rows_that_know_nobody_are_refused(tiny: Path, tmp_path: Path, kind: str):
    rows = rows_of(kind, np.load(tiny / "teacher.npy"))
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(TeacherError, match=r"one and the same|does not know the people"):
        build(tiny_recipe(tiny, teacher__embeddings=tmp_path / "rows.npy"))


def test_a_cache_that_knows_nobody_is_refused(tiny: Path, tmp_path: Path):
    save_cache(tmp_path / "cache", rows_of("shuffled", np.load(tiny / "teacher.npy")), ImageRecords(tiny / "train.rec"))
    with pytest.raises(TeacherError, match=r"does not know the people"):
        build(tiny_recipe(tiny, teacher__embeddings="null", teacher__cache=tmp_path / "cache"))


def test_a_shift_is_found_in_few_identities_and_random_rows_of_single_images_by_their_views(tmp_path: Path):
    for identities, images in ((6, 8), (48, 1)):
        folder = tmp_path / f"{identities}"
        write_tiny_records(folder, identities=identities, images=images)
        recipe, rows = tiny_recipe(folder), np.load(folder / "teacher.npy")
        build(recipe)
        if images == 1:
            rows = np.random.default_rng(0).normal(size=rows.shape).astype(np.float16)
        np.save(folder / "teacher.npy", np.roll(rows, 1, axis=0))
        with pytest.raises(TeacherError, match="does not know the people"):
            build(recipe)


# --- judgement ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("same", "different", "spread", "pairs", "knows"),
    [
        (0.64, 0.01, 0.1, 64, True),
        (0.45, 0.05, 0.2, 64, True),  # a small network
        (0.48, 0.36, 0.33, 64, False),  # an untrained one: a gap of 0.12, and a d' of 0.4
        (0.97, 0.95, 0.03, 64, False),
        (0.5, 0.3, 0.4, 10, True),  # too few pairs to know d'
        (0.3, 0.25, 0.4, 10, False),
    ],
)
def test_the_gap_and_the_separation_decide(same: float, different: float, spread: float, pairs: int, knows: bool):
    ends = np.tile([-spread, spread], pairs // 2)
    score = people_score(np.concatenate([same + ends, different + ends]), np.arange(2 * pairs) < pairs)
    assert knows_people(score) == knows
