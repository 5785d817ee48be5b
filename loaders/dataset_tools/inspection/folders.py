"""Folders: images by identity, record files, stores, caches, checkpoints and runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from adadistill.loaders.command_text import quoted
from adadistill.loaders.dataset_tools.inspection.finding import Finding, ImageSample, printable, read_start
from adadistill.loaders.dataset_tools.record_folder.image_lists import own_list, read_list
from adadistill.loaders.folders import (
    UNFINISHED_NAME,
    FolderWalk,
    ImageFile,
    ImageFolderError,
    entries_of,
    read_image,
    shape_of,
)
from adadistill.loaders.json_text import JSON, parse_json
from adadistill.loaders.pixels import MAX_IMAGE_BYTES
from adadistill.loaders.records.arrow_images import is_arrow_folder

_MOST_JSON = 16 << 20
_SHOWN = 8
_STORES = {
    "adadistill-teacher-cache": ("teacher-cache", "cache of teacher embeddings", "adadistill cache verify {path}"),
    "adadistill-packed-images": ("packed-store", "packed store of decoded images", "data.packed: {path}"),
}


def inspect_folder(path: Path, sample: int) -> Finding:
    """Say what a folder is by the files in it."""
    names = {entry.name for entry in entries_of(path)[0]}
    if "header.json" in names:
        return _store(path)
    if "MANIFEST.json" in names:
        return _checkpoint(path)
    if "recipe.resolved.yaml" in names or "checkpoints" in names:
        return _run(path, names)
    if is_arrow_folder(path):
        finding = Finding(path, "arrow-set", "set that Hugging Face datasets saved, as CVLface's evaluation sets")
        finding.next_steps.append(f"score a network on it: adadistill evaluate NETWORK --sets {quoted(path)}")
        return finding
    for suffix, kind, title, advice in (
        (".rec", "record-folder", "folder with record files", "adadistill data inspect {first}"),
        (".tar", "tar-shards", "folder with tar shards", "adadistill data convert {path}/*.tar --out RECORDS"),
        (".parquet", "parquet", "folder with parquet files", "adadistill data convert {path}/*.parquet --out RECORDS"),
        (".bin", "verification-sets", "folder with .bin files", "adadistill data inspect {first}"),
    ):
        found = sorted(name for name in names if name.endswith(suffix))
        if found:
            finding = Finding(path, kind, title, {"files": [printable(name, 80) for name in found[:_SHOWN]]})
            finding.facts["number of files"] = len(found)
            finding.next_steps.append(advice.format(path=quoted(path), first=quoted(path / found[0])))
            return finding
    return _images(path, sample)


def _images(path: Path, sample: int) -> Finding:
    finding = Finding(path, "image-folder", "image folder, one sub-folder for each identity")
    counts, suffixes, bytes_, first = list[int](), Counter[str](), 0, list[ImageFile]()
    walk = FolderWalk(path)
    litter, others, leading_out = list(walk.litter), list(walk.others), 0
    step = max(1, len(walk.names) // max(sample, 1))
    for number, identity in enumerate(walk.names):
        found = walk.look_into(identity)
        counts.append(len(found.images))
        litter += found.litter
        others += found.others
        leading_out += len(found.leading_out)
        finding.problems += found.no_files[: _SHOWN - len(finding.problems)]
        bytes_ += sum(image.bytes for image in found.images)
        suffixes.update(Path(image.name).suffix.lower() for image in found.images)
        if number % step == 0:
            first += found.images[:1]
    total = sum(counts)
    if not total:
        finding.kind, finding.title = "folder", "folder that is nothing known here"
        finding.facts["entries"] = [printable(entry.name, 80) for entry in entries_of(path)[0][:_SHOWN]]
        finding.problems += [shape.rstrip()] if (shape := shape_of(path)) else []
        return finding
    held = np.array([count for count in counts if count])
    images = ImageSample()
    for image in first[:sample]:
        try:
            images.add(read_image(path, image.name, MAX_IMAGE_BYTES), path / image.name)
        except (ImageFolderError, OSError) as error:
            finding.problems.append(str(error))
    quartiles = ", ".join(f"{value:g}" for value in np.quantile(held, (0.25, 0.5, 0.75)))
    finding.facts |= {
        "identities": len(held),
        "images": total,
        "images each": f"{held.min()} to {held.max()}, quartiles {quartiles}",
        "bytes": bytes_,
        "suffixes": dict(suffixes),
        "empty sub-folders": len(counts) - len(held),
        "left out, no images by name": len(others),
        "left out, hidden or of the system": sum(not name.startswith(".records.") for name in litter),
        "links that lead out": leading_out,
    }
    finding.facts |= images.facts()
    finding.problems += images.problems()
    _manifest_facts(path, finding)
    refused = others + [
        f"{path / name} holds no image" for name, count in zip(walk.names, counts, strict=True) if not count
    ]
    if refused:
        finding.facts["refused before training"] = f"{len(refused)} of these, the first: {printable(refused[0])}"
    links = " data.links=anywhere" if leading_out else ""
    finding.next_steps.append(f"train straight from it: {quoted(f'data.records={path}')}{links}")
    finding.next_steps.append(f"as records: adadistill data convert {quoted(path)} --out RECORDS")
    return finding


def _manifest_facts(path: Path, finding: Finding) -> None:
    if (path / UNFINISHED_NAME).exists():
        finding.problems.append("it is an unfinished conversion; the same `adadistill data convert` goes on with it")
    listed = own_list(path)
    if listed is None:
        finding.facts["manifest"] = "none: converted by names"
        return
    try:
        images = sum(1 for _ in read_list(listed))
    except ImageFolderError as error:
        finding.problems.append(str(error))
        return
    finding.facts["manifest"] = f"{listed.name}, {images} images of a record file"
    if images != finding.facts["images"]:
        finding.problems.append(f"its {listed.name} names {images} images, {finding.facts['images']} are there")


def _store(path: Path) -> Finding:
    finding = Finding(path, "folder", "folder with a header.json of unknown format")
    header = _json(path / "header.json", finding)
    kind, title, advice = _STORES.get(str(header.get("format")), ("", "", ""))
    if not kind:
        return finding
    finding.kind, finding.title = kind, title
    for name in ("version", "layout", "num_records", "image_size", "embedding_dim", "views"):
        if name in header:
            finding.facts[name.replace("_", " ")] = _short(header[name])
    for name in ("records", "teacher"):
        fields = header.get(name)
        if isinstance(fields, dict):
            finding.facts[name] = {printable(key, 40): _short(value) for key, value in list(fields.items())[:10]}
    finding.next_steps.append(advice.format(path=quoted(path)))
    return finding


def _checkpoint(path: Path) -> Finding:
    finding = Finding(path, "checkpoint", "checkpoint of a run")
    manifest = _json(path / "MANIFEST.json", finding)
    files = manifest.get("files")
    for name in ("format", "version", "step"):
        finding.facts[name] = _short(manifest.get(name))
    finding.facts["files"] = len(files) if isinstance(files, (dict, list)) else 0
    finding.next_steps.append(f"score it: adadistill evaluate {quoted(path)} --sets SETS")
    return finding


def _run(path: Path, names: set[str]) -> Finding:
    finding = Finding(path, "run", "folder of a training run")
    steps = sorted(one.name for one in (path / "checkpoints").glob("step-*")) if "checkpoints" in names else []
    finding.facts["checkpoints"] = len(steps)
    if steps:
        finding.facts["newest"] = printable(steps[-1], 60)
    finding.facts["files"] = [printable(name, 60) for name in sorted(names)[:_SHOWN]]
    finding.next_steps.append(f"as a page: adadistill report {quoted(path)}")
    return finding


def _json(path: Path, finding: Finding) -> dict[str, JSON]:
    try:
        content = parse_json(read_start(path, _MOST_JSON).decode("utf-8"))
    except (ValueError, OSError) as error:
        finding.problems.append(f"{path.name} cannot be read: {printable(str(error))}")
        return {}
    return content if isinstance(content, dict) else {}


def _short(value: JSON) -> JSON:
    return value if value is None or isinstance(value, (bool, int, float)) else printable(str(value), 100)
