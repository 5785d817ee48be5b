"""What can be wrong with a packed store, one type for each thing a caller may want to do about it."""

from __future__ import annotations


from adadistill.loaders.errors import WorkFailed

class PackError(ValueError):
    """A store cannot be used or written as asked; the text names the folder and says what to do."""


class PackMissingError(PackError):
    """There is no store at this place."""


class PackIncompleteError(PackError):
    """The packing of this store has not finished; starting it again continues it."""


class PackDamagedError(WorkFailed, PackError):
    """Bytes are not what packing wrote."""


class PackMismatchError(PackError):
    """A sound store, but of other records, or packed in another way."""


class PackFormatError(PackError):
    """The header is of another format or version, or does not describe a store."""


class PlanesUnfitError(PackError):
    """A record, or the image size, cannot be stored as 4:2:0 planes without loss."""


class TurboJpegMissingError(PackError):
    """Planes are asked for and libjpeg-turbo's TurboJPEG library is not there."""
