"""Says what a file or folder is, from its bytes rather than its name, for people who were handed one.

Everything is read as if a stranger had made it: by the strict readers of this package, in bounded memory, and what
cannot be read is a named problem of the finding rather than an end of the program.
"""

from adadistill.loaders.dataset_tools.inspection.finding import Finding
from adadistill.loaders.dataset_tools.inspection.recognise import inspect_path

__all__ = ["Finding", "inspect_path"]
