"""A recipe in the making, and the account of every key of the config that it is made of."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import.python_literals import ConfigLiterals, Setting
from adadistill.core.config_import.step_rule import StepRule

Outcome = Literal["taken", "harmless", "not taken over"]
_SECRET: Final = ("key", "token", "secret", "passw", "credential")
_Kind = TypeVar("_Kind")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFate:
    """What became of one key."""

    key: str
    line: int
    value: str
    """As it is shown; not at all where its name is that of a secret."""
    outcome: Outcome
    becomes: tuple[str, ...]
    """Recipe keys that a taken one gave a value."""
    why: str


@dataclass(frozen=True, slots=True)
class DraftValue:
    """A value of the recipe, with where it is from, in words."""

    value: Any
    source: str


class RecipeDraft:
    """Values of a recipe by dotted key; each key of the config is spoken of once.

    Args:
        literals: the settings.
    """

    def __init__(self, literals: ConfigLiterals) -> None:
        self._settings = literals.settings
        self._unreadable = {key: one.line for one in literals.unread for key in one.keys}
        self.values: dict[str, DraftValue] = {}
        self.fates: dict[str, KeyFate] = {}
        self.obstacles: list[str] = []
        """Why no recipe can be made of it, a sentence each."""
        self._lost: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._settings

    def peek(self, key: str) -> Any:
        """The value of a key, None where it is not set; one that could not be read stands in a recipe's way."""
        if key in self._settings:
            return self._settings[key].value
        if key in self._unreadable:
            self.obstacles.append(f"{key}: what it is set to in line {self._unreadable.pop(key)} could not be read")
            self._lost.add(key)
        return None

    def number(self, key: str) -> float | int | None:
        """A number; None, and spoken of, where it is something else; None where it is not set."""
        value = self.peek(key)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        self._refuse_type(key, "a number")
        return None

    def whole(self, key: str) -> int | None:
        """A whole number of at least 0, as `number`."""
        value = self.peek(key)
        if value is None or (type(value) is int and value >= 0):
            return value
        if isinstance(value, float) and value >= 0 and value.is_integer():
            return int(value)
        self._refuse_type(key, "a whole number")
        return None

    def text(self, key: str) -> str | None:
        """A text that is not empty, as `number`."""
        value = self.peek(key)
        if value is None or (isinstance(value, str) and value):
            return value
        self._refuse_type(key, "a text")
        return None

    def flag(self, key: str) -> bool | None:
        """True or False, as `number`."""
        value = self.peek(key)
        if value is None or isinstance(value, bool):
            return value
        self._refuse_type(key, "True or False")
        return None

    def texts(self, key: str) -> list[str] | None:
        """A list of texts, as `number`."""
        value = self.peek(key)
        if value is None or (isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)):
            return None if value is None else list(value)
        self._refuse_type(key, "a list of texts")
        return None

    def _refuse_type(self, key: str, wanted: str) -> None:
        if key not in self.fates:
            self.obstacle(key, f"it is not {wanted}")

    def take(self, key: str, values: Mapping[str, Any], why: str = "") -> None:
        """The key gives these recipe keys their values."""
        for name, value in values.items():
            self.values[name] = DraftValue(value, f"{key}, line {self._settings[key].line}")
        self._fate(key, "taken", tuple(values), why)

    def copy(self, key: str, name: str, value: _Kind | None, why: str = "") -> None:
        """`take` of one value as it is, where it is set and sound."""
        if value is not None and key not in self.fates:
            self.take(key, {name: value}, why)

    def need(self, key: str, name: str, value: _Kind | None) -> None:
        """`copy` of a value that the training script cannot do without, nor can a recipe."""
        if value is None:
            self.obstacle(key, "its training script reads it, and a default of ours might be another")
        self.copy(key, name, value)

    def harmless(self, keys: Mapping[str, str]) -> None:
        """These keys need no counterpart; the reasons say why. Those not set are passed over."""
        for key, why in keys.items():
            if key in self._settings and key not in self.fates:
                self._fate(key, "harmless", (), why)

    def leave(self, key: str, why: str) -> None:
        """The key has no counterpart, and that changes what is trained or kept."""
        if key in self._settings and key not in self.fates:
            self._fate(key, "not taken over", (), why)

    def obstacle(self, key: str, why: str) -> None:
        """Without this key's meaning there is no recipe."""
        if key in self._lost or (key in self.fates and self.fates[key].outcome == "not taken over"):
            return  # said already
        self.leave(key, why)
        self.obstacles.append(f"{key}: {why}" if key in self._settings else f"{key} is not set; {why}")

    def fixed(self, name: str, value: Any, source: str) -> None:
        """A value that the config does not say: the script's own, or a base's."""
        self.values.setdefault(name, DraftValue(value, source))

    def finish(self) -> list[KeyFate]:
        """Every key's fate by line, those that nobody spoke of among them."""
        for key in self._settings:
            self.leave(key, "no key that is known here; see docs/recipe_reference.md for what there is")
        return sorted(self.fates.values(), key=lambda fate: (fate.line, fate.key))

    def _fate(self, key: str, outcome: Outcome, becomes: tuple[str, ...], why: str) -> None:
        setting = self._settings[key]
        self.fates[key] = KeyFate(
            key=show_text(key), line=setting.line, value=_shown(key, setting), outcome=outcome, becomes=becomes, why=why
        )


def _shown(key: str, setting: Setting) -> str:
    if any(word in key.lower() for word in _SECRET):
        return "(not shown)"
    value = setting.value
    if isinstance(value, StepRule):
        return f"rate times {value.gamma:g} at epochs {list(value.milestones)[:20]}"
    return show_text(reprlib.repr(value), 80)
