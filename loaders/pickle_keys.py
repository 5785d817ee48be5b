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
_TUPLES = frozenset(("TUPLE1", "TUPLE2", "TUPLE3"))
_POPPED_FOR_ONE = {
    **{"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3},
    **{"REDUCE": 2, "NEWOBJ": 2, "STACK_GLOBAL": 2, "BINPERSID": 1},
}
_CHANGE_NOTHING = frozenset(("PROTO", "FRAME", "STOP"))
_MEMO_WRITES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_MEMO_READS = frozenset(("GET", "BINGET", "LONG_BINGET"))


_PLAIN = -1
_MAX_TUPLES = 64


class DictionaryKeys:
    """The stack and the memo, where all that is known of a value is whether it may be a key, else how many tuples deep
    it is. Lists count as nothing: they grow after they were put somewhere, but they are never hashed."""

    def __init__(self, *, also_plain: frozenset[str] = frozenset()) -> None:
        """`also_plain`: opcodes beside those of text, bytes and small integers whose values may be keys."""
        self._plain = _PLAIN_KEYS | also_plain
        self._stack: list[int | None] = []  # None: a mark
        self._memo: dict[int, int | None] = {}

    def accepts(self, name: str, argument: bytes) -> bool:
        """Take one opcode; false where it makes something a key that may be none, or nests tuples ever deeper.

        Args:
            name: of the opcode, as `pickletools` calls it.
            argument: its bytes.

        Raises:
            IndexError: it takes from an empty stack, or wants a mark that is not there.
            KeyError: it reads what was never put into the memo.
            ValueError: a memo index is no number.
        """
        stack = self._stack
        if name in self._plain:
            stack.append(_PLAIN)
        elif name in _POPPED_FOR_ONE:
            popped = self._pop(_POPPED_FOR_ONE[name])
            return self._push_tuple(popped) if name in _TUPLES else self._push_other()
        elif name == "MARK":
            stack.append(None)
        elif name == "TUPLE":
            return self._push_tuple(self._pop_to_mark())
        elif name == "LIST":
            self._pop_to_mark()
            stack.append(0)
        elif name == "DICT":
            keys = self._pop_to_mark()[::2]
            stack.append(0)
            return _all_plain(keys)
        elif name in ("APPEND", "BUILD"):
            self._pop(1)
        elif name == "APPENDS":
            self._pop_to_mark()
        elif name == "SETITEM":
            return _all_plain(self._pop(2)[:1])
        elif name == "SETITEMS":
            return _all_plain(self._pop_to_mark()[::2])
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _MEMO_WRITES:
            self._memo[_memo_index(name, argument)] = stack[-1]
        elif name in _MEMO_READS:
            stack.append(self._memo[_memo_index(name, argument)])
        elif name not in _CHANGE_NOTHING:
            stack.append(0)
        return True

    def _push_other(self) -> bool:
        self._stack.append(0)
        return True

    def _push_tuple(self, values: list[int | None]) -> bool:
        depth = 1 + max((value for value in values if value is not None), default=0)
        self._stack.append(max(1, depth))
        return depth <= _MAX_TUPLES

    def _pop(self, count: int) -> list[int | None]:
        if len(self._stack) < count:
            raise IndexError("the stack is empty")
        popped = self._stack[-count:]
        del self._stack[-count:]
        return popped

    def _pop_to_mark(self) -> list[int | None]:
        popped: list[int | None] = []
        while (top := self._stack.pop()) is not None:
            popped.append(top)
        popped.reverse()
        return popped


def _all_plain(keys: list[int | None]) -> bool:
    return all(key == _PLAIN for key in keys)


def _memo_index(name: str, argument: bytes) -> int:
    return int(argument) if name in ("PUT", "GET") else int.from_bytes(argument, "little")
