"""YAML to frozen dataclasses, strictly; knows nothing of what is configured."""
