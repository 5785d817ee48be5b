"""What can be wrong when records become a folder, or a folder records."""

from __future__ import annotations

from adadistill.loaders.errors import WorkFailed
from adadistill.loaders.folders import ImageFolderError


class RecordFolderError(WorkFailed, ImageFolderError):
    """A folder, manifest or list cannot be converted as it is. The message names it and says what to do."""


class FolderChangedError(RecordFolderError):
    """A folder does not hold what its manifest says: images were added, removed or changed."""
