"""Which views of every record a cache must hold, so that training from it sees what a teacher in the loop would."""

from __future__ import annotations

from typing import Literal, TypeAlias

from adadistill.loaders.augment.augment_policy import Augmentation
from adadistill.loaders.block_store.teacher_cache import MIRRORED, PLAIN, CacheView

ViewChoice: TypeAlias = Literal["plain", "both"]
"""Views of images that are not augmented."""

VIEWS: dict[ViewChoice, tuple[CacheView, ...]] = {"plain": (PLAIN,), "both": (PLAIN, MIRRORED)}


def needed_views(augmentation: Augmentation) -> tuple[CacheView, ...]:
    """The views in the order of their numbers, or by mirror flag where images are only mirrored.

    Raises:
        ValueError: the augmentation draws anew every epoch: no number of stored views is enough.
    """
    if not augmentation.alters_pixels:
        return (PLAIN, MIRRORED) if augmentation.mirror_probability > 0.0 else (PLAIN,)
    if augmentation.views is None:
        raise ValueError(
            "augmented images that are drawn anew every epoch cannot be cached; set augment.views to the number of "
            "fixed views that training shall cycle through"
        )
    policy = augmentation.policy_text()
    return tuple(
        CacheView(kind="augmented", seed=augmentation.seed, view=view, policy=policy)
        for view in range(augmentation.views)
    )


def chosen_views(augmentation: Augmentation, choice: ViewChoice | None) -> tuple[CacheView, ...]:
    """The views that a new cache gets: those chosen, else those that the augmentation needs, else both."""
    if choice is not None:
        return VIEWS[choice]
    return needed_views(augmentation) if augmentation.alters_pixels else VIEWS["both"]
