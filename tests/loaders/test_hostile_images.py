"""Images from strangers: odd ones decode to what Pillow shows, bombs cost an error and no memory."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from forked_python import forked_python
from PIL import Image, ImageOps
from small_pack import CLASSES, write_records

from adadistill.loaders.pixels import (
    ImageDecodeError,
    ImageLimits,
    decode_image,
    is_baseline,
    require_few_scans,
)
from adadistill.loaders.records.checked_records import CheckedRecords, ImageSizeError
from adadistill.loaders.records.image_records import ImageRecords

SIDE = 32


def _picture(channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    waves = [128 + 90 * np.sin(rows / (4 + k) + columns / (3 + k)) for k in range(channels)]
    noise = np.random.RandomState(seed).normal(0, 5, (SIDE, SIDE, channels))
    return (np.stack(waves, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


ODD = {
    "grey": _encoded(Image.fromarray(_picture(1)[:, :, 0]), "JPEG"),
    "cmyk": _encoded(Image.fromarray(_picture(4), "CMYK"), "JPEG", quality=90),
    "progressive": _encoded(Image.fromarray(_picture()), "JPEG", progressive=True),
    "stored as rgb": _encoded(Image.fromarray(_picture()), "JPEG", keep_rgb=True),
    "exif rotated": _encoded(Image.fromarray(_picture()), "JPEG", exif=_exif(6)),
    "png": _encoded(Image.fromarray(_picture()), "PNG"),
    "png with alpha": _encoded(Image.fromarray(_picture(4), "RGBA"), "PNG"),
    "png palette": _encoded(Image.fromarray(_picture()).quantize(32), "PNG"),
    "png grey": _encoded(Image.fromarray(_picture(1)[:, :, 0]), "PNG"),
    "png one bit": _encoded(Image.fromarray(_picture(1)[:, :, 0]).convert("1"), "PNG"),
}


def _without_adobe_s_marker(body: bytes) -> bytes:
    place = body.find(b"Adobe")
    start, length = place - 4, struct.unpack(">H", body[place - 2 : place])[0] + 2
    return body[:start] + body[start + length :]


def test_odd_images_decode_to_what_pillow_shows():
    for name, body in {**ODD, "cmyk alone": _without_adobe_s_marker(ODD["cmyk"])}.items():
        with Image.open(io.BytesIO(body)) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
        found = decode_image(body, where="test")
        assert (found.shape, found.dtype, found.flags.writeable) == ((SIDE, SIDE, 3), np.uint8, True), name
        assert np.abs(found.astype(int) - wanted).max() <= 1, name


def test_a_16_bit_png_keeps_its_high_bytes():
    wide = (_picture(1)[:, :, 0].astype(np.uint16) << 8) + 77
    found = decode_image(_encoded(Image.fromarray(wide), "PNG"), where="test")
    assert np.array_equal(found, np.repeat((wide >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_dali_is_fed_what_decodes_to_the_same_pixels_alone_and_in_a_batch(tmp_path: Path):
    """Plain upright JPEGs as they are; everything else as the pixels of the CPU's own decoder."""
    bodies = [
        *ODD.values(),
        _encoded(Image.fromarray(_picture()), "JPEG"),
        ODD["grey"][:-40],
        b"\xff\xd8\xff\xe0",
        _scans(65),
    ]
    bodies.append(simplejpeg.encode_jpeg(np.zeros((48, 48, 3), np.uint8)))
    records = CheckedRecords(ImageRecords(write_records(tmp_path, bodies)), SIDE)
    refused: list[int] = []

    def damaged(record_id: int, error: ValueError) -> bytes:
        assert str(record_id) in str(error)
        refused.append(record_id)
        return b"grey"

    order = np.random.RandomState(1).permutation(len(bodies))
    labels, fed = records.feedable_batch(order, damaged)
    _, read = records.read_plain(order)
    for label, body, plain, record_id in zip(labels.tolist(), fed, read, order.tolist(), strict=True):
        try:
            alone = records.feedable(record_id)[1]
        except ImageDecodeError:
            assert (label, body.tobytes()) == (-1, b"grey")
            assert records.decode_plain(record_id, plain) is None
            continue
        assert (label, body.tobytes()) == (record_id % CLASSES, alone)
        as_stored = alone == bodies[record_id]
        assert as_stored == (record_id >= len(ODD) or list(ODD)[record_id] in ("grey", "progressive"))
        if not as_stored:
            assert alone == b"P6\n%d %d\n255\n" % (SIDE, SIDE) + records.decode(record_id)[1].tobytes()
        decoded = records.decode_plain(record_id, plain)
        assert decoded is None or np.array_equal(decoded, records.decode(record_id)[1])
    assert sorted(refused) == [12, 13, 14]

    def stop(record_id: int, error: ValueError) -> bytes:
        raise error

    with pytest.raises(ImageDecodeError):
        records.feedable_batch(order, stop)


def _scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    body = ODD["progressive"]
    last = body.rindex(b"\xff\xda")
    return body[:-2] + body[last:-2] * (count - body.count(b"\xff\xda")) + body[-2:]


def test_frames_of_one_pass_are_told_from_all_others():
    baseline = _encoded(Image.fromarray(_picture()), "JPEG")
    assert is_baseline(baseline)
    assert is_baseline(ODD["exif rotated"])
    assert not is_baseline(ODD["progressive"])
    comment = b"\xff\xfe" + struct.pack(">H", 40) + b"\xff\xc0" * 19  # a frame header in a comment is none
    assert not is_baseline(ODD["progressive"][:2] + comment + ODD["progressive"][2:])
    assert is_baseline(baseline[:2] + comment + baseline[2:])
    for length in range(0, baseline.index(b"\xff\xc0") + 3):
        assert not is_baseline(baseline[:length])
    assert not is_baseline(baseline[:2] + b"\xff\xfe\xff\xff" + baseline[4:])
    with pytest.raises(ImageDecodeError, match="has 65 scans; at most 64"):
        decode_image(_scans(65), where="test")
    require_few_scans(_scans(64), where="test")


def _scans_of_one_component(count: int, side: int) -> bytes:
    """A baseline JPEG of a scan for the first component alone, again and again: eleven bytes for each pass.

    libjpeg makes as many passes as there are scans where the first has not all components: 2 s for 110 KB.
    """
    body = simplejpeg.encode_jpeg(np.zeros((side, side, 3), np.uint8), colorsubsampling="444")
    return body[: body.index(b"\xff\xda")] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\x00" * count + b"\xff\xd9"


def test_a_plain_file_of_many_passes_is_not_fed_to_any_decoder(tmp_path: Path):
    body = _scans_of_one_component(100, SIDE)
    assert not is_baseline(body)
    records = CheckedRecords(ImageRecords(write_records(tmp_path, [body])), SIDE)
    _, bodies = records.read_plain(np.array([0]))
    assert records.decode_plain(0, bodies[0]) is None
    for read in (records.decode, records.feedable):
        with pytest.raises(ImageDecodeError, match="has 100 scans"):
            read(0)


def test_sizes_are_refused_or_resized_and_limits_hold_in_both(tmp_path: Path):
    noise = np.random.RandomState(0)
    bodies = [simplejpeg.encode_jpeg(noise.randint(0, 256, (h, w, 3), np.uint8)) for h, w in ((48, 40), (80, 20))]
    records = ImageRecords(write_records(tmp_path, bodies))
    with pytest.raises(ImageSizeError, match=r"48 x 40 pixels.*data\.wrong_size=resize"):
        CheckedRecords(records, SIDE).decode(0)
    resizing = CheckedRecords(records, SIDE, wrong_size="resize", limits=ImageLimits(max_side=64))
    assert resizing.decode(0)[1].shape == (SIDE, SIDE, 3)
    with pytest.raises(ImageDecodeError, match=r"max_image_side allows 64"):
        resizing.decode(1)
    with pytest.raises(ImageDecodeError, match=r"max_image_bytes allows 1024"):
        CheckedRecords(records, SIDE, wrong_size="resize", limits=ImageLimits(max_bytes=1024)).decode(0)


def test_other_formats_are_refused_with_a_plain_sentence():
    for body in (b"GIF89a" + bytes(100), b"RIFF____WEBP" + bytes(100), b"II*\0" + bytes(100), b"", b"\xff"):
        with pytest.raises(ImageDecodeError, match="neither JPEG nor PNG"):
            decode_image(body, where="test")


def _sized(body: bytes, height: int, width: int) -> bytes:
    """The JPEG with other numbers in its frame header."""
    place = next(i for i in range(len(body)) if body[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return body[: place + 5] + struct.pack(">HH", height, width) + body[place + 9 :]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _bombs() -> dict[str, bytes]:
    plain, progressive, png = _encoded(Image.fromarray(_picture()), "JPEG"), ODD["progressive"], ODD["png"]
    scan = progressive.rfind(b"\xff\xda")
    after_header = 8 + 25  # of a PNG: signature and IHDR
    huge_ihdr = _chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    packed = zlib.compress(bytes(50 << 20), 9)
    return {
        "wide": _sized(plain, 65500, 65500),
        "wide progressive": _sized(progressive, 65500, 65500),
        "tall": _sized(plain, 65500, 1),
        "nothing": _sized(plain, 0, 0),
        "just inside the limit": _sized(plain, 2048, 2048),
        "five thousand scans": progressive[:scan] + progressive[scan:-2] * 5000 + b"\xff\xd9",
        "comments": plain[:2] + _segment(0xFE, bytes(65000)) * 60 + plain[2:],
        "tables": plain[:2] + _segment(0xC4, bytes(2000)) * 1000 + plain[2:],
        "two frames": plain[:-2] + plain[2:],
        "cut": plain[: len(plain) // 2],
        "cut in the header": plain[:60],
        "png wide": png[:8] + huge_ihdr + png[after_header:],
        "png text": png[:after_header] + _chunk(b"zTXt", b"k\0\0" + packed) + png[after_header:],
        "png profile": png[:after_header] + _chunk(b"iCCP", b"k\0\0" + packed) + png[after_header:],
        "png too many pixels": png[:after_header] + _chunk(b"IDAT", packed) + png[after_header:],
        "png cut": png[: len(png) // 2],
        "png lying length": png[:after_header] + struct.pack(">I", 1 << 31) + png[after_header:],
    }


BOMBS_IN_A_PROCESS = """
import resource, sys
from adadistill.loaders.records.checked_records import CheckedRecords
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.pixels import ImageDecodeError, decode_image
import simplejpeg, numpy, PIL.Image, PIL.PngImagePlugin

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

records = ImageRecords(sys.argv[1])
for wrong_size in ("refuse", "resize"):
    checked = CheckedRecords(records, 32, wrong_size=wrong_size)
    checked.decode(0)  # a good image: what decoding always needs is in memory
    before = peak()
    for record_id in range(1, len(records)):
        for decode in (checked.decode, checked.feedable):
            try:
                decode(record_id)
            except ImageDecodeError as error:
                assert len(str(error)) < 1000, len(str(error))
    print((peak() - before) // 1024)
"""


def test_a_corpus_of_bombs_costs_less_than_64_mib(tmp_path: Path):
    bombs = _bombs()
    path = write_records(tmp_path, [_encoded(Image.fromarray(_picture()), "JPEG"), *bombs.values()])
    command = [forked_python(), "-c", BOMBS_IN_A_PROCESS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    growth_mib = [int(line) for line in done.stdout.split()]
    assert len(growth_mib) == 2
    assert max(growth_mib) < 64, growth_mib


def test_bombs_are_refused_and_what_is_wrapped_around_a_sound_png_does_no_harm():
    bombs = _bombs()
    for name in ("wide", "wide progressive", "tall", "nothing", "five thousand scans", "cut in the header", "png wide",
                 "png cut"):  # fmt: skip
        with pytest.raises(ImageDecodeError, match=r"^test: "):
            decode_image(bombs[name], where="test")
    for name in ("png text", "png profile"):
        assert np.array_equal(decode_image(bombs[name], where="test"), _picture())
