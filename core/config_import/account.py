"""A recipe in the making, and the account of every key of the config that it is made of."""

from __future__ import annotations

import posixpath
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import.python_literals import ConfigImportError, ConfigLiterals, Setting, StepRule

Outcome = Literal["taken", "harmless", "not taken over", "dropped"]
_SECRET: Final = ("key", "token", "secret", "passw", "credential")


class Kind(str, Enum):
    """What a value must be."""

    NUMBER = "a number"
    WHOLE = "a whole number"
    COUNT = "a number of times"
    TEXT = "a text"
    FLAG = "True or False"
    TEXTS = "a list of texts"
    WHOLES = "a list of whole numbers"


_FITS: Final[dict[Kind, Callable[[Any], bool]]] = {
    Kind.NUMBER: lambda value: type(value) in (int, float),
    Kind.WHOLE: lambda value: type(value) in (int, float) and value >= 0 == value % 1,
    Kind.COUNT: lambda value: type(value) in (int, float) and value >= 0 == value % 1,
    Kind.TEXT: lambda value: isinstance(value, str) and value != "",
    Kind.FLAG: lambda value: isinstance(value, bool),
    Kind.TEXTS: lambda value: isinstance(value, list | tuple) and {str} >= set(map(type, value)),
    Kind.WHOLES: lambda value: isinstance(value, list | tuple) and {int} >= set(map(type, value)),
}


class Value(NamedTuple):
    """A value of the recipe, with where it is from, in words."""

    value: Any
    source: str


NEEDED: Final = Value(None, "its training script reads it, and a default of ours might be another")


class Copied(NamedTuple):
    """A key whose value is that of a recipe key."""

    key: str
    name: str
    kind: Kind
    default: Value | None = None
    """What stands where the config does not set the key: NEEDED refuses, None leaves the recipe key out."""


class Only(NamedTuple):
    """A key that can be at one value alone."""

    value: Any
    harmless: str
    """Why the key means nothing there."""
    refused: str
    """Why no recipe can be made where it is at another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFate:
    """What became of one key."""

    key: str
    line: int
    value: str
    """The value as it is shown; not at all where the name is that of a secret."""
    outcome: Outcome
    becomes: tuple[str, ...]
    """Recipe keys that a taken one gave a value."""
    why: str


class Account:
    """Values of a recipe by dotted key; each key of the config is spoken of once.

    Args:
        literals: the settings.
        drop: keys to leave out, as if the config did not set them.

    Raises:
        ConfigImportError: one of `drop` is set nowhere.
    """

    def __init__(self, literals: ConfigLiterals, drop: Collection[str] = ()) -> None:
        self._settings = dict(literals.settings)
        self.values: dict[str, Value] = {}
        self.fates: dict[str, KeyFate] = {}
        self._spoken_of: set[str] = set()
        self.obstacles = [
            f"line {one.line}: {show_text(one.reason, 200)}; it may set anything"
            for one in literals.statements
            if one.anything
        ]
        """Why no recipe can be made of the config, a sentence each."""
        for key in drop:
            if key not in self._settings:
                raise ConfigImportError(f"--drop {show_text(key)}: the config does not set it")
            self._end(key, "dropped", "left out, as --drop says")
            del self._settings[key]

    def __contains__(self, key: str) -> bool:
        return key in self._settings  # to a value that can be read or not

    def get(self, key: str, kind: Kind | None = None) -> Any:
        """The value of a key, None where it is not set; one of another kind, or not read, stands in a recipe's way."""
        setting = self._settings.get(key)
        if setting is None or key in self._spoken_of:
            return None
        if setting.unread:
            why = f"what it is set to in line {setting.line} could not be read: {setting.unread}"
            self._spoken_of.add(key)
            self.obstacles.append(f"{key}: {why}")
        elif setting.value is not None and kind is not None and not _FITS[kind](setting.value):
            self.obstacle(key, f"it is not {kind.value}")
            return None
        return int(setting.value) if kind in (Kind.WHOLE, Kind.COUNT) and setting.value is not None else setting.value

    def take(self, key: str, values: Mapping[str, Any], why: str = "") -> None:
        """The key gives these recipe keys their values."""
        for name, value in values.items():
            self.values[name] = Value(value, f"{key}, line {self._settings[key].line}")
        self._end(key, "taken", why, tuple(values))

    def copy(self, rows: Iterable[Copied]) -> None:
        """Take the values of some keys as they are, and the defaults of those that are not set."""
        for row in rows:
            value = self.get(row.key, row.kind)
            if value is not None and row.key not in self.fates and (value or row.kind != Kind.COUNT):
                self.take(row.key, {row.name: value})
            elif row.default is NEEDED:
                self.obstacle(row.key, NEEDED.source)
            elif row.default is not None:
                self.fixed({row.name: row.default.value}, row.default.source)

    def only(self, rows: Mapping[str, Only]) -> None:
        """Refuse keys that are at another than their one value."""
        for key, row in rows.items():
            if self.get(key) not in (None, row.value):
                self.refuse(key, row.refused)
            self.harmless({key: row.harmless})

    def sets(self, folder: str | None) -> None:
        """Take the verification sets, which lie in a folder."""
        names = self.get("val_targets", Kind.TEXTS)
        if names is not None and folder is not None:
            beside = posixpath.normpath(folder)
            self.take("val_targets", {"evaluation.sets": [posixpath.join(beside, f"{name}.bin") for name in names]})

    def harmless(self, keys: Mapping[str, str]) -> None:
        """These keys need no counterpart, nor a value that can be read; the reasons say why."""
        for key, why in keys.items():
            if key in self._settings and key not in self.fates:
                self._end(key, "harmless", why)
                self._spoken_of.add(key)

    def leave(self, key: str, why: str) -> None:
        """The key has no counterpart, and what is trained does not depend on it."""
        if key in self._settings and key not in self.fates:
            self._end(key, "not taken over", why)

    def obstacle(self, key: str, why: str) -> None:
        """Without this key's meaning there is no recipe."""
        if key in self._spoken_of:
            return
        self._spoken_of.add(key)
        if key not in self._settings:
            self.obstacles.append(f"{key} is not set; {why}")
            return
        self.leave(key, why)
        self.obstacles.append(f"{key}: {why} (line {self._settings[key].line})")

    def refuse(self, key: str, why: str) -> None:
        """The key is set, has no counterpart, and decides what is trained; whoever can do without it says so."""
        if key in self._settings and key not in self.fates:
            self.obstacle(key, f"{why}; to train without it: --drop {show_text(key)}")

    def fixed(self, values: Mapping[str, Any], source: str) -> None:
        """Values that the config does not say: the script's own, or a base's."""
        for name, value in values.items():
            self.values.setdefault(name, Value(value, source))

    def finish(self) -> list[KeyFate]:
        """Every key's fate by line. Those that nobody spoke of stand in a recipe's way: they may decide anything."""
        for key in self._settings:
            self.refuse(key, "no key that is known here; see docs/recipe_reference.md for what there is")
        return sorted(self.fates.values(), key=lambda fate: (fate.line, fate.key))

    def _end(self, key: str, outcome: Outcome, why: str, becomes: tuple[str, ...] = ()) -> None:
        setting = self._settings[key]
        if not setting.unread:  # else it is listed with the statements that could not be read
            shown = _shown(key, setting)
            self.fates[key] = KeyFate(
                key=show_text(key), line=setting.line, value=shown, outcome=outcome, becomes=becomes, why=why
            )


def _shown(key: str, setting: Setting) -> str:
    if any(word in key.lower() for word in _SECRET):
        return "(not shown)"
    if isinstance(setting.value, StepRule):
        return f"rate times {setting.value.gamma:g} at epochs {list(setting.value.milestones)[:20]}"
    return show_text(reprlib.repr(setting.value), 80)
