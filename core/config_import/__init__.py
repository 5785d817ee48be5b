"""Recipes out of `config.py` files: those of AdaDistill, of the repository that this project comes from, and of
insightface's arcface_torch.

Such a file is Python that its training script runs. Here it is parsed and never run: `python_literals` reads its
literal assignments, `step_rule` the rate schedule that AdaDistill writes as a function, `adadistill_keys` and
`insightface_keys` say what each key means, `recipe_draft` keeps account of what became of every key, and `importer`
puts it together.
"""

from adadistill.core.config_import.importer import ImportedConfig, import_config
from adadistill.core.config_import.step_rule import ConfigImportError

__all__ = ["ConfigImportError", "ImportedConfig", "import_config"]
