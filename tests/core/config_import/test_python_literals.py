"""What is read of a config.py is what Python would have assigned, as far as literals go; nothing of it is ever run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from config_files import ADADISTILL, INSIGHTFACE_WF12M_R50, ORIGIN

from adadistill.core.config_import import ConfigImportError, import_config
from adadistill.core.config_import.python_literals import MAX_BYTES, StepRule, read_literals
from adadistill.core.recipe import RecipeError


def settings(text: str) -> dict[str, object]:
    read = read_literals(text.encode(), "config.py").settings
    return {key: found.value for key, found in read.items() if not found.unread}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("512 * 4", 2048),
        ("0.1 * 4 / 8", 0.05),
        ("-1", -1),
        ("2 ** 5 - 7 // 2 % 2", 31),
        ("(1.0, 0.5, 0)", (1.0, 0.5, 0)),
        ("['a', 'b']", ["a", "b"]),
        ("None", None),
        ("config['size'] // 2", 56),
    ],
)
@pytest.mark.parametrize("start", ["config = edict()", "config = {}", "import easydict\nconfig = easydict.EasyDict()"])
def test_literals_and_arithmetic_on_them(start: str, expression: str, value: object) -> None:
    assert settings(f"{start}\nconfig.size = 112\nconfig.x = {expression}\n")["x"] == value


def test_branches_on_whether_literals_are_equal_are_followed() -> None:
    text = "config = edict()\nconfig.d = 'x'\n"
    text += "if config.d != 'x':\n    config.v = 1\n"
    text += "elif config.d == 'x':\n    config.v = 2\nelse:\n    config.v = 3\n"
    assert settings(text) == {"d": "x", "v": 2}


@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"if {test}:\n    config.v = 1"
            for test in ("config.d in ('x',)", "config.d", "config.e == 'x'", "f() == 1")
        ),
        "def set_up():\n    config.a = 2",
        "setattr(config, 'm', 3)",
        "config.update(m=3)",
        "config.targets.append('x')",
        "del config.a",
        "config.a += 1",
        "for config.a in range(3): pass",
        "config = somebody_elses()",
        "other = config",
        "from base import config",
        "from base import *",
    ],
)
def test_any_other_statement_that_names_the_config_may_set_anything(statement: str) -> None:
    read = read_literals(f"config = edict()\nconfig.d = 'x'\n{statement}\n".encode(), "c")
    assert [(one.line, one.anything) for one in read.unread] == [(3, True)]


@pytest.mark.parametrize("call", ["set_up()", "print('hello')", "os.environ['X'] = '1'", "sys.path.append('.')"])
def test_what_does_not_touch_the_config_changes_nothing(call: str) -> None:
    read = read_literals(f"import os\nconfig = edict()\nconfig.a = 1\n{call}\n".encode(), "config.py")
    assert set(read.settings) == {"a"}
    assert not any(one.anything or one.keys for one in read.unread)


def test_what_is_assigned_anything_else_loses_the_value_it_had() -> None:
    read = read_literals(b"config = edict()\nconfig.lr = 0.1\nconfig.lr = f()\nconfig.m = 1\n", "config.py")
    assert [(one.line, one.keys, one.reason) for one in read.unread] == [(3, ("lr",), "a call, which is not run")]
    assert settings("config = edict()\nconfig.lr = f()\nconfig.lr = 0.1\n") == {"lr": 0.1}


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        ("return 0.1 ** len([m for m in [8, 14] if m - 1 <= epoch])", StepRule((7, 13), 0.1, 0.0)),
        ("return 0.5 ** len([k for k in (3,) if k <= epoch])", StepRule((3,), 0.5, 0.0)),
        (
            "return ((epoch + 1) / (4 + 1)) ** 2 if epoch < 4 else 0.1 ** len([m for m in [8] if m - 1 <= epoch])",
            StepRule((7,), 0.1, 4.0),
        ),
    ],
)
def test_the_rate_function_is_recognised(function: str, rule: StepRule) -> None:
    text = f"config = edict()\ndef lr_step_func(epoch):\n    {function}\nconfig.lr_func = lr_step_func\n"
    assert settings(text)["lr_func"] == rule


@pytest.mark.parametrize(
    "function",
    [
        "return 0.1 ** len([m for m in [8, 14] if m - 1 < epoch])",
        "return 0.1 ** len([m for m in [8.5] if m - 1 <= epoch])",
        "return 0.1 ** sum([m for m in [8] if m - 1 <= epoch])",
        "return ((epoch + 1) / 9) ** 2 if epoch < 4 else 0.1 ** len([m for m in [8] if m - 1 <= epoch])",
        "print(1)\n    return 0.1 ** len([m for m in [8, 14] if m - 1 <= epoch])",
        "return 1.0",
        "yield 1.0",
    ],
)
def test_another_rate_function_is_not_taken_for_it(function: str) -> None:
    text = f"config = edict()\ndef lr_step_func(epoch):\n    {function}\nconfig.lr_func = lr_step_func\n"
    assert "lr_func" not in settings(text)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "assigns no settings"),
        (b"print('hello')\n" * 3, None),
        (b"config = = 3", "is not Python 3"),
        (b"print 'hello'", "is not Python 3"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x = 1\0", "is not Python"),
        (b"x" * (MAX_BYTES + 1), "is larger than"),
        (b"config = edict()\nconfig.x = " + b"(" * 5000 + b"1" + b")" * 5000, "is not Python"),
        (b"config = edict()\nconfig.x = " + b"-" * 3000 + b"1", None),
        (b"config = edict()\nconfig.x = " + b"1+" * 3000 + b"1", None),
        (b"config = edict()\n" + b"config.x = [1,1,1,1,1,1,1,1,1,1]\n" * 5000, "has more than"),
        (b"config = edict()\nconfig.x = " + b"9" * 5000, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_no_config_gives_a_named_error(data: bytes, said: str | None) -> None:
    with pytest.raises(ConfigImportError, match=said):
        import_config(data, "config.py", name="it")


@pytest.mark.parametrize(
    "expression",
    [
        "10 ** 10 ** 10",
        "'a' * 10 ** 9",
        "[0] * 10 ** 9",
        "1 / 0",
        "2.0 ** 64 ** 64",
        "(-8) ** 0.5",
        "1e999",
    ],
)
def test_arithmetic_takes_no_memory_and_no_time(expression: str) -> None:
    assert settings(f"config = edict()\nconfig.y = 1\nconfig.x = {expression}\n") == {"y": 1}


@pytest.mark.slow
def test_250_mutations_end_in_a_recipe_or_a_named_error_and_run_nothing(tmp_path: Path) -> None:
    """Bytes flipped, cut, doubled and moved, and statements put in that would leave a trace if anything ran."""
    canary = tmp_path / "canary"
    traces = [
        f"open({str(canary)!r}, 'w').write('x')",
        f"config.lr = open({str(canary)!r}, 'w')",
        f"__import__('pathlib').Path({str(canary)!r}).touch()",
        f"config.m = [c for c in [__import__('pathlib').Path({str(canary)!r}).touch()]]",
        f"@__import__('functools').partial(open, {str(canary)!r}, 'w')\ndef lr_step_func(epoch): return 1",
        f"exec(\"open({str(canary)!r}, 'w')\")",
        f"class A(metaclass=lambda *a: open({str(canary)!r}, 'w')): pass",
        f"def f(x=open({str(canary)!r}, 'w')): return 0.1 ** len([m for m in [1] if m <= x])",
        f"if open({str(canary)!r}, 'w'): config.m = 0.1",
        f"config.x = f\"{{open({str(canary)!r}, 'w')}}\"",
    ]
    generator = random.Random(0)
    outcomes = {"recipe": 0, "obstacles": 0, "error": 0}
    for trial in range(250):
        text = generator.choice([ORIGIN, ADADISTILL, INSIGHTFACE_WF12M_R50])
        data = bytearray(text.encode())
        lines = text.splitlines()
        kind = trial % 5
        if kind == 0:
            for _ in range(generator.randint(1, 6)):
                data[generator.randrange(len(data))] = generator.randrange(256)
        elif kind == 1:
            start = generator.randrange(len(data))
            del data[start : start + generator.randint(1, 60)]
        elif kind == 2:
            place = generator.randrange(3, len(lines))
            indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
            lines.insert(place, "\n".join(indent + line for line in generator.choice(traces).splitlines()))
            data = bytearray("\n".join(lines).encode())
        elif kind == 3:
            i, j = generator.randrange(len(lines)), generator.randrange(len(lines))
            lines[i], lines[j] = lines[j], lines[i]
            data = bytearray("\n".join(lines).encode())
        else:
            i, j = sorted((generator.randrange(len(data)), generator.randrange(len(data))))
            data[i:i] = data[j : j + 80]
        try:
            found = import_config(bytes(data), "config.py", name="it")
        except (ConfigImportError, RecipeError) as error:
            outcomes["error"] += bool(str(error))
        else:
            outcomes["obstacles" if found.recipe is None else "recipe"] += 1
    assert not canary.exists()
    assert min(outcomes.values()) > 10, outcomes
    assert sum(outcomes.values()) == 250
