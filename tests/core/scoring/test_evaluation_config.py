"""Every kind of benchmark is known by one field; sections out of range and names that clash are refused."""

from __future__ import annotations

import pytest
from scored_networks import write_set

from adadistill.core.distributed import Ranks
from adadistill.core.scoring.benchmark import ScoringTerms
from adadistill.core.scoring.evaluation_config import KINDS, KINDS_BY_KEY, EvaluationConfig, kind_of, open_benchmarks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every_epochs": 0}, "every_epochs must be positive, got 0"),
        ({"batch_size": -1}, "batch_size must be positive, got -1"),
        ({"sets": ("a/lfw.bin", "b/lfw.bin")}, "different file names, got 'lfw' twice"),
    ],
)
def test_configuration_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**fields)


def test_kinds_are_known_by_key_and_by_what_their_scores_begin_with():
    assert {key: kind.name for key, kind in KINDS_BY_KEY.items()} == {
        "sets": "verification", "ijb": "ijb", "tinyface": "tinyface",
    }  # fmt: skip
    assert EvaluationConfig(ijb=("a",)).paths == {"sets": (), "ijb": ("a",), "tinyface": ()}
    assert kind_of("ijb.IJBC.rank-1") is KINDS["ijb"]
    assert kind_of("somebody's.key") is None


def test_two_benchmarks_of_one_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [write_set(tmp_path / "lfw.bin", 3), write_set(tmp_path / "other" / "lfw.bin", 3)]
    with pytest.raises(ValueError, match="named 'lfw'"):
        open_benchmarks({"sets": paths}, ScoringTerms(image_size=8, ranks=Ranks()))
