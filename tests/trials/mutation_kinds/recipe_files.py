"""Trials of recipes and of overrides on the command line: one error lists what is wrong, or a recipe is as it reads."""

from __future__ import annotations

from pathlib import Path

from adadistill.core.config.strict_yaml import RecipeError
from adadistill.core.config.text import leaf_keys
from adadistill.core.recipe import Recipe, dump_recipe, load_recipe, parse_recipe, recipe_hash, shipped_recipes
from trials.mutation_kinds.damage import Rng, damage_text
from trials.mutation_kinds.trial import READ, BrokenPromiseError, Ending, judge

_VALUES = (
    *("null", "~", "''", "true", "no", "010", "0x10", "0o17", "1:30", "1_000", "1e-4", "1e999", "-1", "-0.0", "0"),
    *(".inf", "-.Inf", ".nan", "1e308", "9" * 19, "9" * 400, "9" * 1000, "9" * 5000, "-" + "9" * 900, "1" + "0" * 308),
    *(
        "[]",
        "{}",
        "[[]]",
        "{a: 1}",
        "[1, 2",
        "]",
        "'",
        '"\\x41"',
        '"\\U0011ffff"',
        '"\\ud800"',
        "!!python/object:os.system x",
    ),
    *("&a b", "*a", "<<: x", "|", ">", "%YAML 9.9", "---", "...", "# x", "@x", "`x", "../../etc/passwd", "/dev/zero"),
    *(
        "x" * 5000,
        "\u202e",
        "\u0430",
        "١٢",
        "１２",
        "\U0001f600",
        "a\u0300",
        "x\\0",
        "NaN",
        "inf",
        "yes",
        "[0.1, -1, .nan]",
    ),
)


def recipe_attacks() -> dict[str, bytes]:
    """Name -> YAML that hangs, recurses, constructs or expands in the hands of an ordinary reader."""
    laughs = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
    return {
        "brackets": b"[" * 100_000,
        "braces": b"{a: " * 50_000,
        "dashes": b"- " * 50_000 + b"x",
        "questions": b"? " * 50_000,
        "indents": b"".join(b" " * depth + b"a:\n" for depth in range(1000)),
        "a billion laughs": laughs.encode(),
        "an alias to itself": b"name: &a [*a]",
        "a Python object": b"name: !!python/object/apply:os.system ['touch canary']",
        "a Python module": b"!!python/module:antigravity {}",
        "a binary tag": b"name: !!binary aGVsbG8=",
        "a timestamp, a set": b"name: !!timestamp 2001-01-01\nseed: !!set {a}",
        "a tag directive": b"%TAG ! tag:evil,2000:\n---\nname: x",
        "merge keys": b"x: &x {name: a}\n<<: *x",
        "two documents": b"name: a\n---\nname: b",
        "100,000 keys": b"".join(b"key%d: 1\n" % key for key in range(100_000)),
        "20,000 keys near a name": b"".join(b"optim%d: 1\n" % key for key in range(20_000)),
        "one key 50,000 times": b"seed: 1\n" * 50_000,
        "a key of 900,000 characters": b"k" * 900_000 + b": 1",
        "a value of 900,000 characters": b"name: '" + b"v" * 900_000 + b"'",
        "quotes": b"name: " + b"''" * 400_000,
        "folded lines": b"name: >\n" + b" x\n\n" * 200_000,
        "a list of 300,000": b"name: [" + b"a," * 300_000 + b"]",
        "colons": b"a:" * 400_000,
        "comments": b"#\n" * 450_000 + b"name: a",
        "2 MB": b"# \n" * 700_000,
        "tabs": b"name:\n\t- a",
        "a base of itself": b"base: recipe.yaml\nname: a",
        "a base above": b"base: ../../../../etc/passwd",
        "an absolute base": b"base: /etc/passwd",
        "a base that is a list": b"base: [a, b]",
        "a base with a NUL": b'base: "a\\0b"',
        "a list at the top": b"- a",
        "a number at the top": b"1",
        "nothing": b"",
        "a pickle": b"\x80\x04]\x94.",
        "a half surrogate": b'name: "\\ud800"',
        "UTF-16": "name: a".encode("utf-16"),
        "UTF-32": "name: a".encode("utf-32"),
        "overlong UTF-8": b"name: \xc0\xaf",
        "control characters": b"name: a\x07b",
        "look-alike keys": "n\u0430me: a\nsееd: 1".encode(),
        "a number as key": b"1: a\ntrue: b\nnull: c\n1.5: d",
        "a mapping as key": b"? {a: b}\n: c",
    }


class Recipes:
    """Recipe files, with and without `base`, as `train` and every other command reads them."""

    group = "recipe"
    damage = "bit flips, cuts, odd encodings and numbers, values of every type in every key, nesting and alias bombs"
    promise = "a RecipeError names the file, or a recipe that reads back from its own dump as the same"

    def __init__(self) -> None:
        self._originals: list[tuple[str, bytes]] = []
        self._bases: dict[str, bytes] = {}
        self._keys: list[str] = []
        self._known: set[str] = set()
        self._attacks = list(recipe_attacks().items())

    def prepare(self, folder: Path) -> None:
        shipped = shipped_recipes()
        self._bases = {path.name: path.read_bytes() for path in shipped.values()}
        self._originals = [(name, path.read_bytes()) for name, path in shipped.items()]
        self._keys = list(leaf_keys(load_recipe(next(iter(shipped.values())))))
        self._known = {recipe_hash(load_recipe(path)) for path in shipped.values()}

    def trial(self, rng: Rng, number: int, folder: Path) -> Ending:
        for name, body in self._bases.items():
            (folder / name).write_bytes(body)
        path, overrides = folder / "recipe.yaml", list[str]()
        damage, body = self._originals[number % len(self._originals)]
        choice = rng.random()
        if number < len(self._attacks):
            damage, body = self._attacks[number]
        elif choice < 0.35:
            damage, body = (
                "a value under a key",
                body + self._assignment(rng, "\n", ": ").encode("utf-8", "surrogatepass"),
            )
        elif choice < 0.65:
            damage = "an override"
            overrides = [_mutated(rng, self._assignment(rng, "", "=")) for _ in range(int(rng.integers(1, 4)))]
        else:
            damage, body = damage_text(rng, body, [one for _, one in self._originals])
        path.write_bytes(body)

        def read() -> str:
            recipe = load_recipe(path, overrides)
            _require_same(recipe, parse_recipe(dump_recipe(recipe)))
            return READ if recipe_hash(recipe) in self._known else "read as another recipe"

        return judge(damage, read, (RecipeError,), named="recipe.yaml")

    def _assignment(self, rng: Rng, before: str, between: str) -> str:
        key = self._keys[int(rng.integers(len(self._keys)))]
        value = _VALUES[int(rng.integers(len(_VALUES)))]
        if before and "." in key:
            section, _, rest = key.partition(".")
            return f"{before}{section}: {{{rest.replace('.', ': {')}: {value}{'}' * key.count('.')}\n"
        return f"{before}{key}{between}{value}"


def _mutated(rng: Rng, override: str) -> str:
    if rng.random() < 0.7:
        return override
    place = int(rng.integers(len(override)))
    return (
        override[:place]
        + chr(int(rng.choice([0, 9, 10, 32, 0x85, 0x300, 0x430, 0xD800, 0x202E, 0xFFFF])))
        + override[place + 1 :]
    )


def _require_same(recipe: Recipe, again: Recipe) -> None:
    if recipe_hash(recipe) != recipe_hash(again):
        raise BrokenPromiseError("its dump reads back as another recipe")
