"""A tiny IJB set with real JPEG files, in the original layout and, of the same aligned pixels, in the prepared one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from arrow_folders import write_arrow_folder
from PIL import Image

from adadistill.loaders.evaluation_sets.face_alignment import ARCFACE_TEMPLATE, aligned, similarities_to_template
from adadistill.loaders.pixels import decode_image

SUBJECTS = 6
PICTURE = (70, 60)


@dataclass(frozen=True, slots=True)
class SmallIjb:
    """What the files say."""

    names: list[str]
    templates: np.ndarray
    medias: np.ndarray
    landmarks: np.ndarray
    detector_scores: np.ndarray
    pairs: np.ndarray
    """(P, 3) template, template, label."""
    galleries: dict[str, list[tuple[int, int]]]
    probes: list[tuple[int, int]]
    bodies: list[bytes]


def small_ijb(seed: int = 0) -> SmallIjb:
    """Six subjects with a gallery template and two probe templates each, of one to four images in one or two media."""
    random = np.random.default_rng(seed)
    templates, medias, bodies, landmarks = [], [], [], []
    numbers = {subject: [10 + subject, 100 + 2 * subject, 101 + 2 * subject] for subject in range(SUBJECTS)}
    for own in numbers.values():
        face = random.integers(0, 256, (8, 8, 3))
        for template in own:
            for image in range(random.integers(1, 5)):
                levels = np.clip(face + random.normal(0, 40, face.shape), 0, 255).astype(np.uint8)
                picture = Image.fromarray(levels).resize(PICTURE[::-1], Image.Resampling.BILINEAR)
                file = io.BytesIO()
                picture.save(file, "JPEG", quality=95)
                bodies.append(file.getvalue())
                templates.append(template)
                medias.append(1000 * template + image // 2)
                landmarks.append(ARCFACE_TEMPLATE * 0.5 + random.normal(0, 1, (5, 2)))
    pairs = [
        (numbers[one][0], probe, int(one == other))
        for one in numbers
        for other in numbers
        for probe in numbers[other][1:]
    ]
    gallery = [(numbers[subject][0], 500 + subject) for subject in numbers]
    order = random.permutation(len(bodies))  # templates do not lie together in the real lists of IJB-B either
    return SmallIjb(
        names=[f"{number + 1}.jpg" for number in range(len(bodies))],
        templates=np.array(templates)[order],
        medias=np.array(medias)[order],
        landmarks=np.round(np.array(landmarks)[order], 3),
        detector_scores=np.round(random.uniform(0.3, 1, len(bodies)), 4),
        pairs=np.array(pairs),
        galleries={"G1": gallery[:3], "G2": gallery[3:]},
        probes=[(probe, 500 + subject) for subject in numbers for probe in numbers[subject][1:]],
        bodies=[bodies[place] for place in order],
    )


def write_original(folder: Path, small: SmallIjb) -> Path:
    """`meta` and `loose_crop` of IJB-C's original layout."""
    (folder / "loose_crop").mkdir(parents=True)
    meta = folder / "meta"
    meta.mkdir()
    for name, body in zip(small.names, small.bodies, strict=True):
        (folder / "loose_crop" / name).write_bytes(body)
    rows = list(zip(small.names, small.templates, small.medias, strict=True))
    _write(meta / "ijbc_face_tid_mid.txt", [f"{name} {template} {medium}" for name, template, medium in rows])
    points = np.column_stack([small.landmarks.reshape(-1, 10), small.detector_scores])
    lines = [" ".join([name, *map(str, row)]) for name, row in zip(small.names, points.tolist(), strict=True)]
    _write(meta / "ijbc_name_5pts_score.txt", lines)
    _write(meta / "ijbc_template_pair_label.txt", [" ".join(map(str, row)) for row in small.pairs.tolist()])
    write_identification(meta, small)
    return folder


def write_identification(folder: Path, small: SmallIjb) -> None:
    """The three csv files of the 1:N protocol, with a line for each image, as published."""
    sides = {f"gallery_{name}": side for name, side in small.galleries.items()} | {"probe_mixed": small.probes}
    for name, side in sides.items():
        lines = [f"{template},{subject},img/{image}.jpg" for template, subject in side for image in range(2)]
        _write(folder / f"ijbc_1N_{name}.csv", ["TEMPLATE_ID,SUBJECT_ID,FILENAME", *lines])


def write_prepared(folder: Path, small: SmallIjb, *, identification: bool = True) -> Path:
    """CVLface's layout, rows in another order than the metadata; PNG, so that pixels are those of the other layout."""
    similarities = similarities_to_template(small.landmarks)
    pixels = [
        aligned(decode_image(body, where=""), similarity)
        for body, similarity in zip(small.bodies, similarities, strict=True)
    ]
    index = np.random.default_rng(5).permutation(len(pixels))
    write_arrow_folder(folder, {"image": [_png(pixels[number]) for number in index], "index": index}, batch_rows=7)
    metadata = {
        "templates": small.templates,
        "medias": small.medias,
        "faceness_scores": small.detector_scores,
        "p1": small.pairs[:, 0],
        "p2": small.pairs[:, 1],
        "label": small.pairs[:, 2],
    }
    torch.save(metadata, folder / "metadata.pt")
    if identification:
        write_identification(folder, small)
    return folder


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")
