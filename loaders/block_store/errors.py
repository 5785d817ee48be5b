"""What can be wrong with a store; one type for each thing that a caller does something about."""

from __future__ import annotations

from adadistill.loaders.errors import Refused, WorkFailed


class StoreError(Refused, ValueError):
    """A store cannot be used or written as asked; the text names the folder and says what to do."""


class StoreMissingError(StoreError):
    """There is no store at this place."""


class StoreIncompleteError(StoreError):
    """The writing of this store has not finished; starting it again continues it."""


class StoreWriteError(WorkFailed, StoreError):
    """A block could not be written; what was done before it stays."""


class StoreDamagedError(WorkFailed, StoreError):
    """Bytes are not what was written."""
