"""What IJB says of its images: which template and medium each belongs to, which templates are compared, who is who.

Files name templates by number. Here templates are counted 0 ... T - 1 in the order of their numbers, and pairs,
galleries and probes hold those places (int32: the 15.7 million pairs of IJB-C take 140 MB with their flags).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adadistill.loaders.evaluation_sets.image_sets import ImageSetError

Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateSubjects:
    """Templates with the subjects that they show: one gallery, or the probes."""

    name: str
    """`G1`, `S2`, `probe_mixed` ..."""
    templates: Places
    """(n,) places, each once, ascending."""
    subjects: Ints
    """(n,) numbers of subjects."""

    def __len__(self) -> int:
        return len(self.templates)


@dataclass(frozen=True, kw_only=True, slots=True)
class IjbAnnotations:
    """Everything but the images."""

    name: str
    """As in the keys of scores: `IJBC`, `IJBC_gt_aligned`."""
    template_ids: Ints
    """(T,) numbers of the templates, ascending."""
    templates: Places
    """(N,) place of each image's template."""
    medias: Ints
    """(N,) number of each image's medium (a still, or the frames of one video), within its template."""
    detector_scores: npt.NDArray[np.float64]
    """(N,) how sure the detector was of the face; `detector_problem` says whether they serve."""
    first: Places
    """(P,) place of each pair's first template."""
    second: Places
    """(P,)."""
    same: npt.NDArray[np.bool_]
    """(P,)."""
    galleries: tuple[TemplateSubjects, ...] = ()
    """Of the 1:N protocol; empty where the set comes without it."""
    probes: TemplateSubjects | None = None

    @property
    def detector_problem(self) -> str | None:
        """Why detector scores cannot weigh images, so that modes which use them are withheld; None where they can."""
        scores = self.detector_scores
        bad = np.flatnonzero(scores < 0.0)
        if bad.size:
            template = self.template_ids[self.templates[bad[0]]]
            return f"{bad.size} detector scores are negative, the first, {scores[bad[0]]:g}, in template {template}"
        empty = np.flatnonzero(np.bincount(self.templates, scores, len(self.template_ids)) == 0.0)
        if not empty.size:
            return None
        return f"{empty.size} templates have detector scores of 0 alone, the first is {self.template_ids[empty[0]]}"

    @property
    def counts(self) -> dict[str, int]:
        """Sizes by name."""
        same = int(self.same.sum())
        found = {
            "images": len(self.templates),
            "templates": len(self.template_ids),
            "pairs": len(self.same),
            "same_pairs": same,
        }
        if self.probes is not None:
            found["probes"] = len(self.probes)
            found |= {f"gallery_{gallery.name}": len(gallery) for gallery in self.galleries}
        return found

    def in_order(self, order: Ints) -> IjbAnnotations:
        """The same set with its images in another order: new image i is old image order[i]."""
        return replace(
            self,
            templates=self.templates[order],
            medias=self.medias[order],
            detector_scores=self.detector_scores[order],
        )


def make_annotations(
    *,
    name: str,
    where: object,
    templates: npt.NDArray[np.integer],
    medias: npt.NDArray[np.integer],
    detector_scores: npt.NDArray[np.floating],
    first: npt.NDArray[np.integer],
    second: npt.NDArray[np.integer],
    same: npt.NDArray[np.integer] | npt.NDArray[np.bool_],
) -> IjbAnnotations:
    """Check what files say in the numbers that they use, and count templates by place.

    Args:
        where: names the set in errors.
        templates, medias, detector_scores: (N,) of each image.
        first, second, same: (P,) of each pair: numbers of templates, and a flag of 0 or 1.

    Raises:
        ImageSetError: counts disagree, a score is not finite, a flag is neither 0 nor 1, a pair names a template that
            has no images, or there are not both kinds of pairs.
    """
    if templates.ndim != 1 or not len(templates) == len(medias) == len(detector_scores):
        raise ImageSetError(
            f"{where}: {len(templates)} templates, {len(medias)} media and {len(detector_scores)} detector scores; "
            "there is one of each for every image"
        )
    if first.ndim != 1 or not len(first) == len(second) == len(same):
        raise ImageSetError(f"{where}: {len(first)} first and {len(second)} second templates, and {len(same)} labels")
    if len(templates) == 0 or len(same) == 0:
        raise ImageSetError(f"{where}: holds {len(templates)} images and {len(same)} pairs")
    unsure = np.flatnonzero(~np.isfinite(detector_scores))
    if unsure.size:
        raise ImageSetError(f"{where}: the detector score of image {unsure[0]} (from 0) is not finite")
    strange = np.flatnonzero((same != 0) & (same != 1))
    if strange.size:
        raise ImageSetError(f"{where}: the label of pair {strange[0]} (from 0) is {same[strange[0]]}, neither 0 nor 1")
    flags = same.astype(np.bool_)
    if flags.all() or not flags.any():
        raise ImageSetError(f"{where}: all {len(flags)} pairs have the label {int(flags[0])}; rates need both kinds")
    template_ids, places = np.unique(templates.astype(np.int64), return_inverse=True)
    return IjbAnnotations(
        name=name,
        template_ids=template_ids,
        templates=places.astype(np.int32),
        medias=medias.astype(np.int64),
        detector_scores=detector_scores.astype(np.float64),
        first=places_of(first, template_ids, f"{where}, first templates of the pairs"),
        second=places_of(second, template_ids, f"{where}, second templates of the pairs"),
        same=flags,
    )


def places_of(numbers: npt.NDArray[np.integer], template_ids: Ints, where: str) -> Places:
    """Places of templates by their numbers. Raises ImageSetError where a template has no images."""
    places = np.searchsorted(template_ids, numbers)
    places[places == len(template_ids)] = 0
    unknown = np.flatnonzero(template_ids[places] != numbers)
    if unknown.size:
        raise ImageSetError(
            f"{where}: entry {unknown[0]} (from 0) names template {numbers[unknown[0]]}, which has no images; "
            f"{unknown.size} entries do"
        )
    return places.astype(np.int32)
