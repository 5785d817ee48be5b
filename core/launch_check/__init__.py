"""What a training launch would do, found out without doing any of it: `adadistill train --dry-run`.

`check` puts it together; each part is a file: the records, the rate of every step that changes it, the files that
would be read, memory, what would be written and whether the disk has room, and the checkpoint to go on from. Nothing is
written, locked, downloaded or put on a device, and no process group is made. What would stop the run is collected, all
of it, rather than raised.
"""
