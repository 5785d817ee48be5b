"""A list of pairs drawn at random from a folder of identities, and a set made of a list compared with it.

For a benchmark of one's own faces. Same and different pairs alternate, so that every contiguous tenth, the folds of the
published accuracy, holds both. Drawn without repeats: a pair of images is in the list once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adadistill.loaders.atomic_file import write_whole
from adadistill.loaders.evaluation_sets.pair_lists import PairList, PairListError, read_pair_list
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError, read_verification_bin
from adadistill.loaders.folders import FolderWalk
from adadistill.loaders.pixels import MAX_IMAGE_BYTES, decode_image

MAX_DRAWN = 10_000_000
_EVEN_ATTEMPTS = 32


def draw_pairs(folder: Path, count: int, *, seed: int) -> PairList:
    """Draw `count` same and `count` different pairs, in turn.

    Identities are drawn evenly, and images within them, whatever their numbers: who has many images does not fill the
    list. The same folder and seed give the same list.

    Raises:
        FileNotFoundError: there is no folder.
        PairListError: it has too few images for so many different pairs, or names that a list cannot hold.
        ImageFolderError: a link leads out of it.
        ValueError: `count` is not in [1, 10,000,000].
    """
    if not 1 <= count <= MAX_DRAWN:
        raise ValueError(f"--draw must be in [1, {MAX_DRAWN}], got {count}")
    walk = FolderWalk(folder)
    images = [[image.name for image in walk.images_of(name).images] for name in walk.names]
    images = [names for names in images if names]
    _require_enough(folder, images, count)
    odd = next((name for names in images for name in names if not name.isprintable() or name != name.strip()), None)
    if odd is not None:
        raise PairListError(f"{folder}: a list cannot hold the name {odd!a}; rename it")
    draw = np.random.Generator(np.random.PCG64(seed))
    several = [names for names in images if len(names) > 1]
    weights = np.array([math.comb(len(names), 2) for names in several], np.float64)
    weights /= weights.sum()
    owners = np.repeat(np.arange(len(images)), [len(names) for names in images])
    every = [name for names in images for name in names]
    seen: set[tuple[str, str]] = set()
    paths: list[str] = []
    for _ in range(count):
        paths += _new_pair(
            seen,
            lambda: _two_of_one(several[int(draw.integers(len(several)))], draw),
            lambda: _two_of_one(several[int(draw.choice(len(several), p=weights))], draw),
        )
        paths += _new_pair(seen, lambda: _one_of_two(images, draw), lambda: _any_two(every, owners, draw))
    return PairList(tuple(paths), np.tile([True, False], count))


def write_pair_list(path: Path, pairs: PairList, *, overwrite: bool = False) -> None:
    """Write plain lines `path1<TAB>path2<TAB>same`. Raises FileExistsError where there is a list already."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists, and --draw would write it anew; --overwrite replaces it")
    lines = zip(pairs.paths[0::2], pairs.paths[1::2], pairs.same.tolist(), strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{first}\t{second}\t{int(same)}\n" for first, second, same in lines))


def check_verification_bin(path: Path, list_path: Path, folder: Path, *, aligned: bool) -> None:
    """Read a set back by the allow-list reader and compare it with the list and files that it was made of.

    Args:
        aligned: images were copied, so they must be the files' bytes.

    Raises:
        VerificationSetError, ImageDecodeError: the set is not what the list and files say.
    """
    pairs, found = read_pair_list(list_path, folder), read_verification_bin(path)
    if found.same.tolist() != pairs.same.tolist() or len(found.images) != len(pairs.paths):
        raise VerificationSetError(f"{path}: its pairs or flags are not those of {list_path}")
    for number, (body, name) in enumerate(zip(found.images, pairs.paths, strict=True)):
        decode_image(body, where=f"{path} image {number}")
        if aligned:
            with (folder / name).open("rb") as file:
                if file.read(MAX_IMAGE_BYTES + 1) != body:
                    raise VerificationSetError(f"{path}: image {number} is not the file {folder / name}")


def _require_enough(folder: Path, images: Sequence[Sequence[str]], count: int) -> None:
    """At most half of all pairs there are may be drawn: beyond that, drawing new ones takes ever longer."""
    total = sum(map(len, images))
    same = sum(math.comb(len(names), 2) for names in images)
    different = math.comb(total, 2) - same
    for kind, there_are in (("same", same), ("different", different)):
        if count > max(1, there_are // 2) or there_are == 0:
            raise PairListError(
                f"{folder}: has {there_are} {kind} pairs, and at most half of them are drawn; {count} were asked for"
            )


def _new_pair(
    seen: set[tuple[str, str]], by_identity: Callable[[], tuple[str, str]], of_all: Callable[[], tuple[str, str]]
) -> tuple[str, str]:
    """A pair that was not drawn yet.

    Where the small identities are used up, drawing identities evenly finds next to none; half of all pairs are new.
    """
    for attempt in itertools.count():
        pair = (by_identity if attempt < _EVEN_ATTEMPTS else of_all)()
        if pair not in seen and pair[::-1] not in seen:
            break
    seen.add(pair)
    return pair


def _two_of_one(names: Sequence[str], draw: np.random.Generator) -> tuple[str, str]:
    first, second = draw.choice(len(names), 2, replace=False).tolist()
    return names[first], names[second]


def _one_of_two(images: Sequence[Sequence[str]], draw: np.random.Generator) -> tuple[str, str]:
    first, second = (images[one] for one in draw.choice(len(images), 2, replace=False).tolist())
    return first[int(draw.integers(len(first)))], second[int(draw.integers(len(second)))]


def _any_two(names: Sequence[str], owners: npt.NDArray[np.int64], draw: np.random.Generator) -> tuple[str, str]:
    """Two images of different identities, every such pair as likely."""
    while True:
        first, second = draw.integers(len(names), size=2).tolist()
        if owners[first] != owners[second]:
            return names[first], names[second]
