"""Trials of verification sets: `.bin` pickles of every protocol and layout, damaged, hostile, or of bad images."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np

from adadistill.loaders.evaluation_sets.verification_pairs import (
    VerificationSetError,
    decode_pairs,
    read_verification_bin,
)
from adadistill.loaders.pixels import ImageDecodeError
from trials.mutation_kinds.damage import Rng, damage_bytes
from trials.mutation_kinds.image_attacks import attacking_images, plain_jpeg
from trials.mutation_kinds.pickle_attacks import PROTOCOLS, executing_pickles, exhausting_pickles
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, attack_of, judge

_PAIRS, _SIDE = 4, 32
_REFUSALS = (VerificationSetError, ImageDecodeError)


class VerificationSets:
    """`.bin` files as `evaluate` and a recipe's `evaluation.sets` read and decode them."""

    group = "verification set"
    damage = "bit flips, cuts, splices; pickles that execute, under protocols 0 to 5; memo, length and image bombs"
    promise = "a VerificationSetError or ImageDecodeError names the file, or pairs of images of one size; nothing runs"

    def __init__(self) -> None:
        self._originals: list[tuple[str, bytes]] = []
        self._attacks: list[tuple[str, bytes]] = []
        self._pixels = b""

    def prepare(self, folder: Path) -> None:
        images = [plain_jpeg(index, _SIDE, _SIDE) for index in range(2 * _PAIRS)]
        same = [bool(pair % 2) for pair in range(_PAIRS)]
        self._originals = list(_layouts(images, same).items())
        self._attacks = [*executing_pickles(folder.parent / "canary").items(), *exhausting_pickles().items()]
        for name, image in attacking_images().items():
            self._attacks.append((f"image: {name}", pickle.dumps(([*images[:-1], image], same), 4)))
        self._attacks.append(("one image a million times", _repeated(images[0], 999_000)))
        for name, body in self._originals:
            path = folder / f"{name}.bin"
            path.write_bytes(body)
            self._pixels = decode_pairs(read_verification_bin(path), _SIDE, threads=2).tobytes()

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        path = folder / "set.bin"
        attack = attack_of(number, len(self._attacks))
        if attack is not None:
            damage, body = self._attacks[attack]
        else:
            name, original = self._originals[number % len(self._originals)]
            damage, body = damage_bytes(rng, original, [one for _, one in self._originals])
            damage = f"{name}: {damage}"
        path.write_bytes(body)
        return judge(damage, lambda: self._read(path), _REFUSALS, named="set.bin")

    def _read(self, path: Path) -> str:
        pairs = read_verification_bin(path)
        if len(pairs.images) != 2 * len(pairs.same) or pairs.same.dtype != np.bool_ or not len(pairs.same):
            raise BrokenPromiseError(f"{len(pairs.images)} images for {len(pairs.same)} flags")
        found = []
        for first in range(0, min(len(pairs.images), 512), 64):
            pixels = decode_pairs(pairs, 112, first=first, stop=min(first + 64, len(pairs.images)), threads=2)
            if pixels.shape[1:] != (112, 112, 3):
                raise BrokenPromiseError(f"pixels of shape {pixels.shape}")
            found.append(pixels)
        same_as = decode_pairs(pairs, _SIDE, stop=min(64, len(pairs.images)), threads=2).tobytes() == self._pixels
        return READ if same_as else "read as a set of other images"


def _layouts(images: list[bytes], same: list[bool]) -> dict[str, bytes]:
    arrays = [np.frombuffer(body, np.uint8) for body in images]
    contents: dict[str, Any] = {
        "bytes": (images, same),
        "arrays": (arrays, np.array(same)),
        "columns": ([array[:, None] for array in arrays], np.array(same, np.int64)),
    }
    found = {
        f"{name}, protocol {protocol}": pickle.dumps(content, protocol)
        for name, content in contents.items()
        for protocol in PROTOCOLS
    }
    # What Python 2 wrote: strings of bytes, and 0 and 1 for flags are as good as booleans.
    strings = b"".join(b"T" + struct.pack("<i", len(body)) + body for body in images)
    found["Python 2"] = (
        b"\x80\x02](" + strings + b"e](" + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86."
    )
    return found


def _repeated(image: bytes, count: int) -> bytes:
    """One image by reference: a byte or two of the file for each time that it would be decoded."""
    images = b"](B" + struct.pack("<I", len(image)) + image + b"q\x00" + b"h\x00" * (count - 1) + b"e"
    return b"\x80\x03" + images + b"](" + b"\x88" * (count // 2) + b"e\x86."
