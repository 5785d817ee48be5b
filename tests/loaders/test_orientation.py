"""Every way to a picture's pixels turns it as its EXIF says, and EXIF that is not sound turns nothing."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps
from small_pack import SIDE, jpeg, write_records

from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.block_store.packing import choose_layout
from adadistill.loaders.evaluation_sets.face_alignment import ARCFACE_TEMPLATE, aligned, similarities_to_template
from adadistill.loaders.evaluation_sets.pair_lists import make_verification_bin
from adadistill.loaders.evaluation_sets.verification_pairs import decode_pairs, read_verification_set
from adadistill.loaders.orientation import exif_orientation
from adadistill.loaders.pipelines.pipeline import DataConfig, build_pipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.pixels import decode_image, image_header, image_size
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.image_records import ImageRecords


def tiff(orientation: int, order: str = "<", *, kind: int = 3, before: int = 2) -> bytes:
    """An EXIF block with some entries before the one that matters."""
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *((orientation, 0) if kind == 3 else (orientation,)))
    entries = [struct.pack(order + "HHI", 0x0100 + i, 3, 1) + b"\1\1\0\0" for i in range(before)]
    entries.append(struct.pack(order + "HHI", 0x0112, kind, 1) + value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def app(body: bytes, *contents: bytes, marker: int = 0xE1) -> bytes:
    """A JPEG with segments put in front of all others."""
    segments = [struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for content in contents]
    return body[:2] + b"".join(segments) + body[2:]


def turned_jpeg(body: bytes, orientation: int, order: str = "<") -> bytes:
    return app(body, b"Exif\0\0" + tiff(orientation, order))


def png(pixels: npt.NDArray[np.uint8], exif: bytes, *, behind: bool = False) -> bytes:
    """With an eXIf chunk before or behind the pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    body = out.getvalue()
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    place = len(body) - 12 if behind else 33
    return body[:place] + chunk + body[place:]


def wide() -> npt.NDArray[np.uint8]:
    """14 x 22 pixels, no two corners alike."""
    rows, columns = np.mgrid[:14, :22]
    return np.stack([rows * 16, columns * 11, (rows + columns) * 5], axis=-1).astype(np.uint8)


def expected(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", exif=exif.tobytes())
    return np.asarray(ImageOps.exif_transpose(Image.open(out)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_turned_as_pillow_turns_them(orientation):
    order = "<>"[orientation % 2]
    stored = simplejpeg.encode_jpeg(wide(), colorsubsampling="444")
    upright = decode_image(stored, where="test")
    bodies = {
        "jpeg": turned_jpeg(stored, orientation, order),
        "jpeg behind JFIF": stored[:20] + turned_jpeg(stored, orientation, order)[2 : -len(stored) + 2] + stored[20:],
        "LONG": app(stored, b"Exif\0\0" + tiff(orientation, order, kind=4)),
        "behind XMP": app(stored, b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0" + tiff(orientation, order)),
        "behind padding": (body := turned_jpeg(stored, orientation, order))[:2] + b"\xff" * 3 + body[2:],
    }
    for name, body in bodies.items():
        header = image_header(body, where=name)
        assert header.orientation == orientation, name
        pixels = decode_image(body, where=name)
        assert np.array_equal(pixels, expected(upright, orientation)), name
        assert image_size(body, where=name) == pixels.shape[:2], name
        assert pixels.flags.c_contiguous
    for behind in (False, True):
        for exif in (tiff(orientation, order), b"Exif\0\0" + tiff(orientation, order)):
            body = png(wide(), exif, behind=behind)
            assert np.array_equal(decode_image(body, where="png"), expected(wide(), orientation))


SOUND = tiff(6)
UNSOUND = {
    "empty": b"",
    "no order": b"XX" + SOUND[2:],
    "no magic": SOUND[:2] + b"+\0" + SOUND[4:],
    "offset behind the end": SOUND[:4] + b"\xff\xff\xff\xff" + SOUND[8:],
    "no entries": SOUND[:8] + b"\0\0" + SOUND[10:],
    "value 0": tiff(0),
    "value 9": tiff(9),
    "as text": tiff(6, kind=2),
    "entry far behind": tiff(6, before=5000),
    **{f"cut at {length}": SOUND[:length] for length in range(0, SOUND.index(struct.pack("<H", 0x0112)) + 11, 5)},
}


def test_exif_that_is_not_sound_turns_nothing():
    stored = simplejpeg.encode_jpeg(wide(), colorsubsampling="444")
    for name, exif in UNSOUND.items():
        assert exif_orientation(exif) == 1, name
        body = app(stored, b"Exif\0\0" + exif)
        assert np.array_equal(decode_image(body, where=name), decode_image(stored, where=name)), name
        assert np.array_equal(decode_image(png(wide(), exif), where=name), wide()), name


def test_only_a_segment_of_exif_counts_and_the_first_one():
    stored = simplejpeg.encode_jpeg(wide(), colorsubsampling="444")
    bodies = [
        app(stored, b"Exif\0\0" + tiff(1), b"Exif\0\0" + tiff(6)),
        app(stored, b"Exif\0\0" + tiff(6), marker=0xFE),  # a comment
        app(stored, b"x" + b"\xff\xe1\0\x30Exif\0\0" + tiff(6), marker=0xE2),  # within another segment
        stored + b"\xff\xe1\0\x30Exif\0\0" + tiff(6),  # behind the pixels
    ]
    assert [image_header(body, where="test").orientation for body in bodies] == [1, 1, 1, 1]


def bodies() -> list[bytes]:
    """Square images of every orientation, upright ones between, one progressive and one PNG."""
    made = [turned_jpeg(jpeg(seed), 1 + seed % 8, "<>"[seed % 2]) for seed in range(16)]
    made += [jpeg(20), png(decode_image(jpeg(21), where="test"), tiff(8))]
    out = io.BytesIO()
    Image.fromarray(decode_image(jpeg(22), where="test")).save(out, "JPEG", progressive=True)
    return [*made, turned_jpeg(out.getvalue(), 3)]


def images_of(records: ImageRecords, decoder: str) -> Iterator[tuple[int, torch.Tensor]]:
    """(record id, image) of an epoch; nothing is mirrored."""
    config = DataConfig(records=str(records.path), decoder=decoder, image_size=SIDE, workers=2, mirror_probability=0.0)
    augmentation = Augmentation(AugmentConfig(), mirror_probability=0.0, seed=0, image_size=SIDE)
    order = SampleOrder(len(records), len(records), 0)
    place = {"rank": 0, "world_size": 1, "device": torch.device("cpu")}
    with closing(build_pipeline(config, records, order, augmentation=augmentation, **place)) as pipeline:
        for batch in pipeline.epoch(0):
            yield from zip(batch.record_ids.tolist(), batch.images, strict=True)


@pytest.mark.parametrize("decoder", ["cpu", "dali"])
def test_both_pipelines_turn_images(decoder, tmp_path):
    """A folder's are those of a record file: `test_folder_pipelines`."""
    if decoder == "dali":
        pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    records, seen = ImageRecords(write_records(tmp_path, bodies())), 0
    for record_id, image in images_of(records, decoder):
        body = records.read(record_id).body
        stored = decode_image(body.replace(b"Exif\0\0", b"exif\0\0").replace(b"eXIf", b"noIf"), where="stored")
        upright = expected(stored, image_header(body, where="test").orientation)
        assert torch.equal(image, (torch.from_numpy(upright.transpose(2, 0, 1).copy()).float() - 127.5) / 127.5)
        seen += 1
    assert seen == len(bodies())


def test_a_turned_image_is_no_planes_and_is_named(tmp_path, caplog):
    images = [jpeg(0), turned_jpeg(jpeg(1), 1), turned_jpeg(jpeg(2), 6), turned_jpeg(simplejpeg.encode_jpeg(wide()), 6)]
    records = CheckedRecords(ImageRecords(write_records(tmp_path, images)), SIDE)
    with pytest.raises(ImageSizeError, match="22 x 14 pixels"):  # the upright one's
        records.read(3)
    with caplog.at_level(logging.INFO):
        assert choose_layout("auto", records, on_damaged="stop") == "rgb"
    assert "record 2 (key 3)" in caplog.text
    assert "turned by its EXIF orientation" in caplog.text


def test_landmarks_of_the_upright_photo_align_a_turned_one(tmp_path):
    """As a detector on OpenCV gives them, which sees the upright picture."""
    upright = np.random.default_rng(6).integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(9, 0).repeat(9, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "faces").mkdir()
    turned.save(tmp_path / "faces" / "a.jpg", quality=98, subsampling=0, exif=exif.tobytes())
    (tmp_path / "pairs.txt").write_text("a.jpg a.jpg 1\n")
    points = 1.4 * ARCFACE_TEMPLATE + [60.0, 20.0]
    (tmp_path / "landmarks.txt").write_text("a.jpg " + " ".join(map(str, points.reshape(-1))))

    made = make_verification_bin(
        tmp_path / "pairs.txt", tmp_path / "faces", tmp_path / "a.bin", landmarks=tmp_path / "landmarks.txt"
    )

    assert made.turned == 1
    found = decode_pairs(read_verification_set(made.path), 112)[0].astype(int)
    wanted = aligned(upright, similarities_to_template(points[None])[0])
    assert np.abs(found - wanted).mean() < 4
