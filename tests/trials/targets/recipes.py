"""Recipes and overrides on the command line: one error says what is wrong, or a recipe is as it reads."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from adadistill.core.config.text import leaf_keys
from adadistill.core.recipe import dump_recipe, load_recipe, parse_recipe, recipe_hash, shipped_recipes
from trials.targets.damage import TEXT
from trials.targets.target import READ, BrokenPromiseError, Files, Material, Mutant, Original, attacks

_FILE, _OVERRIDES = "recipe.yaml", "overrides.json"
_VALUES = (
    *("null", "~", "''", "true", "no", "010", "0x10", "0o17", "1:30", "1_000", "1e-4", "1e999", "-1", "-0.0", "0"),
    *(".inf", "-.Inf", ".nan", "1e308", "9" * 19, "9" * 400, "9" * 1000, "9" * 5000, "-" + "9" * 900, "1" + "0" * 308),
    *("[]", "{}", "[[]]", "{a: 1}", "[1, 2", "]", "'", '"\\x41"', '"\\U0011ffff"', '"\\ud800"'),
    *("&a b", "*a", "<<: x", "|", ">", "%YAML 9.9", "---", "...", "# x", "@x", "`x", "../../etc/passwd", "/dev/zero"),
    *("x" * 5000, "\u202e", "\u0430", "١٢", "１２", "\U0001f600", "a\u0300", "x\\0", "NaN", "inf", "yes"),
    *("!!python/object:os.system x", "[0.1, -1, .nan]"),
)


def recipe_files(folder: Path) -> Material:
    """Recipe files, with and without `base`, as `train` and every other command reads them."""
    shipped = shipped_recipes()
    bases = {path.name: path.read_bytes() for path in shipped.values()}
    recipes = {name: load_recipe(path) for name, path in shipped.items()}
    keys = list(leaf_keys(next(iter(recipes.values()))))
    lies = {
        "a value under a key": lambda rng, files: _add_line(rng, files, keys),
        "an override": lambda rng, files: _override(rng, files, keys),
    }
    originals = [
        Original(name, {_FILE: path.read_bytes(), **bases}, _FILE, hit=[_FILE], lies=lies)
        for name, path in shipped.items()
    ]
    known = {recipe_hash(recipe) for recipe in recipes.values()}
    return Material(originals, lambda mutant: _read(mutant, known), attacks(_recipe_attacks(), _FILE), 8, TEXT)


def _read(mutant: Mutant, known: set[str]) -> str:
    recipe = load_recipe(mutant.path, json.loads(mutant.files.get(_OVERRIDES, "[]")))
    if recipe_hash(recipe) != recipe_hash(parse_recipe(dump_recipe(recipe))):
        raise BrokenPromiseError("its dump reads back as another recipe")
    return READ if recipe_hash(recipe) in known else "read as another recipe"


def _add_line(rng: Random, files: Files, keys: list[str]) -> None:
    key, value = rng.choice(keys), rng.choice(_VALUES)
    section, _, rest = key.partition(".")
    inner = f"{{{rest.replace('.', ': {')}: {value}{'}' * key.count('.')}" if rest else value
    files[_FILE] += f"\n{section}: {inner}\n".encode("utf-8", "surrogatepass")


def _override(rng: Random, files: Files, keys: list[str]) -> None:
    """One to three of them; a third with an odd character somewhere."""
    overrides = []
    for _ in range(rng.randint(1, 3)):
        override = f"{rng.choice(keys)}={rng.choice(_VALUES)}"
        if rng.random() < 0.3:
            place = rng.randrange(len(override))
            odd = chr(rng.choice((0, 9, 10, 32, 0x85, 0x300, 0x430, 0xD800, 0x202E, 0xFFFF)))
            override = override[:place] + odd + override[place + 1 :]
        overrides.append(override)
    files[_OVERRIDES] = json.dumps(overrides).encode()


def _recipe_attacks() -> dict[str, bytes]:
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
