"""A recipe in the making, and the account of every key of the config that it is made of."""

from __future__ import annotations

import posixpath
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from adadistill.core.config.yaml_tree import show_text
from adadistill.core.config_import.python_literals import ConfigLiterals, Setting
from adadistill.core.config_import.step_rule import ConfigImportError, StepRule

Outcome = Literal["taken", "harmless", "not taken over", "dropped"]
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
        drop: keys to leave out, as if the config did not set them.

    Raises:
        ConfigImportError: one of `drop` is set nowhere.
    """

    def __init__(self, literals: ConfigLiterals, drop: Collection[str] = ()) -> None:
        self._unreadable = {key: one for one in literals.unread for key in one.keys}
        self._settings = dict(literals.settings)
        self.values: dict[str, DraftValue] = {}
        self.fates: dict[str, KeyFate] = {}
        self._spoken_of: set[str] = set()
        self.obstacles: list[str] = []
        """Why no recipe can be made of it, a sentence each."""
        for key in drop:
            if self._unreadable.pop(key, None) is None and key not in self._settings:
                raise ConfigImportError(f"--drop {show_text(key)}: the config does not set it")
            if key in self._settings:
                self._fate(key, "dropped", (), "left out, as --drop says")
                del self._settings[key]
        self._assigned = {*self._settings, *self._unreadable}
        for one in literals.unread:
            if one.anything:
                self.obstacles.append(f"line {one.line}: {show_text(one.reason, 200)}; it may set anything")

    def __contains__(self, key: str) -> bool:
        return key in self._assigned  # to a value that can be read or not

    def peek(self, key: str) -> Any:
        """The value of a key, None where it is not set; one that could not be read stands in a recipe's way."""
        if key in self._unreadable:
            one = self._unreadable.pop(key)
            self.obstacles.append(f"{key}: what it is set to in line {one.line} could not be read: {one.reason}")
            self._spoken_of.add(key)
        return self._settings[key].value if key in self._settings else None

    def number(self, key: str) -> float | int | None:
        """A number; None, and spoken of, where it is something else; None where it is not set. So are the others."""
        return self._typed(key, "a number", lambda value: type(value) in (int, float))

    def whole(self, key: str) -> int | None:
        """A whole number of at least 0."""
        found = self._typed(
            key, "a whole number", lambda value: type(value) in (int, float) and value >= 0 == value % 1
        )
        return None if found is None else int(found)

    def text(self, key: str) -> str | None:
        """A text that is not empty."""
        return self._typed(key, "a text", lambda value: isinstance(value, str) and value != "")

    def flag(self, key: str) -> bool | None:
        """True or False."""
        return self._typed(key, "True or False", lambda value: isinstance(value, bool))

    def items(self, key: str, kind: type[_Kind], words: str) -> list[_Kind] | None:
        """A list of texts, or of whole numbers."""
        found = self._typed(
            key, f"a list of {words}", lambda value: isinstance(value, list | tuple) and {kind} >= set(map(type, value))
        )
        return None if found is None else list(found)

    def _typed(self, key: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
        value = self.peek(key)
        if value is None or fits(value):
            return value
        if key not in self.fates:
            self.obstacle(key, f"it is not {wanted}")
        return None

    def epochs(self) -> int:
        """The length of the training, which every script needs; 0 and an obstacle where it is not said."""
        epochs = self.whole("num_epoch") or 0
        if epochs:
            self.take("num_epoch", {"optim.epochs": epochs})
        else:
            self.obstacle("num_epoch", "the length of the training must be said")
        return epochs

    def sets(self, folder: str | None) -> None:
        """Verification sets, which lie in a folder."""
        names = self.items("val_targets", str, "texts")
        if names is not None and folder is not None:
            beside = posixpath.normpath(folder)
            self.take("val_targets", {"evaluation.sets": [posixpath.join(beside, f"{name}.bin") for name in names]})

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
        """These keys need no counterpart, nor a value that can be read; the reasons say why."""
        for key, why in keys.items():
            self._unreadable.pop(key, None)
            if key in self._settings and key not in self.fates:
                self._fate(key, "harmless", (), why)

    def leave(self, key: str, why: str) -> None:
        """The key has no counterpart, and what is trained does not depend on it."""
        if key in self._settings and key not in self.fates:
            self._fate(key, "not taken over", (), why)

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

    def fixed(self, name: str, value: Any, source: str) -> None:
        """A value that the config does not say: the script's own, or a base's."""
        self.values.setdefault(name, DraftValue(value, source))

    def finish(self) -> list[KeyFate]:
        """Every key's fate by line. Those that nobody spoke of stand in a recipe's way: they may decide anything."""
        for key in self._settings:
            self.refuse(key, "no key that is known here; see docs/recipe_reference.md for what there is")
        for key, one in self._unreadable.items():
            why = f"no key that is known here, set in line {one.line}; to train without it"
            self.obstacles.append(f"{key}: {why}: --drop {show_text(key)}")
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
