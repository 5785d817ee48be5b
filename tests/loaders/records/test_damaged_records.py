"""The book of damaged records: counted once, the same verdict for every thread."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from adadistill.loaders.pixels import ImageDecodeError, PillowMissingError
from adadistill.loaders.records.checked_records import ImageSizeError
from adadistill.loaders.records.damaged_records import DamagedRecords, TooManyDamagedError


def test_a_record_counts_once_and_is_warned_of_once(caplog: pytest.LogCaptureFixture):
    damaged = DamagedRecords("skip", 2)
    with caplog.at_level(logging.WARNING):
        for record_id in (5, 5, 7, 5):
            damaged.note(record_id, ImageDecodeError(f"record {record_id} is cut"))
    assert len(damaged) == 2
    assert damaged.reasons == {5: "record 5 is cut", 7: "record 7 is cut"}
    assert [record.message for record in caplog.records] == ["skipped: record 5 is cut", "skipped: record 7 is cut"]


def test_one_too_many_is_told_in_the_same_words_to_every_thread():
    damaged = DamagedRecords("skip", 3)

    with ThreadPoolExecutor(8) as pool:
        notes = [pool.submit(damaged.note, place, ImageDecodeError(f"record {place}")) for place in range(64)]
    errors = [error for error in (note.exception() for note in notes) if error is not None]
    assert len(errors) == 61
    assert all(isinstance(error, TooManyDamagedError) and len(error.record_ids) == 4 for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert str(errors[0]).startswith("4 damaged records were met, data.max_damaged allows 3: ")


def test_what_stops_a_run_is_the_record_s_own_error():
    with pytest.raises(ImageDecodeError, match="cut"):
        DamagedRecords("stop", 100).note(1, ImageDecodeError("cut"))
    with pytest.raises(PillowMissingError):
        DamagedRecords("skip", 100).note(1, PillowMissingError("a PNG"))
    skipping = DamagedRecords("skip", 100)
    skipping.note(1, ImageSizeError("here", 1, (1, 1), (2, 2)))
    assert len(skipping) == 1
