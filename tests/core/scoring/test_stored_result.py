"""Results through JSON and back, and JSON that is refused with the place that is wrong."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from adadistill.core.scoring.result import BenchmarkResult, Curve, Histogram, Score
from adadistill.core.scoring.stored_result import StoredResultError, result_from_json, result_to_json

RESULT = BenchmarkResult(
    kind="verification",
    name="lfw",
    data_sha256="a" * 64,
    counts={"pairs": 4},
    scores=(
        Score(key="k", label="accuracy", value=0.75, deviation=0.1, interval=(0.5, 0.9), protocol="p"),
        Score(key="l", label="norm", value=21.5, is_share=False, protocol="q"),
        Score(key="m", label="TAR", value=None, protocol="r", note="too few"),
    ),
    headline="k",
    curves=(Curve(name="lfw", false_accept_rates=np.array([0, 0.5, 1]), true_accept_rates=np.array([0.5, 0.5, 1])),),
    histograms=(
        Histogram(name="lfw", edges=np.array([-1.0, 0, 1]), same=np.array([0, 2]), different=np.array([1, 1])),
    ),
    errors=({"pair": 1, "same": True, "cosine": 0.25, "images": [2, 3]},),
    seconds={"embed": 1.5},
)


def through_json() -> dict:
    return json.loads(json.dumps(result_to_json(RESULT), allow_nan=False))


def test_a_result_comes_back_as_it_was():
    back = result_from_json(through_json(), where="x.json")
    assert result_to_json(back) == result_to_json(RESULT)
    assert back.scores == RESULT.scores
    assert back["k"].interval == (0.5, 0.9)
    assert back.histograms[0].same.dtype == np.int64


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("kind",), "exam", "kind must be one of"),
        (("name",), 7, "name must be text"),
        (("headline",), "absent", "the headline must be the key of a score"),
        (("scores", 0, "value"), 1.5, r"scores\[0\]: a share must be in \[0, 1\], got 1.5"),
        (("scores", 0, "value"), "0.75", "must be a finite number"),
        (("scores", 1, "value"), 1e999, "must be a finite number"),
        (("scores", 1, "value"), 10**400, "must be a finite number"),
        (("scores", 0, "is_share"), 1, "is_share must be true or false"),
        (("scores", 0, "interval"), [0.5], "interval must be 2 values"),
        (("scores", 1, "key"), "k", "keys must differ"),
        (("scores", 2, "note"), ["x"], "note must be text"),
        (("counts", "pairs"), -1, "must be a count"),
        (("curves", 0, "false_accept_rates"), [0.0, 1.0], "as many true as false"),
        (("curves", 0, "false_accept_rates"), [0.5, 0.0, 1.0], "ascending"),
        (("curves", 0, "true_accept_rates"), [0.0, 2.0, 1.0], r"must be in \[0, 1\]"),
        (("histograms", 0, "edges"), [0.0, 0.0, 1.0], "rising edges"),
        (("histograms", 0, "same"), [1], "rising edges, and a count"),
        (("errors", 0, "pair"), {"x": 1}, "must be a number, text, or a list"),
        (("seconds",), [], "seconds must be an object"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(path, value, message):
    content = copy.deepcopy(through_json())
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(StoredResultError, match=rf"x\.json.*{message}"):
        result_from_json(content, where="x.json")


@pytest.mark.parametrize("content", [None, [], "x", {}, {"kind": "ijb"}])
def test_what_is_no_result_at_all_is_refused(content):
    with pytest.raises(StoredResultError):
        result_from_json(content, where="x.json")
