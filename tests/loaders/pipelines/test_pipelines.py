"""Both pipelines give the batches that the sample order asks for, from any position, and name what they cannot read."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import small_pack
import torch
from forked_python import forked_python
from PIL import Image
from small_pack import picture
from tests_support import DATA

from adadistill.core.teachers import record_binding
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig, mirror_flags
from adadistill.loaders.batch import Batch
from adadistill.loaders.block_store.jpeg_planes import TurboJpegMissingError
from adadistill.loaders.block_store.packing import pack_records
from adadistill.loaders.pipelines.dali_pipeline import DaliBatchError, DaliMissingError
from adadistill.loaders.pipelines.pipeline import DataConfig, ImagePipeline, build_pipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.pixels import ImageDecodeError, decode_image, to_network_input
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.damaged_records import TooManyDamagedError
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordError, RecordWriter

SIDE = 24
COUNT, BATCH = 45, 6  # 7 steps and 3 records left over; 6 divides by 1, 2 and 3 ranks
IDENTITIES = 5
ORDER_SEED, MIRROR_SEED = 7, 11
CPU = torch.device("cpu")
NVJPEG_LEVELS = 6.0  # mean difference above which it is another picture; a flip or swapped colours cost ten times that

Build = Callable[..., ImagePipeline]


def jpeg(seed: int, side: int = SIDE) -> bytes:
    """One JPEG; chroma subsampling and quality go round with the seed."""
    sampling = ("420", "444", "422", "440", "411")[seed % 5]
    return small_pack.jpeg(seed, side, sampling=sampling, quality=(95, 80, 100, 60)[seed % 4])


def write_records(folder: Path, bodies: list[bytes]) -> Path:
    """Keys count from 100, so that a key is no record id."""
    path = folder / "train.rec"
    with RecordWriter(path) as writer:
        for number, body in enumerate(bodies):
            writer.write(100 + number, body, labels=float(number % IDENTITIES))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("records"), [jpeg(seed) for seed in range(COUNT)])


@pytest.fixture(scope="module")
def packed_rgb(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    records, folder = ImageRecords(path, num_classes=IDENTITIES), tmp_path_factory.mktemp("packed") / "rgb"
    pack_records(records, folder, binding=record_binding(records), layout="rgb", image_size=SIDE)
    return folder


@pytest.fixture(params=["cpu", "dali"])
def decoder(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    return str(request.param)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def build() -> Iterator[Build]:
    """Builds pipelines that end with the test."""
    pipelines: list[ImagePipeline] = []

    def build_one(path: Path, decoder: str, *, device: torch.device = CPU, **options: object) -> ImagePipeline:
        fields = {field.name for field in dataclasses.fields(DataConfig)}
        settings = {"records": str(path), "decoder": decoder, "image_size": SIDE, "workers": 2, "prefetch": 2}
        config = DataConfig(**(settings | {name: options.pop(name) for name in fields & set(options)}))
        records = ImageRecords(path, num_classes=options.pop("identities", IDENTITIES))
        order = options.pop("order", None) or SampleOrder(len(records), int(options.pop("batch", BATCH)), ORDER_SEED)
        augmentation = Augmentation(
            options.pop("augment", AugmentConfig()),
            mirror_probability=config.mirror_probability,
            seed=MIRROR_SEED,
            image_size=config.image_size,
        )
        placement = {"rank": 0, "world_size": 1, "augmentation": augmentation} | options
        pipelines.append(build_pipeline(config, records, order, device=device, **placement))
        return pipelines[-1]

    yield build_one
    for pipeline in pipelines:
        pipeline.close()


def assert_same(one: Batch, other: Batch) -> None:
    assert (one.epoch, one.step, one.view) == (other.epoch, other.step, other.view)
    for field in ("global_record_ids", "global_mirrored"):
        assert np.array_equal(getattr(one, field), getattr(other, field)), field
    for field in ("record_ids", "labels", "mirrored", "images"):
        assert torch.equal(getattr(one, field), getattr(other, field)), field


def expected_images(path: Path, batch: Batch) -> torch.Tensor:
    """Decoded one by one, flipped by numpy, normalised in float64 and rounded once."""
    records = ImageRecords(path, num_classes=IDENTITIES)
    images = []
    for record_id, mirrored in zip(batch.record_ids.tolist(), batch.mirrored.tolist(), strict=True):
        pixels = decode_image(records.read(record_id).body, where="test")
        images.append(pixels[:, ::-1] if mirrored else pixels)
    return torch.from_numpy((np.stack(images).transpose(0, 3, 1, 2) - 127.5) / 127.5).float()


def assert_same_pictures(images: torch.Tensor, expected: torch.Tensor, decoder: str, device: torch.device) -> None:
    """Equal on the CPU. CUDA divides by multiplying with the reciprocal, and nvJPEG has its own IDCT and upsampling."""
    if device.type == "cpu":
        assert torch.equal(images, expected)
    elif decoder == "cpu":
        torch.testing.assert_close(images, expected, rtol=0, atol=2 * torch.finfo(expected.dtype).eps)
    else:
        assert (images.double() - expected.double()).abs().mean() <= NVJPEG_LEVELS / 127.5


_OTHERS: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _threads_of_other_tests() -> None:
    """A copy of metrics that never answers keeps its thread, on purpose, where it was tried in this process."""
    _OTHERS.update(threading.enumerate())


def our_threads() -> list[str]:
    ours = (thread for thread in threading.enumerate() if thread not in _OTHERS)
    return [thread.name for thread in ours if thread.name.startswith("adadistill")]


def test_batches_hold_what_the_order_says(path, decoder, device, build):
    pipeline = build(path, decoder, device=device)
    order = SampleOrder(COUNT, BATCH, ORDER_SEED)
    assert pipeline.steps_per_epoch == COUNT // BATCH
    for epoch in (0, 3):
        batches = list(pipeline.epoch(epoch))
        assert [batch.step for batch in batches] == list(range(COUNT // BATCH))
        for batch in batches:
            ids = order.global_ids(epoch, batch.step)
            flags = mirror_flags(MIRROR_SEED, epoch, ids, 0.5)
            assert batch.epoch == epoch
            assert batch.record_ids.tolist() == ids.tolist()
            assert batch.labels.tolist() == (ids % IDENTITIES).tolist()
            assert batch.mirrored.tolist() == flags.tolist()
            for tensor in (batch.images, batch.labels, batch.record_ids, batch.mirrored):
                assert tensor.device.type == device.type
            assert batch.images.shape == (BATCH, 3, SIDE, SIDE)
            assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
            assert (batch.record_ids.dtype, batch.mirrored.dtype) == (torch.int64, torch.bool)
            assert_same_pictures(batch.images.cpu(), expected_images(path, batch), decoder, device)


# The smallest image, one past a block, and one past the field's size; a batch of one decode task and of several.
@pytest.mark.parametrize(("side", "batch"), [(1, 7), (17, 21), (113, 7)])
def test_both_pipelines_give_identical_pixels_on_the_cpu(side, batch, tmp_path, build):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    grey = simplejpeg.encode_jpeg(picture(0, side)[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    path = write_records(tmp_path, [jpeg(seed, side) for seed in range(20)] + [grey])
    ours, dalis = (build(path, decoder, image_size=side, batch=batch).epoch(0) for decoder in ("cpu", "dali"))
    for one, other in zip(ours, dalis, strict=True):
        assert_same(one, other)


@pytest.mark.realdata
def test_both_pipelines_give_identical_pixels_on_real_faces(data_dir, build):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    path = data_dir / "faces" / "train.rec"
    ours, dalis = (build(path, kind, image_size=112, batch=64, identities=None).epoch(0) for kind in ("cpu", "dali"))
    for one, other in itertools.islice(zip(ours, dalis, strict=True), 5):
        assert_same(one, other)


def test_an_epoch_entered_anywhere_equals_the_uninterrupted_one(path, decoder, build):
    whole = list(build(path, decoder).epoch(1))
    resumed = build(path, decoder)
    for first_step in (0, 5, COUNT // BATCH):
        rest = list(resumed.epoch(1, first_step))
        assert len(rest) == len(whole) - first_step
        for one, other in zip(rest, whole[first_step:], strict=True):
            assert_same(one, other)


def test_leaving_an_epoch_early_ends_its_thread_and_disturbs_no_later_one(path, decoder, build):
    expected = list(build(path, decoder).epoch(1))
    pipeline = build(path, decoder)
    for batch in itertools.islice(pipeline.epoch(0), 3):
        assert batch.epoch == 0
    iterator = pipeline.epoch(0)
    next(iterator)
    with pytest.raises(RuntimeError, match="under way"):
        pipeline.epoch(1)
    iterator.close()
    assert not any("prefetch" in name for name in our_threads())
    for one, other in zip(pipeline.epoch(1), expected, strict=True):
        assert_same(one, other)


def test_close_ends_an_epoch_under_way_and_all_threads(path, decoder, build):
    pipeline = build(path, decoder)
    iterator = pipeline.epoch(0)
    next(iterator)
    pipeline.close()
    pipeline.close()
    assert our_threads() == []
    assert list(iterator) == []
    with pytest.raises(RuntimeError, match="closed"):
        pipeline.epoch(0)


def test_batches_keep_their_contents_while_later_ones_are_made(path, decoder, device, build):
    pipeline = build(path, decoder, device=device, prefetch=1)
    kept = [(batch, batch.images.clone()) for epoch in range(2) for batch in pipeline.epoch(epoch)]
    for batch, images in kept:
        assert torch.equal(batch.images, images)


def truncated(body: bytes) -> bytes:
    return body[: len(body) // 2]


def not_an_image(body: bytes) -> bytes:
    return b"\xff\xd8\xff" + b"what is this" * 20


# A wrong bit in the entropy-coded data is not here: simplejpeg often sees it, DALI seldom does.
@pytest.mark.parametrize("damage", [truncated, not_an_image])
def test_an_image_that_cannot_be_decoded_is_named_where_its_batch_is_due(damage, tmp_path, decoder, build):
    order = SampleOrder(COUNT, BATCH, ORDER_SEED)
    bad = int(order.global_ids(0, 3)[4])
    bodies = [jpeg(seed) for seed in range(COUNT)]
    bodies[bad] = damage(bodies[bad])
    pipeline = build(write_records(tmp_path, bodies), decoder)
    iterator = pipeline.epoch(0)
    assert [next(iterator).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ImageDecodeError, match=rf"train.rec: record {bad} \(key {100 + bad}\)"):
        next(iterator)
    assert list(iterator) == []
    assert [batch.step for batch in pipeline.epoch(0, 4)] == [4, 5, 6]


def test_a_damaged_record_is_named_where_its_batch_is_due(tmp_path, decoder, build):
    path = write_records(tmp_path, [jpeg(seed) for seed in range(COUNT)])
    bad = int(SampleOrder(COUNT, BATCH, ORDER_SEED).global_ids(0, 2)[1])
    offset = int(ImageRecords(path).index.offsets[bad])
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    pipeline = build(path, decoder)
    iterator = pipeline.epoch(0)
    assert [next(iterator).step for _ in range(2)] == [0, 1]
    with pytest.raises(RecordError) as caught:
        next(iterator)
    assert (caught.value.record_id, caught.value.key, caught.value.offset) == (bad, 100 + bad, offset)
    assert [batch.step for batch in pipeline.epoch(0, 3)] == [3, 4, 5, 6]


# Also a header that claims more than any face: it must cost an error, not memory.
@pytest.mark.parametrize("claimed", [(SIDE, SIDE + 1), (65500, 65500)])
def test_an_image_of_another_size_is_named_with_both_sizes(claimed, tmp_path, decoder, build):
    bodies = [jpeg(seed) for seed in range(BATCH)]
    frame = bodies[2].index(b"\xff\xc0") + 5
    height, width = claimed
    bodies[2] = bodies[2][:frame] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + bodies[2][frame + 4 :]
    with pytest.raises(ImageSizeError, match=rf"record 2 \(key 102\).*{height} x {width}.*{SIDE} x {SIDE}") as caught:
        list(build(write_records(tmp_path, bodies), decoder).epoch(0))
    assert (caught.value.record_id, caught.value.found, caught.value.wanted) == (2, claimed, (SIDE, SIDE))
    assert "data.image_size" in str(caught.value)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def test_pngs_among_the_jpegs_are_read(tmp_path, decoder, build):
    bodies = [jpeg(seed) for seed in range(BATCH)]
    pixels = picture(3, SIDE)
    pixels[0, 0] = ord("\n"), ord(" "), ord("#")  # characters that mean something in a PPM header
    bodies[3] = png(pixels)
    path = write_records(tmp_path, bodies)
    (batch,) = build(path, decoder, mirror_probability=0.0).epoch(0)
    assert torch.equal(batch.images, expected_images(path, batch))
    row = batch.record_ids.tolist().index(3)
    assert torch.equal((batch.images[row] * 127.5 + 127.5).round().byte(), torch.from_numpy(pixels).permute(2, 0, 1))


def test_what_does_not_fit_is_refused_before_anything_starts(path, build):
    for options, message in (
        ({"rank": 2, "world_size": 2}, "rank must be in"),
        ({"rank": 0, "world_size": 4}, "does not divide"),
        ({"dtype": torch.uint8}, "floating point"),
        ({"device": torch.device("meta")}, "cpu or cuda"),
        ({"order": SampleOrder(COUNT - 1, BATCH, 0)}, r"over 44 records.* holds 45 images"),
    ):
        with pytest.raises(ValueError, match=message):
            build(path, "cpu", **options)
    assert our_threads() == []


def test_a_config_out_of_range_is_refused_by_name():
    for field, value in (
        ("records", ""), ("num_classes", 0), ("image_size", 4096), ("global_batch_size", 0), ("decoder", "opencv"),
        ("workers", 0), ("prefetch", 0), ("mirror_probability", float("nan")), ("decode_on", "tpu"),
        ("hw_decoder_load", 1.1), ("packed", ""), ("packed_in", "disk"), ("seal", "yes"), ("on_damaged", "ignore"),
        ("max_damaged", -1), ("wrong_size", "crop"), ("max_image_side", 0), ("max_image_bytes", 100),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{field} must be"):
            DataConfig(**({"records": "train.rec"} | {field: value}))


def test_missing_dali_is_named_with_the_extra_and_the_way_without_and_an_old_one_with_its_version(
    path, build, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "nvidia.dali", None)
        with pytest.raises(DaliMissingError, match=r"pip install adadistill\[dali13\].*data\.decoder=cpu"):
            build(path, "dali")
        assert len(list(build(path, "cpu").epoch(0))) == COUNT // BATCH
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    monkeypatch.setattr(dali, "__version__", "2.2.1")
    with pytest.raises(DaliMissingError, match=r"DALI 2\.2\.1 is installed; 2\.3 is needed"):
        build(path, "dali")


def test_what_dali_alone_cannot_decode_is_told_with_all_record_ids(tmp_path, build, monkeypatch):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    bodies = [jpeg(seed) for seed in range(BATCH)]
    bodies[2] = truncated(bodies[2])
    pipeline = build(write_records(tmp_path, bodies), "dali")
    grey = np.zeros((SIDE, SIDE, 3), np.uint8)
    monkeypatch.setattr(CheckedRecords, "decode", lambda self, record_id: (0, grey))  # a more patient CPU decoder
    with pytest.raises(DaliBatchError, match=r"epoch 0, step 0.*record 2 \(key 102\)") as caught:
        list(pipeline.epoch(0))
    assert sorted(caught.value.record_ids) == list(range(BATCH))


ENDS_MID_EPOCH = """
import sys, torch
from adadistill.loaders.augment.augment_policy import AugmentConfig, Augmentation
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.pipelines.pipeline import DataConfig, build_pipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
augmentation = Augmentation(AugmentConfig(), mirror_probability=0.5, seed=0, image_size=24)
records, open_epochs = ImageRecords(sys.argv[1], num_classes=5), []
for decoder in sys.argv[2:]:
    config = DataConfig(records=sys.argv[1], decoder=decoder, image_size=24, workers=2, prefetch=2)
    pipeline = build_pipeline(config, records, SampleOrder(45, 6, 0), rank=0, world_size=1,
                              device=torch.device("cpu"), augmentation=augmentation)
    open_epochs.append(pipeline.epoch(0))
    next(open_epochs[-1])
print("left at step 1", flush=True)
"""


def test_the_interpreter_ends_at_once_in_the_middle_of_an_epoch(path):
    decoders = ["cpu", "dali"] if importlib.util.find_spec("nvidia.dali") else ["cpu"]
    command = [forked_python(), "-c", ENDS_MID_EPOCH, str(path), *decoders]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout.strip()) == (0, "left at step 1"), ended.stderr
    assert "Traceback" not in ended.stderr


ADAFACE = AugmentConfig(policy="adaface", crop=0.5, low_resolution=0.5, photometric=0.5)
INSIGHTFACE = AugmentConfig(policy="insightface", low_resolution=0.5, blur=0.5, hsv=0.5, grey=0.3)


@pytest.mark.parametrize("augment", [AugmentConfig(), ADAFACE, INSIGHTFACE], ids=["mirror", "adaface", "insightface"])
def test_every_source_shows_the_same_images_whatever_the_ranks_and_the_resume(path, packed_rgb, build, augment):
    """JPEGs through DALI and through CPU threads, and a packed store in both places, from the start and from step 3."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    packed = {"packed": str(packed_rgb)}
    sources = [{"decoder": "dali"}, {**packed, "decoder": "cpu"}, {**packed, "decoder": "cpu", "packed_in": "device"}]
    placements = [{"rank": rank, "world_size": 2, "augment": augment} for rank in range(2)]
    whole = [list(build(path, "cpu", **placement).epoch(2)) for placement in placements]
    one_rank = list(build(path, "cpu", augment=augment).epoch(2))
    for step, batch in enumerate(one_rank):
        ranks = [batches[step] for batches in whole]
        assert torch.equal(batch.record_ids, torch.cat([part.record_ids for part in ranks]))
        assert torch.equal(batch.images, torch.cat([part.images for part in ranks]))
    for source in sources:
        for placement, batches in zip(placements, whole, strict=True):
            others = {name: value for name, value in source.items() if name != "decoder"}
            pipeline = build(path, source["decoder"], **others, **placement)
            for first_step in (0, 3):
                for wanted, found in itertools.zip_longest(batches[first_step:], pipeline.epoch(2, first_step)):
                    assert_same(found, wanted)


def test_damaged_records_are_skipped_in_their_places_and_named(path, tmp_path, decoder, build, caplog):
    bad: dict[int, Callable[[bytes], bytes]] = {
        7: truncated,
        18: lambda body: body[:2] + b"\xff\xc0" + body[4:30],
        30: lambda body: body,  # its label is none
        41: lambda body: jpeg(1, SIDE + 8),
    }
    reference = list(build(path, "cpu").epoch(0))
    with RecordWriter(tmp_path / "train.rec") as writer:
        for number in range(COUNT):
            body = bad[number](jpeg(number)) if number in bad else jpeg(number)
            writer.write(100 + number, body, labels=float(IDENTITIES + 5 if number == 30 else number % IDENTITIES))
    pipeline = build(tmp_path / "train.rec", decoder, on_damaged="skip")
    for _ in range(2):  # the second epoch says nothing new
        batches = list(pipeline.epoch(0))
        assert len(batches) == len(reference)
        for found, wanted in zip(batches, reference, strict=True):
            assert torch.equal(found.record_ids, wanted.record_ids)
            is_bad = torch.tensor([record_id in bad for record_id in wanted.record_ids.tolist()])
            assert torch.equal(found.labels == -1, is_bad)
            assert torch.equal(found.images[~is_bad], wanted.images[~is_bad])
            assert (found.images[is_bad].abs() < 0.01).all()
    met = {int(i) for batch in reference for i in batch.record_ids.tolist()} & set(bad)
    assert set(pipeline.damaged.reasons) == met
    assert len([record for record in caplog.records if "skipped" in record.message]) == len(met)
    assert all(f"record {record_id} " in reason for record_id, reason in pipeline.damaged.reasons.items())


def test_more_damaged_records_than_tolerated_stop_the_run(tmp_path, decoder, build):
    bodies = [truncated(jpeg(seed)) if seed % 9 == 0 else jpeg(seed) for seed in range(COUNT)]
    pipeline = build(write_records(tmp_path, bodies), decoder, on_damaged="skip", max_damaged=2)
    with pytest.raises(TooManyDamagedError, match=r"3 damaged records were met, data\.max_damaged allows 2") as caught:
        list(pipeline.epoch(0))
    assert len(caught.value.record_ids) == 3


def test_images_of_another_size_are_resized_where_the_recipe_says_so(tmp_path, decoder, build):
    bodies = [jpeg(seed, SIDE if seed % 2 else 40) for seed in range(COUNT)]
    path = write_records(tmp_path, bodies)
    for batch in build(path, decoder, wrong_size="resize", mirror_probability=0.0).epoch(0):
        for row, record_id in enumerate(batch.record_ids.tolist()):
            image = Image.fromarray(decode_image(bodies[record_id], where="test"))
            pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            assert torch.equal(
                batch.images[row], to_network_input(torch.from_numpy(pixels.copy())[None], device=CPU)[0]
            )


FACES = DATA / "faces" / "train.rec"


@pytest.mark.realdata
@pytest.mark.skipif(not FACES.is_file(), reason=f"no real faces at {FACES}")
def test_packed_planes_of_real_faces_show_what_decoding_shows(tmp_path, build):
    """4:2:0 JPEGs lose nothing: planes, RGB and decoded batches agree in every bit."""
    faces = ImageRecords(FACES)
    path = write_records(tmp_path, [faces.read(record_id).body for record_id in range(0, len(faces), 25)])
    records = ImageRecords(path, num_classes=IDENTITIES)
    try:
        for layout in ("planes", "rgb"):
            pack_records(records, tmp_path / layout, binding=record_binding(records), layout=layout, image_size=112)
    except TurboJpegMissingError as reason:
        pytest.skip(str(reason))
    for policy in ("none", "adaface"):
        packed = ({}, {"packed": str(tmp_path / "planes")}, {"packed": str(tmp_path / "rgb")})
        augment = AugmentConfig(policy=policy)
        sources = [build(path, "cpu", image_size=112, batch=32, augment=augment, **data).epoch(1) for data in packed]
        for decoded, planes, rgb in zip(*sources, strict=True):
            assert_same(planes, decoded)
            assert_same(rgb, decoded)
