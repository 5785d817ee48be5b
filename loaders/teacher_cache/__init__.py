"""Teacher embeddings on disk: computed once, read by record id in every epoch.

A cache is a folder of three files: `header.json` says what the rows are, of whom, and how they were made;
`embeddings.bin` holds the rows, float16 (N, V, D); `blocks.bin` which blocks are done, with their checksums. The files
are the same bytes however often the build was killed and on however many ranks it ran. docs/cache_format.md describes
them for other readers and writers.
"""

from adadistill.loaders.teacher_cache.errors import (
    CacheDamagedError,
    CacheError,
    CacheFormatError,
    CacheIncompleteError,
    CacheMismatchError,
    CacheMissingError,
)
from adadistill.loaders.teacher_cache.header import MIRRORED, PLAIN, CacheHeader, CacheView
from adadistill.loaders.teacher_cache.reader import TeacherCache
from adadistill.loaders.teacher_cache.writer import CacheWriter, create_or_resume

__all__ = [
    "MIRRORED",
    "PLAIN",
    "CacheDamagedError",
    "CacheError",
    "CacheFormatError",
    "CacheHeader",
    "CacheIncompleteError",
    "CacheMismatchError",
    "CacheMissingError",
    "CacheView",
    "CacheWriter",
    "TeacherCache",
    "create_or_resume",
]
