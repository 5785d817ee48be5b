"""Small writers of foreign files, made from the formats' public descriptions; the cases' scripts import it."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def frame(payload: bytes) -> bytes:
    """One record of a `.rec` file."""
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + b"\0" * (-len(payload) % 4)


def packed(labels: float | Sequence[float], key: int, body: bytes) -> bytes:
    """An image record: one label (flag 0), or several (flag = their number)."""
    if isinstance(labels, (int, float)):
        return struct.pack("<IfQQ", 0, float(labels), key, 0) + body
    stored = np.asarray(labels, "<f4")
    return struct.pack("<IfQQ", len(stored), 0.0, key, 0) + stored.tobytes() + body


def write_rec(
    folder: str, records: Sequence[tuple[int, bytes]], *, name: str = "train", property_text: str | None = None
) -> None:
    """Write `(key, payload)` in file order, with the index beside them."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    out, lines = bytearray(), []
    for key, payload in records:
        lines.append(f"{key}\t{len(out)}\n")
        out += frame(payload)
    (root / f"{name}.rec").write_bytes(out)
    (root / f"{name}.idx").write_text("".join(lines), newline="")
    if property_text is not None:
        (root / "property").write_text(property_text, newline="")


def face(seed: int, person: int = 0, *, side: int = 112) -> bytes:
    """A JPEG: a smooth pattern of the person, and noise of the picture."""
    of_person, of_picture = np.random.default_rng(1000 + person), np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / 112.0
    channels = []
    for _ in range(3):
        a, b, d, e = of_person.uniform(2, 14, 2).tolist() + of_person.uniform(0, 6, 2).tolist()
        channels.append(127 + 60 * np.sin(a * x + d) * np.cos(b * y + e))
    image = np.stack(channels, -1) + of_picture.normal(0, 12, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8), "RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
