"""What ties a cache to a training run: teacher, records and views, each with its own account of a mismatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adadistill.loaders.block_store.cache_header import MIRRORED, PLAIN, CacheHeader, CacheView
from adadistill.loaders.block_store.field_checks import differences
from adadistill.loaders.block_store.reader import named, records_refusal
from adadistill.loaders.json_text import JSON, plain_json

_PREPROCESSING = ("preprocessing", "image_size")
_NETWORK = ("arch", "embedding_dim")


def mismatches(
    header: CacheHeader, *, teacher: Mapping[str, Any] | None, records: Mapping[str, Any], views: Sequence[CacheView]
) -> list[str]:
    """One text for each way in which a cache is not the one that training asks for; see `TeacherCache.require`.

    Raises:
        ValueError: `teacher` states no sha256, `records` no fingerprint or number, or they are no JSON.
    """
    found = [] if teacher is None else _teacher_mismatches(header.teacher, _plain("teacher", teacher, ("sha256",)))
    wanted = _plain("records", records, ("fingerprint", "num_records"))
    if refusal := records_refusal(header.records, wanted, "was made of"):
        found.append(refusal)
    return found + _view_mismatches(header.views, views)


def _plain(name: str, value: Mapping[str, Any], needed: Sequence[str]) -> dict[str, JSON]:
    plain = plain_json(value)
    if not isinstance(plain, dict) or not set(needed) <= set(plain):
        raise ValueError(f"{name} must be an object with {' and '.join(needed)}, got {value!r}")
    return plain


def _teacher_mismatches(stored: Mapping[str, JSON], wanted: Mapping[str, JSON]) -> list[str]:
    if stored["sha256"] != wanted["sha256"]:
        return [
            f"another teacher: it was written by {named(stored)} with sha256 {stored['sha256']}, "
            f"this run loads {named(wanted)} with sha256 {wanted['sha256']}. Embeddings of two teachers must not mix"
        ]
    found = []
    if lines := _field_differences(stored, wanted, _PREPROCESSING):
        found.append(f"other preprocessing: the same weights saw their images another way; {lines}")
    if lines := _field_differences(stored, wanted, _NETWORK):
        found.append(f"another network: the same weights were read as another network; {lines}")
    return found


def _field_differences(stored: Mapping[str, JSON], wanted: Mapping[str, JSON], names: Sequence[str]) -> str:
    lines: list[str] = []
    for name in names:
        if name in wanted:
            lines += differences(name, stored.get(name), wanted[name])
    return ", ".join(lines)


def _view_mismatches(stored: Sequence[CacheView], wanted: Sequence[CacheView]) -> list[str]:
    missing = [view for view in dict.fromkeys(wanted) if view not in stored]
    found = []
    if PLAIN in missing:
        found.append(f"missing view plain: the recipe shows images as they are, and this cache holds {_listed(stored)}")
    if MIRRORED in missing:
        found.append(
            "missing view mirrored: the recipe mirrors images (data.mirror_probability > 0) and this cache holds "
            f"{_listed(stored)}"
        )
    augmented = [view for view in missing if view.kind == "augmented"]
    if augmented:
        count = "" if len(augmented) == 1 else f" (and {len(augmented) - 1} more)"
        found.append(f"missing {augmented[0]}{count}: the recipe augments images, and {_why_not(stored, augmented[0])}")
    return found


def _why_not(stored: Sequence[CacheView], wanted: CacheView) -> str:
    """What the cache holds in place of an augmented view."""
    augmented = [view for view in stored if view.kind == "augmented"]
    same_policy = [view for view in augmented if view.policy == wanted.policy]
    if not augmented:
        return f"this cache holds {_listed(stored)}"
    if not same_policy:
        return f"this cache's were augmented in another way: {augmented[0]}"
    same_seed = sorted(view.view for view in same_policy if view.seed == wanted.seed and view.view is not None)
    if not same_seed:
        return f"this cache's have another seed: {same_policy[0].seed}"
    return f"this cache holds {len(same_seed)} views of that seed, {same_seed[0]} to {same_seed[-1]}"


def _listed(views: Sequence[CacheView]) -> str:
    kinds = list(dict.fromkeys(view.kind for view in views))
    return f"{' and '.join(kinds)} views only"
