"""Recipes out of `config.py` files: those of AdaDistill, of the repository that this project comes from, and of
insightface's arcface_torch.

Such a file is Python that its training script runs. Here it is parsed and never run: `python_literals` reads what it
assigns, `adadistill_keys` and `insightface_keys` say what each key means, `account` keeps what became of every key, and
`importer` puts it together.
"""

from adadistill.core.config_import.importer import ImportedConfig, import_config
from adadistill.core.config_import.python_literals import ConfigImportError

__all__ = ["ConfigImportError", "ImportedConfig", "import_config"]
