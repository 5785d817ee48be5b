"""Triton's interpreter with its language patched once a launch, and looked through once a process.

As it comes, it walks all of `triton.language` for every call of a function within a kernel, tl.sum and tl.zeros among
them, which takes longer than what the functions compute. The kernel that calls them has patched the same modules.
"""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any


def quicken() -> None:
    """Do so in this process. Another Triton, whose interpreter is made otherwise, stays as slow as it is."""
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("InterpretedFunction", "_patch_builtin", "_patch_lang")):
        return
    language, patch_language = interpreter.tl, interpreter._patch_lang
    # Kernels know the one, tl.sum the other.
    knows_both = SimpleNamespace(__globals__={"tl": language, "core": language.core})

    @functools.cache
    def builtins_of(package: Any) -> list[tuple[str, Any]]:
        return [(name, member) for name, member in inspect.getmembers(package) if language.core.is_builtin(member)]

    def patch_builtin(package: Any, *rest: Any) -> None:
        for name, member in builtins_of(package):
            interpreter._patch_attr(package, name, member, *rest)

    interpreter._patch_builtin = patch_builtin
    interpreter._patch_lang = lambda kernel: patch_language(knows_both)
    interpreter.InterpretedFunction.__call__ = lambda function, *args, **named: function.rewrite()(*args, **named)
