"""Record files made of other record files: in random parts, or joined. Images are copied byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.pixels import image_size
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.loaders.records.recordio import RecordWriter, write_insightface_records

Progress = Callable[[int, int], None]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Written:
    """One record file that was written."""

    path: Path
    images: int
    identities: int
    """Highest label and 1."""
    dropped: int = 0
    """Duplicates left out."""

    def __str__(self) -> str:
        dropped = f", {self.dropped} duplicates left out" if self.dropped else ""
        return f"wrote {self.path}: {self.images} images of {self.identities} identities{dropped}"


def split_records(
    source: ImageRecords,
    folder: Path,
    *,
    names: Sequence[str],
    fractions: Sequence[float],
    by_identity: bool,
    seed: int,
    relabel: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Written]:
    """Cut a file into `<name>/train.rec` of random parts; of whole identities where `by_identity`.

    Args:
        fractions: of the images, or of the identities; positive, summing to at most 1.
        relabel: count the identities of each part from 0, with `labels.json` from new to old; else labels stay.

    Raises:
        ValueError: names and fractions do not fit, or a part would be empty.
        FileExistsError: records are there and `overwrite` is false.
        RecordError: a record is damaged; nothing of its part is written.
    """
    if len(names) != len(fractions) or len(set(names)) != len(names) or not names:
        raise ValueError(f"each part needs a name of its own and a fraction, got {list(names)} and {list(fractions)}")
    if any(not 0.0 < share <= 1.0 for share in fractions) or sum(fractions) > 1.0 + 1e-9:
        raise ValueError(f"fractions must be positive and sum to at most 1, got {list(fractions)}")
    draws = np.random.Generator(np.random.PCG64(seed))
    labels = source.labels()
    units = np.unique(labels) if by_identity else np.arange(len(source))
    shuffled = draws.permutation(units)
    bounds = np.rint(np.cumsum([0.0, *fractions]) * len(units)).astype(int)
    written: list[Written] = []
    for name, first, stop in zip(names, bounds[:-1], bounds[1:], strict=True):
        chosen = np.sort(shuffled[first:stop])
        ids = np.flatnonzero(np.isin(labels, chosen)) if by_identity else chosen
        if not len(ids):
            raise ValueError(f"part {name} would be empty: {fractions[len(written)]} of {len(units)}")
        (folder / name).mkdir(parents=True, exist_ok=True)
        new_labels, classes = None, source.num_classes
        if relabel:
            old, new_labels = np.unique(labels[ids], return_inverse=True)
            classes = len(old)
            write_whole(folder / name / "labels.json", json.dumps(old.tolist()) + "\n")
        target = folder / name / "train.rec"
        written.append(_write_plain(source, target, ids, classes, new_labels, overwrite, progress))
    return written


def merge_records(
    sources: Sequence[ImageRecords],
    folder: Path,
    *,
    same_identities: bool = False,
    drop_duplicates: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Join files into `train.rec` in insightface's layout: sorted by identity, with identity and header records.

    Args:
        same_identities: label 3 of one file is label 3 of all; else the labels of each file follow those of the last.
        drop_duplicates: leave out images whose bytes were seen before.

    Raises:
        ValueError: labels have holes, which that layout cannot hold, or there is no image.
        FileExistsError, RecordError: as `split_records`.
    """
    _refuse_to_replace(sources, folder / "train.rec")
    offsets, total = [], 0
    for source in sources:
        offsets.append(0 if same_identities else total)
        total = max(total, source.num_classes) if same_identities else total + source.num_classes
    labels = np.concatenate([source.labels() + offset for source, offset in zip(sources, offsets, strict=True)])
    owners = np.concatenate([np.full(len(source), number) for number, source in enumerate(sources)])
    ids = np.concatenate([np.arange(len(source)) for source in sources])
    present = np.unique(labels)
    if len(present) != present[-1] + 1:
        hole = int(np.setdiff1d(np.arange(present[-1] + 1), present)[0])
        raise ValueError(
            f"identity {hole} has no image, and insightface's layout has no room for one without: relabel the parts "
            "first (adadistill data split --identities --fractions 1 --names all --relabel)"
        )
    order = np.lexsort((ids, owners, labels))
    seen: set[bytes] = set()
    dropped = 0

    def samples() -> Iterator[tuple[int, bytes]]:
        nonlocal dropped
        for done, place in enumerate(order.tolist(), start=1):
            body = sources[owners[place]].read(int(ids[place])).body
            if drop_duplicates:
                digest = hashlib.sha256(body).digest()
                if digest in seen:
                    dropped += 1
                    continue
                seen.add(digest)
            if progress is not None:
                progress(done, len(order))
            yield int(labels[place]), body

    side = image_size(sources[0].read(0).body, where=sources[0].where(0))
    folder.mkdir(parents=True, exist_ok=True)
    path = write_insightface_records(folder, samples(), image_size=side, overwrite=overwrite)
    return Written(path, len(order) - dropped, len(present), dropped)


def _refuse_to_replace(sources: Sequence[ImageRecords], target: Path) -> None:
    """A mistake after an hour of copying must not cost the original."""
    for source in sources:
        if target.exists() and target.samefile(source.path):
            raise ValueError(f"{target} is where the images come from, and stays; name another folder")


def _write_plain(
    source: ImageRecords,
    target: Path,
    ids: Ids,
    classes: int,
    labels: npt.NDArray[np.integer] | None,
    overwrite: bool,
    progress: Progress | None,
) -> Written:
    """Records in the order of `ids`, and `property` beside them."""
    _refuse_to_replace([source], target)
    properties = target.with_name("property")
    if properties.exists() and not overwrite:
        raise FileExistsError(f"{properties} exists already; name another folder, or pass --overwrite")
    side = image_size(source.read(int(ids[0])).body, where=source.where(int(ids[0])))
    target.parent.mkdir(parents=True, exist_ok=True)
    with RecordWriter(target, overwrite=overwrite) as writer:
        for key, record_id in enumerate(ids.tolist()):
            encoded = source.read(record_id)
            label = encoded.label if labels is None else int(labels[key])
            writer.write(key, encoded.body, labels=float(label), id2=int(source.index.keys[record_id]))
            if progress is not None:
                progress(key + 1, len(ids))
    write_whole(properties, f"{classes},{side[0]},{side[1]}\n")
    return Written(target, len(ids), classes)
