"""Trials of `.idx` files: whatever the index says, record ids name the images that they always named."""

from __future__ import annotations

from pathlib import Path

from adadistill.loaders.records.record_index import load_record_index
from adadistill.loaders.records.recordio import RecordFile
from trials.mutation_kinds.damage import Rng, damage_text
from trials.mutation_kinds.records import REFUSALS, Original, record_originals
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, judge


class IndexFiles:
    """`.idx` files beside sound records."""

    group = "index file"
    damage = "bit flips, cuts, odd encodings and numbers, offsets doubled, negative, overlapping, past the end"
    promise = "record ids are those of the sound index, read or rebuilt by a scan; or a RecordError names the file"

    def __init__(self) -> None:
        self._originals: list[Original] = []

    def prepare(self, folder: Path) -> None:
        self._originals = record_originals(folder)

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        original = self._originals[number % len(self._originals)]
        if rng.random() < 0.5:
            damage, body = _lying_lines(rng, original)
        else:
            damage, body = damage_text(rng, original.idx, [one.idx for one in self._originals])
        path = original.write(folder, idx=body)

        def read() -> str:
            index = load_record_index(RecordFile(path))
            if tuple(index.offsets.tolist()) != original.offsets:
                raise BrokenPromiseError(f"{len(index)} images at other places, from {index.source}")
            return READ if index.source == "idx" else "rebuilt by a scan"

        return judge(f"{original.layout}: {damage}", read, REFUSALS, named="train.rec")


def _lying_lines(rng: Rng, original: Original) -> tuple[str, bytes]:
    rows = [line.split(b"\t") for line in original.idx.splitlines()]
    at, other = int(rng.integers(len(rows))), int(rng.integers(len(rows)))
    kinds = (
        "dropped",
        "doubled",
        "swapped",
        "negative",
        "past the end",
        "overlapping",
        "huge key",
        "shuffled",
        "one key",
    )
    kind = (*kinds, "key 0", "three columns", "one column", "inside a record", "off by 4")[int(rng.integers(14))]
    if kind == "dropped":
        del rows[at]
    elif kind == "doubled":
        rows.insert(other, list(rows[at]))
    elif kind == "swapped":
        rows[at][1], rows[other][1] = rows[other][1], rows[at][1]
    elif kind == "negative":
        rows[at][int(rng.integers(2))] = b"-4"
    elif kind == "past the end":
        rows[at][1] = str(int(rng.choice([len(original.rec), len(original.rec) + 4, 1 << 40, (1 << 63) - 4]))).encode()
    elif kind == "overlapping":
        rows = [[str(key).encode(), str(4 * key).encode()] for key in range(len(original.rec) // 4)]
    elif kind == "huge key":
        rows[at][0] = str(int(rng.choice([1 << 31, 1 << 53, (1 << 63) - 1]))).encode()
    elif kind == "shuffled":
        rows = [rows[index] for index in rng.permutation(len(rows)).tolist()]
    elif kind == "one key":
        rows[at][0] = rows[other][0]
    elif kind == "key 0":
        rows[at][0] = b"0"
    elif kind == "three columns":
        rows[at].append(b"1")
    elif kind == "one column":
        del rows[at][1]
    elif kind == "inside a record":
        rows[at][1] = str(int(rng.integers(len(original.rec) // 4)) * 4).encode()
    else:
        rows[at][1] = str(int(rows[at][1]) + 4).encode()
    return kind, b"".join(b"\t".join(row) + b"\n" for row in rows)
