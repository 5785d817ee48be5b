"""Follows the stack of an unpickler, without unpickling, far enough to tell what becomes a dictionary's key.

Why: a key is hashed, which no stand-in for a global can prevent. A tuple in a tuple in a tuple ..., a million deep in a
million bytes, overflows the stack of the process when it is hashed; and sixty thousand tuples of -1 and -2, which all
have one hash, keep it busy for a minute. Text and bytes are hashed with a secret, small integers by their value.
"""

from __future__ import annotations

_PLAIN_KEYS = frozenset(
    (
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
        *("BININT", "BININT1", "BININT2"),
    )
)
_POPPED_FOR_ONE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "STACK_GLOBAL": 2}
_CHANGE_NOTHING = frozenset(("PROTO", "FRAME", "STOP"))
_MEMO_WRITES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO_READS = frozenset(("GET", "BINGET", "LONG_BINGET"))


class DictionaryKeys:
    """The stack and the memo, where all that is known of a value is whether it may be a key."""

    def __init__(self) -> None:
        self._stack: list[bool | None] = []  # None: a mark
        self._memo: dict[int, bool | None] = {}

    def accepts(self, name: str, argument: bytes) -> bool:
        """Take one opcode that metadata may hold; false where it makes something a key that may be none.

        Args:
            name: of the opcode, as `pickletools` calls it.
            argument: its bytes.

        Raises:
            IndexError: it takes from an empty stack, or wants a mark that is not there.
            KeyError: it reads what was never put into the memo.
            ValueError: a memo index is no number.
        """
        stack = self._stack
        if name in _PLAIN_KEYS:
            stack.append(True)
        elif name in _POPPED_FOR_ONE:
            self._pop(_POPPED_FOR_ONE[name])
            stack.append(False)
        elif name == "MARK":
            stack.append(None)
        elif name in ("TUPLE", "LIST"):
            self._pop_to_mark()
            stack.append(False)
        elif name == "DICT":
            keys = self._pop_to_mark()[::2]
            stack.append(False)
            return all(keys)
        elif name in ("APPEND", "BUILD"):
            self._pop(1)
        elif name == "APPENDS":
            self._pop_to_mark()
        elif name == "SETITEM":
            return bool(self._pop(2)[0])
        elif name == "SETITEMS":
            return all(self._pop_to_mark()[::2])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _MEMO_WRITES:
            self._memo[_memo_index(name, argument)] = stack[-1]
        elif name in _MEMO_READS:
            stack.append(self._memo[_memo_index(name, argument)])
        elif name not in _CHANGE_NOTHING:
            stack.append(False)
        return True

    def _pop(self, count: int) -> list[bool | None]:
        if len(self._stack) < count:
            raise IndexError("the stack is empty")
        popped = self._stack[-count:]
        del self._stack[-count:]
        return popped

    def _pop_to_mark(self) -> list[bool | None]:
        popped: list[bool | None] = []
        while (top := self._stack.pop()) is not None:
            popped.append(top)
        popped.reverse()
        return popped


def _memo_index(name: str, argument: bytes) -> int:
    return int(argument) if name in ("PUT", "GET") else int.from_bytes(argument, "little")
