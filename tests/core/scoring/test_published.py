"""Rows that others published: each once, under one protocol, and never across pooling modes."""

from __future__ import annotations

from adadistill.core.scoring.published import DETECTOR, NORM_AND_DETECTOR, PUBLISHED, comparable


def test_every_row_names_its_protocol_and_source_and_holds_percent():
    for row in PUBLISHED:
        assert row.protocol
        assert row.source
        assert row.percent
        assert all(1.0 < value <= 100.0 for value in row.percent.values())
    assert len({(row.network, row.trained_on, row.protocol, tuple(row.percent.items())) for row in PUBLISHED}) == len(
        PUBLISHED
    )


def test_one_network_under_two_poolings_is_two_rows_that_are_never_given_together():
    name = "adaptive geometry margin"
    kept, headline = (
        next(row for row in comparable(mode) if name in row.network) for mode in (NORM_AND_DETECTOR, DETECTOR)
    )
    assert (kept.percent["IJBC 1e-4"], headline.percent["IJBC 1e-4"]) == (93.98, 93.27)
    for mode in (NORM_AND_DETECTOR, DETECTOR):
        assert {row.protocol for row in comparable(mode)} == {mode}
