"""What importing a config can end with."""


class ConfigImportError(ValueError):
    """No recipe can be made of a config file; the text says why, and what to do."""
