"""Synthetic faces: reproducible picture by picture, in the field's formats, and as hard as they are meant to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.loaders.evaluation_sets.verification_pairs import read_verification_bin
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.synthetic.face_parameters import draw_identity, draw_picture
from adadistill.loaders.synthetic.synthetic_faces import (
    VERIFICATION_IDENTITIES,
    Faces,
    SyntheticFacesConfig,
    _encoded_pictures,
    pair_members,
    render_faces,
    write_synthetic_pairs,
    write_synthetic_records,
)

SMALL = SyntheticFacesConfig(image_size=32, identities=5, images_per_identity=3, seed=11)


def numbers(config: SyntheticFacesConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Identity and image number of every picture of a training set, in its order."""
    ordinals = np.arange(config.identities * config.images_per_identity)
    return ordinals // config.images_per_identity, ordinals % config.images_per_identity


def best_accuracy(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> float:
    """Accuracy at the threshold that suits these very pairs best, no less than what the ten-fold protocol gives."""
    ranked = same[np.argsort(-scores)]
    right = np.cumsum(ranked) + (~ranked).sum() - np.cumsum(~ranked)
    return float(right.max() / len(same))


def pair_cosines(embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return (unit[0::2] * unit[1::2]).sum(axis=1)


def network_embeddings(network: torch.nn.Module, images_u8: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Flip-summed embeddings in eval mode."""
    network.eval()
    with torch.inference_mode():
        images = torch.from_numpy(images_u8).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
        parts = [network(part) + network(part.flip(3)) for part in images.split(256)]
    return torch.cat(parts).numpy()


# One past a group of 64 pictures of 32 x 32, and a size with a group of five.
@pytest.mark.parametrize(("image_size", "count"), [(32, 65), (112, 6)])
def test_a_picture_depends_on_seed_identity_and_number_alone(image_size: int, count: int):
    config = SyntheticFacesConfig(image_size=image_size, seed=3)
    identities, image_numbers = np.arange(count) * 7 % 5, np.arange(count)
    together = render_faces(config, identities, image_numbers)
    backwards = render_faces(config, identities[::-1], image_numbers[::-1])
    np.testing.assert_array_equal(backwards.images_u8[::-1], together.images_u8)
    np.testing.assert_array_equal(backwards.quality[::-1], together.quality)
    for i in (0, count // 2, count - 1):
        alone = render_faces(config, identities[i : i + 1], image_numbers[i : i + 1])
        np.testing.assert_array_equal(alone.images_u8[0], together.images_u8[i])


def test_another_seed_identity_or_number_is_another_picture():
    here = render_faces(SMALL, np.array([4]), np.array([9])).images_u8.astype(float)
    for seed, identity, number in ((12, 4, 9), (11, 5, 9), (11, 4, 10)):
        config = SyntheticFacesConfig(image_size=32, seed=seed)
        there = render_faces(config, np.array([identity]), np.array([number]))
        assert np.abs(here - there.images_u8).mean() > 8


@pytest.mark.parametrize("image_size", [16, 48, 80])
def test_a_sharp_picture_is_the_same_at_every_size(image_size: int):
    """Compared with 112 x 112, each averaged over 4 x 4 parts; a stranger's picture is the measure."""
    identities, image_numbers = np.arange(20), np.arange(20)

    def parts(size: int) -> NDArray[np.floating]:
        config = SyntheticFacesConfig(image_size=size, lowest_quality=1.0)
        images_u8 = render_faces(config, identities, image_numbers).images_u8
        return images_u8.reshape(20, 4, size // 4, 4, size // 4, 3).mean(axis=(2, 4))

    large, small = parts(112), parts(image_size)
    assert np.abs(large - small).mean() < 0.1 * np.abs(large - np.roll(small, 1, axis=0)).mean()


def test_draws_of_neighbouring_identities_and_pictures_are_unrelated():
    count = 1500
    ordinals = np.arange(count)
    face, waves = draw_identity(0, ordinals)
    picture, _ = draw_picture(0, np.zeros(count, np.int64), ordinals)
    tables = [np.concatenate(list(face.values()), axis=1), np.concatenate(list(picture.values()), axis=1), waves[:, 1]]
    for table in tables:
        standard = (table - table.mean(axis=0)) / table.std(axis=0)
        limit = 5.5 / np.sqrt(count)  # standard errors, over some thousand correlations
        assert np.abs((standard[:-1] * standard[1:]).mean(axis=0)).max() < limit
        between = standard.T @ standard / count
        assert np.abs(between - np.eye(len(between))).max() < limit


def test_lower_quality_is_further_from_the_sharp_picture():
    identities, image_numbers = np.arange(15), np.arange(15)

    def at(quality: float) -> NDArray[np.floating]:
        config = SyntheticFacesConfig(image_size=32, lowest_quality=quality, highest_quality=quality)
        faces = render_faces(config, identities, image_numbers)
        assert (faces.quality == np.float32(quality)).all()
        return faces.images_u8.astype(float)

    sharp = at(1.0)
    distances = [np.abs(at(quality) - sharp).mean() for quality in (0.8, 0.6, 0.4, 0.2, 0.0)]
    assert distances == sorted(distances)
    assert distances[-1] > 3 * distances[0]


def test_records_hold_every_picture_in_order(tmp_path: Path):
    path = write_synthetic_records(tmp_path / "new" / "faces", SMALL)
    records = ImageRecords(path)
    identities, image_numbers = numbers(SMALL)
    assert path == tmp_path / "new" / "faces" / "train.rec"
    with pytest.raises(FileExistsError):
        write_synthetic_records(path.parent, SMALL)
    assert records.num_classes == SMALL.identities
    np.testing.assert_array_equal(records.labels(), identities)
    drawn = render_faces(SMALL, identities, image_numbers).images_u8
    for record_id in range(len(records)):
        decoded = simplejpeg.decode_jpeg(records.read(record_id).body)
        assert decoded.shape == (32, 32, 3)
        assert np.abs(decoded.astype(float) - drawn[record_id]).mean() < 4


def test_files_do_not_depend_on_threads(tmp_path: Path):
    config = SyntheticFacesConfig(image_size=32, identities=5, images_per_identity=20)
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        write_synthetic_records(folder, config, threads=threads)
        write_synthetic_pairs(folder / "pairs.bin", config, pairs=20, threads=threads)
    for name in ("train.rec", "train.idx", "property", "pairs.bin"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_a_small_set_is_part_of_a_larger_one(tmp_path: Path):
    large = ImageRecords(write_synthetic_records(tmp_path / "large", SMALL))
    config = SyntheticFacesConfig(
        image_size=32, seed=11, first_identity=2, identities=3, first_image=1, images_per_identity=2
    )
    small = ImageRecords(write_synthetic_records(tmp_path / "small", config))
    of_large = [large.read(identity * 3 + number).body for identity in (2, 3, 4) for number in (1, 2)]
    assert [small.read(i).body for i in range(len(small))] == of_large
    assert small.labels().tolist() == [0, 0, 1, 1, 2, 2]


def test_pictures_are_drawn_only_a_little_ahead():
    asked: list[int] = []

    def members(start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        asked.append(start)
        return np.arange(start, stop), np.zeros(stop - start, np.int64)

    stream = _encoded_pictures(SyntheticFacesConfig(image_size=112), 1 << 40, members, threads=1)
    next(stream)
    stream.close()
    assert len(asked) <= 4


def test_verification_pairs_are_balanced_fresh_and_separate_between_folds():
    pairs = 300
    identities, image_numbers = pair_members(pairs)
    same = identities[0::2] == identities[1::2]
    assert same.tolist() == [True, False] * (pairs // 2)
    assert len(set(zip(identities.tolist(), image_numbers.tolist(), strict=True))) == 2 * pairs
    folds = identities.reshape(10, -1)
    assert sum(len(set(fold.tolist())) for fold in folds) == len(set(identities.tolist()))
    assert identities.min() >= VERIFICATION_IDENTITIES


def test_a_verification_set_reads_as_it_was_written(tmp_path: Path):
    path = write_synthetic_pairs(tmp_path / "new" / "synthetic.bin", SMALL, pairs=20)
    pairs = read_verification_bin(path)
    assert pairs.name == "synthetic"
    assert pairs.same.tolist() == [True, False] * 10
    drawn = render_faces(SMALL, *pair_members(20)).images_u8
    for body, image in zip(pairs.images, drawn, strict=True):
        assert np.abs(simplejpeg.decode_jpeg(body).astype(float) - image).mean() < 4


@pytest.fixture(scope="module")
def drawn_pairs() -> Faces:
    """600 pairs."""
    return render_faces(SyntheticFacesConfig(image_size=32), *pair_members(600))


def test_raw_pixels_and_mean_colours_hardly_tell_people_apart(drawn_pairs: Faces):
    faces = drawn_pairs
    same = np.arange(600) % 2 == 0
    pixels = faces.images_u8.reshape(1200, -1).astype(np.float32)
    assert best_accuracy(pair_cosines(pixels - pixels.mean(axis=1, keepdims=True)), same) < 0.65
    distance = np.abs(pixels[0::2] - pixels[1::2]).mean(axis=1)
    assert best_accuracy(-distance, same) < 0.65
    colour = faces.images_u8.mean(axis=(1, 2))
    assert best_accuracy(-np.abs(colour[0::2] - colour[1::2]).sum(axis=1), same) < 0.60


def test_without_nuisances_the_same_pixels_tell_people_apart():
    """The identity is in the picture: with pose, light, occlusion and camera fixed, pixels settle most pairs."""
    config = SyntheticFacesConfig(image_size=32, lowest_quality=1.0, pose=0.0, lighting=0.0, glasses=0.0, occlusion=0.0)
    images = render_faces(config, *pair_members(200)).images_u8
    face = images[:, 6:28, 8:24].reshape(400, -1).astype(np.float32)
    distance = np.abs(face[0::2] - face[1::2]).mean(axis=1)
    assert best_accuracy(-distance, np.arange(200) % 2 == 0) > 0.9


def test_an_untrained_network_is_near_chance(drawn_pairs: Faces):
    network = build_backbone(BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=64), 32, generator=0)
    embeddings = network_embeddings(network, drawn_pairs.images_u8[:600])
    assert best_accuracy(pair_cosines(embeddings), np.arange(300) % 2 == 0) < 0.65


def test_a_field_out_of_range_is_named():
    for field, value in (
        ("image_size", 15), ("identities", 0), ("images_per_identity", 0), ("seed", -1),
        ("first_identity", VERIFICATION_IDENTITIES), ("first_image", -1), ("lowest_quality", 1.1),
        ("highest_quality", -0.1), ("pose", 2.5), ("lighting", float("nan")), ("texture", -1.0), ("glasses", 1.5),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            SyntheticFacesConfig(**{field: value})


def test_numbers_that_make_no_sense_are_refused(tmp_path: Path):
    for pairs in (0, 30, -20):
        with pytest.raises(ValueError, match="multiple of 20"):
            write_synthetic_pairs(tmp_path / "x.bin", SMALL, pairs=pairs)
    one, two = np.array([1]), np.array([1, 2])
    with pytest.raises(ValueError, match="shapes"):
        render_faces(SMALL, one, two)
    with pytest.raises(ValueError, match="negative"):
        render_faces(SMALL, one, -one)
    with pytest.raises(ValueError, match="threads"):
        list(_encoded_pictures(SMALL, 1, lambda start, stop: (one, one), threads=0))
