"""Golden cases of the heads as prepared steps: the head's configuration follows from the file name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from head_step import Prepared, prepare_step
from torch import Tensor

from adadistill.core.method.class_centres import AdaptiveCentres, CentresConfig, TrainableCentres
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig
from adadistill.core.method.norm_statistics import NormStatistics

MARGINS = {"arcface": 0.45, "cosface": 0.35, "adaface": 0.4}
TRAINED = {
    "trainable_adaface": HeadConfig(kind="adaface", margin=0.4),
    "trainable_adaface_repo_arcface": HeadConfig(kind="arcface", margin=0.5),
    "trainable_adaface_repo_cosface": HeadConfig(kind="cosface", margin=0.4),
    "trainable_insightface_arcface_straight_through": HeadConfig(
        kind="arcface", margin=0.5, margin_grad="straight_through"
    ),
    "trainable_insightface_cosface": HeadConfig(kind="cosface", margin=0.4),
}
# adadistill_<head>[_unweighted][_geometry[_static | _k<scale>_w<weight>_warm<epochs>]][_warm]
NAME = re.compile(
    r"adadistill_(?P<head>arcface|cosface|adaface)(?P<unweighted>_unweighted)?"
    r"(?P<geometry>_geometry(?:(?P<static>_static)|_k(?P<scale>\d+)_w(?P<weight>\d+)_warm(?P<epochs>\d+))?)?(?:_warm)?"
)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def number(digits: str) -> float:
    """A file name's number: a leading zero stands for `0.`, so `02` is 0.2 and `3` is 3."""
    return float(f"0.{digits[1:]}" if digits.startswith("0") and len(digits) > 1 else digits)


def geometry_of(name: re.Match[str]) -> GeometryMarginConfig:
    if name["static"]:
        return GeometryMarginConfig(mode="static", weight=0.2, scale=1.0, mask=0.8, baseline=0.25, warmup_epochs=1.0)
    if name["scale"]:
        return GeometryMarginConfig(
            mode="adaptive",
            weight=number(name["weight"]),
            scale=number(name["scale"]),
            warmup_epochs=number(name["epochs"]),
        )
    mode = "adaptive" if name["geometry"] else "off"
    return GeometryMarginConfig(mode=mode, weight=1.0, scale=3.0, warmup_epochs=1.0)


def prepared_steps(path: Path) -> Iterator[tuple[Prepared, dict[str, Tensor]]]:
    """Each step of a golden file, and what the file holds of it; committed before the next."""
    case = np.load(path, allow_pickle=False)
    if path.stem in TRAINED:
        step = prepare_step(
            TRAINED[path.stem],
            TrainableCentres(CentresConfig(kind="trainable"), tensor(case["centres"])),
            NormStatistics.start(dtype=torch.float64),
            tensor(case["student"]),
            tensor(case["labels"]),
        )
        yield step, {key: tensor(case[key]) for key in case}
        return
    name = NAME.fullmatch(path.stem)
    assert name, f"no configuration is known for {path.name}"
    head = HeadConfig(kind=name["head"], margin=MARGINS[name["head"]])
    momentum = "unweighted" if name["unweighted"] else "weighted"
    centres = AdaptiveCentres(CentresConfig(momentum=momentum), tensor(case["centres_before"]))
    statistics = NormStatistics(tensor(case["norm_mean_before"]), tensor(case["norm_std_before"]))
    geometry = geometry_of(name)
    before = ("centres_before", "norm_mean_before", "norm_std_before")
    for i in range(len(case["loss"])):
        step = prepare_step(
            head,
            centres,
            statistics,
            tensor(case["student"][i]),
            tensor(case["labels"][i]),
            teacher=tensor(case["teacher"][i]),
            geometry=geometry,
            epoch=float(case["epoch"][i]),
        )
        assert step.centre_step is not None
        yield step, {key: tensor(case[key][i]) for key in case if key not in before}
        if head.kind == "adaface":
            statistics = step.statistics
        step.centre_step.commit_(torch.tensor(True))
