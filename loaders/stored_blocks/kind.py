"""The words and errors that differ between one kind of store and another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreKind:
    """A kind of store, for the messages and errors of the code that all kinds share."""

    name: str
    """For example `cache`: "no cache at ..."."""
    making: str
    """Writing one, for example `build`: "its build was stopped"."""
    command: str
    """Makes or continues one."""
    missing: type[ValueError]
    """There is none at this place."""
    incomplete: type[ValueError]
    """It was begun and not finished."""
    damaged: type[ValueError]
    """Bytes are not what was written."""
    unknown_format: type[ValueError]
    """Another format or version, or fields that describe none."""

    @property
    def remedy(self) -> str:
        """What to do about damage that no block can be blamed for."""
        return f"Restore it from a copy, or remove the folder and run again: {self.command}"
