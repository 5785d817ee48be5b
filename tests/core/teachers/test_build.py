"""The teacher of a run fits student and records, or stops it at the door; a cache teaches what its network says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cache import build, small_header
from tiny_training import PlainStudent, tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, build_backbone
from adadistill.core.checkpoints.network_checkpoint import save_network
from adadistill.core.distributed import Ranks
from adadistill.core.precision import resolve_precision
from adadistill.core.recipe import Recipe, recipe_augmentation
from adadistill.core.teachers import (
    CachedTeacher,
    ImageTeacher,
    RecordTeacher,
    TeacherError,
    build_teacher,
    expected_identity,
    record_binding,
)
from adadistill.core.teachers.sources import load_source
from adadistill.core.training.run import run_training
from adadistill.loaders.block_store.errors import StoreDamagedError, StoreError, StoreIncompleteError, StoreMissingError
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN
from adadistill.loaders.pixels import decode_image, to_network_input
from adadistill.loaders.records.image_records import ImageRecords

CPU = torch.device("cpu")
NETWORK = BackboneConfig(arch="mobilefacenet", width=0.125, embedding_dim=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny records, two teachers, and a cache of the first."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_records(folder)
    for name, seed in (("teacher", 3), ("other", 4)):
        network = build_backbone(NETWORK, 32, generator=seed).eval()
        # Fresh running statistics leave nearly constant embeddings; a pass over noise in training mode spreads them.
        network.train()(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
        save_network(folder / name, network.eval(), NETWORK, 32)
    _fill_cache(folder / "cache", _recipe(folder), (PLAIN, MIRRORED))
    return folder


def _recipe(folder: Path, **overrides: object) -> Recipe:
    return tiny_recipe(
        folder,
        **{
            "teacher__embeddings": "null",
            "teacher__checkpoint": f"{folder}/teacher",
            "teacher__check": "false",
            **overrides,
        },
    )


def _build(recipe: Recipe) -> ImageTeacher | RecordTeacher:
    assert recipe.teacher is not None
    return build_teacher(
        recipe.teacher,
        records=ImageRecords(recipe.data.records),
        data=recipe.data,
        augmentation=recipe_augmentation(recipe),
        embedding_dim=recipe.student.embedding_dim,
        precision=resolve_precision("float32", CPU),
        ranks=Ranks(),
    ).teacher


def _fill_cache(folder: Path, recipe: Recipe, views: tuple, stop: int | None = None) -> None:
    """A cache written block by block from the network's own embeddings, without the builder that has its own tests."""
    assert recipe.teacher is not None
    records = ImageRecords(recipe.data.records)
    loaded = load_source(recipe.teacher, image_size=32, ranks=Ranks())
    pixels = np.stack([decode_image(records.read(i).body, where=records.where(i)) for i in range(len(records))])
    images = to_network_input(torch.from_numpy(pixels), device=CPU)
    with torch.inference_mode():
        network = loaded.network()
        both = torch.stack([network(images), network(images.flip(3))], dim=1)[:, : len(views)]  # (N, V, D)
    rows = torch.nn.functional.normalize(both, dim=2).numpy()
    teacher = json.loads(json.dumps(loaded.identity.to_json()))
    header = small_header(
        num_records=len(records), embedding_dim=16, views=views, block_records=10, teacher=teacher,
        records=record_binding(records), built={},
    )  # fmt: skip
    build(folder, header, rows=rows, blocks=stop)


def test_a_checkpoint_teaches_what_its_network_says(data: Path):
    teacher = _build(_recipe(data))
    images = torch.randn(2, 3, 32, 32)
    network = load_source(_recipe(data).teacher, image_size=32, ranks=Ranks()).network()  # type: ignore[arg-type]
    assert isinstance(teacher, ImageTeacher)
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(network(images), dim=1)
    torch.testing.assert_close(teacher.embed(images), wanted, rtol=0, atol=1e-5)


def test_a_cache_teaches_what_its_network_says(data: Path):
    in_loop = _build(_recipe(data))
    cached = _build(_recipe(data, teacher__cache=f"{data}/cache"))
    records = ImageRecords(data / "train.rec")
    image = to_network_input(torch.from_numpy(decode_image(records.read(5).body, where="5"))[None], device=CPU)
    assert isinstance(cached, CachedTeacher)
    alone = _build(_recipe(data, teacher__checkpoint="null", teacher__cache=f"{data}/cache"))
    assert isinstance(alone, CachedTeacher)
    assert isinstance(in_loop, ImageTeacher)
    for mirrored in (False, True):
        wanted = in_loop.embed(image.flip(3) if mirrored else image)
        found = cached.rows(np.array([5]), np.array([mirrored]))
        torch.testing.assert_close(found, wanted, rtol=0, atol=2**-11)


def test_training_from_the_cache_is_training_with_the_teacher_in_the_loop(data: Path, tmp_path: Path):
    """Losses of every step within 5e-4 of their value: what float16 rows (2^-11 a component) do to them."""
    losses = {}
    for name, teacher in (("loop", {}), ("cache", {"teacher__cache": f"{data}/cache"})):
        recipe = _recipe(data, log__every=1, optim__lr=0.02, **teacher)
        run_training(recipe, tmp_path / name, ranks=Ranks(), student=PlainStudent())
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["loss"] for line in lines if line["event"] == "train"]
    assert len(losses["loop"]) == 12
    assert losses["loop"] != losses["cache"], "float16 rows leave a trace, or the cache was not read"
    np.testing.assert_allclose(losses["cache"], losses["loop"], rtol=5e-4)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"student__embedding_dim": 32}, TeacherError, "gives 16-d embeddings, the student's are 32-d"),
        ({"teacher__checkpoint": "DATA/other", "teacher__cache": "DATA/cache"}, StoreError, "teacher"),
        ({"data__image_size": 48}, TeacherError, "takes 32 x 32 images, the recipe's are 48 x 48"),
        ({"teacher__color": "bgr", "teacher__cache": "DATA/cache"}, StoreError, "preprocessing"),
        ({"teacher__cache": "DATA/nothing"}, StoreMissingError, "adadistill cache build"),
        ({"teacher__cache": "DATA/plain"}, StoreError, "mirror"),
        ({"teacher__cache": "DATA/half"}, StoreIncompleteError, "adadistill cache build"),
        ({"teacher__cache": "DATA/rotten"}, StoreDamagedError, "block 2"),
        ({"teacher__cache": "DATA/cache", "data__records": "DATA/more/train.rec"}, StoreError, r"\.rec|records"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(data: Path, overrides: dict, error: type, message: str):
    if not (data / "plain").exists():
        _fill_cache(data / "plain", _recipe(data), (PLAIN,))
        _fill_cache(data / "half", _recipe(data), (PLAIN, MIRRORED), stop=3)
        _fill_cache(data / "rotten", _recipe(data), (PLAIN, MIRRORED))
        with (data / "rotten" / "embeddings.bin").open("r+b") as file:
            file.seek(2 * 10 * 2 * 16 * 2 + 5)
            file.write(bytes([file.read(1)[0] ^ 0x40]))
        write_tiny_records(data / "more", images=9)
    filled = {key: str(value).replace("DATA", str(data)) for key, value in overrides.items()}
    with pytest.raises(error, match=message):
        _build(_recipe(data, **filled))


def test_damage_passes_where_verification_is_off_and_a_plain_cache_where_nothing_is_mirrored(data: Path):
    _fill_cache(data / "unverified", _recipe(data), (PLAIN,))
    with (data / "unverified" / "embeddings.bin").open("r+b") as file:
        file.write(b"\0")
    changes = {"teacher__cache_verify": "false", "data__mirror_probability": 0}
    assert isinstance(_build(_recipe(data, teacher__cache=f"{data}/unverified", **changes)), CachedTeacher)


def test_the_identity_a_cache_must_have_follows_the_recipe(data: Path):
    recipe = _recipe(
        data, teacher="{checkpoint: DATA/teacher, color: auto, cache: DATA/cache}".replace("DATA", str(data))
    )
    teacher = _build(_recipe(data, teacher__cache=f"{data}/cache"))
    assert isinstance(teacher, CachedTeacher)
    expected = expected_identity(recipe.teacher, teacher._cache, 32, Ranks())  # type: ignore[arg-type]
    assert expected["preprocessing"]["color"] == "rgb", "with color: auto, the order found when the cache was built"
