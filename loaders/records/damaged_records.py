"""What happens to a record that cannot be shown: it stops the run, or is skipped and named.

A skipped record keeps its place in its batch, so that every rank runs the same number of steps and no other record
moves: its image is mid-grey and its label -1, which every loss, centre and statistic leaves out.
"""

from __future__ import annotations

import logging
import threading
from typing import Literal

from adadistill.loaders.pixels import ImageDecodeError, PillowMissingError
from adadistill.loaders.records.recordio import RecordError

logger = logging.getLogger(__name__)

DAMAGE = (RecordError, ImageDecodeError)
"""What a bad record raises. Anything else (a disk that fails, say) stops the run whatever the recipe says."""

GREY_LEVEL = 128
"""All that is seen of a skipped record."""
SKIPPED_LABEL = -1


def may_be_skipped(error: Exception) -> bool:
    """Whether a record that failed may be left out: not for want of a package."""
    return isinstance(error, DAMAGE) and not isinstance(error, PillowMissingError)


class TooManyDamagedError(ValueError):
    """More records are damaged than the recipe tolerates; `record_ids` holds those met."""

    def __init__(self, record_ids: list[int], limit: int, newest: str) -> None:
        self.record_ids = record_ids
        shown = ", ".join(map(str, record_ids[:16])) + (", ..." if len(record_ids) > 16 else "")
        super().__init__(
            f"{len(record_ids)} damaged records were met, data.max_damaged allows {limit}: {shown}. The newest: "
            f"{newest}. Restore the file (adadistill data check lists every bad record), or raise data.max_damaged"
        )


class DamagedRecords:
    """The damaged records that a process has met. Any thread may note one.

    Args:
        policy: `stop` raises what the record raised, `skip` warns once and counts.
        limit: distinct records that `skip` tolerates.
    """

    def __init__(self, policy: Literal["stop", "skip"], limit: int) -> None:
        self._policy, self._limit = policy, limit
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> dict[int, str]:
        """What was wrong, by record id, in the order in which they were met."""
        with self._lock:
            return dict(self._reasons)

    def note(self, record_id: int, error: ValueError) -> None:
        """A record cannot be shown.

        Raises:
            RecordError, ImageDecodeError: the error itself, where damage stops the run, or it is only that a package
                is missing.
            TooManyDamagedError: more were met than are tolerated.
        """
        if self._policy == "stop" or not may_be_skipped(error):
            raise error
        with self._lock:
            is_new = record_id not in self._reasons
            if len(self._reasons) > self._limit:  # threads that find more, while the first one ends the run
                is_new = False
            elif is_new:
                self._reasons[record_id] = str(error)
            ids, reasons = list(self._reasons), list(self._reasons.values())
        if is_new:
            logger.warning("skipped: %s", error)
        if len(ids) > self._limit:
            raise TooManyDamagedError(ids, self._limit, reasons[-1])
