"""The kernel's lock on an open file: given back by itself when its process dies, and seen by all of one machine."""

from __future__ import annotations

import errno
import fcntl
from typing import BinaryIO

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF)
"""What file systems without locks answer; EBADF is NFS's word on a folder, or on what is not open for writing."""


def try_lock(file: int | BinaryIO, *, shared: bool = False) -> bool | None:
    """Lock an open file without waiting: True where it is ours now, False where another has it, None without locks."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True
