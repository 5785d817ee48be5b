"""What can be wrong with a cache of teacher embeddings, one type for each thing a caller may want to do about it."""

from __future__ import annotations


from adadistill.loaders.errors import WorkFailed

class CacheError(ValueError):
    """A cache cannot be used or written as asked; the text names the folder and says what to do."""


class CacheMissingError(CacheError):
    """There is no cache at this place."""


class CacheIncompleteError(CacheError):
    """The build of this cache has not finished; starting it again continues it."""


class CacheDamagedError(WorkFailed, CacheError):
    """Bytes are not what the build wrote."""


class CacheMismatchError(CacheError):
    """A sound cache, but not of this teacher, these records or these views."""


class CacheFormatError(CacheError):
    """The header is of another format or version, or does not describe a cache."""
