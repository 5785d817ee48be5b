"""Synthetic faces as RecordIO and verification sets: something to train on where no real faces may be had.

The pictures are procedural (`face_renderer`): they need no download, no licence and nobody's consent, and come at any
size and number. They are no substitute for real faces. What they are for is a whole training run, from records to
verification accuracy, that anyone can repeat in minutes. So they are made to behave like the real task: pose, light,
surroundings and camera move the pixels far more than identity does, an untrained network is near chance, a small
trained one lies between chance and perfect and gets better with more identities, and pictures differ in a known
`quality`, with which embedding norms can be compared.

Pixels are a function of the configuration's look and of (seed, identity, image number) alone, to the last bit on one
machine. Processors round sines and matrix products a little differently, so elsewhere a few values may differ by one
level of 255.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadistill.loaders.evaluation_sets.verification_pairs import write_verification_bin
from adadistill.loaders.records.recordio import write_insightface_records
from adadistill.loaders.synthetic.face_parameters import FloatArray, draw_identity, draw_picture, pixel_noise
from adadistill.loaders.synthetic.face_renderer import expose, render_clean
from adadistill.loaders.usable_cpus import usable_cpus

JPEG_QUALITY = 95
JPEG_SUBSAMPLING = "444"
"""Full colour resolution: at 32 x 32 pixels 4:2:0 would leave 16 x 16 of colour, and decoders disagree in how to
enlarge it."""

VERIFICATION_IDENTITIES = 1 << 40
"""Identities of verification sets are numbered from here, beyond any that a configuration can ask for."""

_PIXELS_AT_ONCE = 1 << 16
"""Pictures are drawn in groups of about this many pixels: a float32 plane is then 256 KiB and stays in a core's cache,
and numpy's cost per call hardly counts (measured: 2**15 to 2**17 alike, 2**13 a third slower)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticFacesConfig:
    """Which faces to make, and how hard they are to tell apart."""

    image_size: int = 48
    """Side of the square images in pixels; at least 16. The networks here take multiples of 16."""
    seed: int = 0
    """Picks another population altogether. In [0, 2**63)."""
    identities: int = 100
    """Number of people, labelled from 0. Positive."""
    images_per_identity: int = 20
    """Pictures of each. Positive."""
    first_identity: int = 0
    """Number of the first person. Ranges that overlap hold the same people, so a small set can be part of a large one,
    and ranges that do not are strangers to each other."""
    first_image: int = 0
    """Number of everyone's first picture, so that one set can hold other pictures of the same people."""
    lowest_quality: float = 0.0
    """Quality of a picture is uniform between this and `highest_quality`, in [0, 1]: 1 is sharp and clean, 0 is
    blurred, noisy and worth about 7 x 7 pixels."""
    highest_quality: float = 1.0
    pose: float = 1.0
    """Multiplies yaw (at 1 up to 19 degrees), pitch (10), roll (9), zoom and shift. In [0, 2]."""
    lighting: float = 1.0
    """Multiplies how uneven and how coloured the light is and how far exposure and contrast are off. In [0, 2]."""
    texture: float = 1.0
    """Multiplies the strength of the skin's texture, part of the identity. In [0, 3]."""
    glasses: float = 0.15
    """Probability of glasses, a quarter of them dark, whoever the person is. In [0, 1]."""
    occlusion: float = 0.1
    """Probability of something in front of the face. In [0, 1]."""

    def __post_init__(self) -> None:
        for name, least in (("image_size", 16), ("identities", 1), ("images_per_identity", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be in [0, 2**63), got {self.seed}")
        if self.first_identity < 0 or self.first_identity + self.identities > VERIFICATION_IDENTITIES:
            raise ValueError(
                f"first_identity must be in [0, {VERIFICATION_IDENTITIES} - identities], got {self.first_identity}"
            )
        if self.first_image < 0:
            raise ValueError(f"first_image must not be negative, got {self.first_image}")
        if not 0.0 <= self.lowest_quality <= self.highest_quality <= 1.0:
            raise ValueError(
                "lowest_quality and highest_quality must be in [0, 1] and in this order, "
                f"got {self.lowest_quality}, {self.highest_quality}"
            )
        for name, most in (("pose", 2.0), ("lighting", 2.0), ("texture", 3.0), ("glasses", 1.0), ("occlusion", 1.0)):
            if not 0.0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be in [0, {most:g}], got {getattr(self, name)}")


class Faces(NamedTuple):
    """Pictures and the quality each was made with."""

    images_u8: NDArray[np.uint8]
    """(n, H, W, 3) RGB."""
    quality: FloatArray
    """(n,) in [lowest_quality, highest_quality]."""


def render_faces(
    config: SyntheticFacesConfig, identities: NDArray[np.int64], image_numbers: NDArray[np.int64]
) -> Faces:
    """Draw pictures of people.

    A picture depends on the configuration's look, (seed, identity, image number) and nothing else: not on the other
    pictures asked for, their order, nor on `config.identities`, `images_per_identity`, `first_identity` and
    `first_image`.

    Args:
        config: image size, seed, quality and difficulty.
        identities: (n,) integers, not negative.
        image_numbers: (n,) integers, not negative; which picture of the person.

    Raises:
        ValueError: shapes disagree, or a number is negative.
    """
    identities, image_numbers = np.asarray(identities, np.int64), np.asarray(image_numbers, np.int64)
    if identities.ndim != 1 or identities.shape != image_numbers.shape:
        raise ValueError(f"(n,) and (n,) are needed, got shapes {identities.shape} and {image_numbers.shape}")
    if identities.size and min(identities.min(), image_numbers.min()) < 0:
        raise ValueError("identities and image_numbers must not be negative")
    size = config.image_size
    images = np.empty((len(identities), size, size, 3), np.uint8)
    quality = np.empty(len(identities), np.float32)
    step = _pictures_at_once(size)
    for start in range(0, len(identities), step):
        part = slice(start, start + step)
        images[part], quality[part] = _render_group(config, identities[part], image_numbers[part])
    return Faces(images, quality)


def write_synthetic_records(
    folder: str | Path,
    config: SyntheticFacesConfig,
    *,
    name: str = "train",
    overwrite: bool = False,
    threads: int | None = None,
) -> Path:
    """Write a training set as insightface lays it out: `<name>.rec`, `<name>.idx`, `property`.

    The label of identity `first_identity + i` is i; pictures of one identity follow each other. Memory does not grow
    with the number of pictures.

    Args:
        folder: made if it does not exist.
        config: everything about the pictures.
        name: stem of the two record files.
        overwrite: replace existing files; otherwise they raise FileExistsError.
        threads: that draw and encode beside each other; default one per CPU, at most 8. The files do not depend on it.

    Returns:
        Path of the `.rec` file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    per_identity = config.images_per_identity
    count = config.identities * per_identity

    def members(start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ordinals = np.arange(start, stop, dtype=np.int64)
        return config.first_identity + ordinals // per_identity, config.first_image + ordinals % per_identity

    with closing(_encoded_pictures(config, count, members, threads)) as pictures:
        samples = ((ordinal // per_identity, body) for ordinal, body in enumerate(pictures))
        size = (config.image_size, config.image_size)
        return write_insightface_records(folder, samples, image_size=size, name=name, overwrite=overwrite)


def write_synthetic_pairs(
    path: str | Path, config: SyntheticFacesConfig, *, pairs: int = 2000, threads: int | None = None
) -> Path:
    """Write a verification set in the field's format, alternately of same and different people.

    Its people are strangers to every training set, whatever the two configurations say. Every "same" pair shows
    somebody new, and no one is in two tenths of the set, so that the folds of the ten-fold protocol are independent.

    Args:
        path: of the `.bin`; its folder is made if it does not exist.
        config: seed, image size, quality and difficulty. Its numbers of identities and images are not used.
        pairs: P; a multiple of 20, so that each tenth is half same and half different.
        threads: as for `write_synthetic_records`.

    Returns:
        The path.

    Raises:
        ValueError: `pairs` is no positive multiple of 20.
    """
    identities, image_numbers = pair_members(pairs)

    def members(start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return identities[start:stop], image_numbers[start:stop]

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    bodies = list(_encoded_pictures(config, 2 * pairs, members, threads))
    write_verification_bin(path, bodies, np.arange(pairs) % 2 == 0)
    return path


def pair_members(pairs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Who is in each picture of a verification set, and which picture of theirs it is.

    Person j is in "same" pair j with the pictures 0 and 1, on the left of "different" pair j with picture 2, and on the
    right of the previous "different" pair with picture 3; the first of a tenth is on the right of its last. In a tenth
    with a single pair of each kind the stranger is a further person.

    Args:
        pairs: P; a positive multiple of 20.

    Returns:
        identities and image numbers, (2P,) int64 each; pair i is 2i and 2i + 1, and even pairs are "same".

    Raises:
        ValueError: `pairs` is no positive multiple of 20.
    """
    if pairs < 20 or pairs % 20:
        raise ValueError(f"pairs must be a positive multiple of 20, got {pairs}")
    people, tenth = pairs // 2, pairs // 20
    person = np.arange(people, dtype=np.int64)
    stranger = person // tenth * tenth + (person % tenth + 1) % tenth if tenth > 1 else person + people
    identities = np.stack([person, person, person, stranger], axis=1).reshape(-1)  # (2P,)
    return VERIFICATION_IDENTITIES + identities, np.tile(np.arange(4, dtype=np.int64), people)


def _encoded_pictures(
    config: SyntheticFacesConfig,
    count: int,
    members: Callable[[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]],
    threads: int | None,
) -> Generator[bytes, None, None]:
    """JPEGs of `count` pictures in order; `members(start, stop)` says who is in them. A few groups are drawn ahead."""
    if threads is None:
        threads = min(8, usable_cpus())
    if threads < 1:
        raise ValueError(f"threads must be positive, got {threads}")
    step = _pictures_at_once(config.image_size)

    def draw(start: int) -> list[bytes]:
        identities, image_numbers = members(start, min(start + step, count))
        return [_encoded(image) for image in render_faces(config, identities, image_numbers).images_u8]

    pending: deque[Future[list[bytes]]] = deque()
    with ThreadPoolExecutor(threads, "synthetic-faces") as pool:
        try:
            for start in range(0, count, step):
                pending.append(pool.submit(draw, start))
                if len(pending) > 2 * threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for group in pending:
                group.cancel()


def _encoded(image_u8: NDArray[np.uint8]) -> bytes:
    import simplejpeg

    body: bytes = simplejpeg.encode_jpeg(image_u8, JPEG_QUALITY, "RGB", JPEG_SUBSAMPLING)
    return body


def _pictures_at_once(image_size: int) -> int:
    return max(1, _PIXELS_AT_ONCE // (image_size * image_size))


def _quality(config: SyntheticFacesConfig, draw: FloatArray) -> FloatArray:
    return (config.lowest_quality + (config.highest_quality - config.lowest_quality) * draw).astype(np.float32)


def _render_group(
    config: SyntheticFacesConfig, identities: NDArray[np.int64], image_numbers: NDArray[np.int64]
) -> Faces:
    size = config.image_size
    face, skin_waves = draw_identity(config.seed, identities)
    picture, background_waves = draw_picture(config.seed, identities, image_numbers)
    clean = render_clean(
        face,
        skin_waves,
        picture,
        background_waves,
        size,
        pose=config.pose,
        lighting=config.lighting,
        texture=config.texture,
        glasses=config.glasses,
        occlusion=config.occlusion,
    )
    quality = _quality(config, picture["quality_draw"])  # (n, 1)
    noise = pixel_noise(config.seed, identities, image_numbers, 3 * size * size)
    return Faces(expose(clean, quality, noise, size), quality[:, 0])
