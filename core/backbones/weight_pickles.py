"""Looks through the pickles of a weight file before torch unpickles them.

torch's restricted unpickler runs nothing that a file names, but it was not made against exhaustion: it makes a
`bytearray` of any size, hashes keys nested a million deep until the stack of the process overflows, and encodes one
text twenty thousand times. State dicts and the training states around them need none of this.
"""

from __future__ import annotations

import mmap

from adadistill.loaders.allow_list_unpickler import PickleDamagedError, PickleRefusedError, opcodes_of
from adadistill.loaders.pickle_keys import DictionaryKeys

_LEGACY_PICKLES = 5
"""Magic number, protocol, sizes of the system's types, the object, and the names of its storages; then tensor bytes."""

_CLASSES_AS_KEYS = frozenset(("GLOBAL",))  # Lightning keeps the states of its callbacks under their classes
_REFUSED = frozenset(("builtins bytearray", "__builtin__ bytearray", "builtins set", "__builtin__ set"))
_ENCODES = "_codecs encode"
_MAX_ENCODED_BYTES = 64 << 20
_UNSUPPORTED = frozenset(("POP", "DUP", "POP_MARK", "INST", "OBJ", "NEWOBJ_EX", "ADDITEMS", "FROZENSET", "NEXT_BUFFER"))
"""Opcodes at which torch's unpickler stops; what lies behind them is never reached."""


def require_harmless_pickles(data: bytes | mmap.mmap, *, zipped: bool) -> None:
    """Refuse pickles that would exhaust memory, time or the stack.

    Args:
        data: `data.pkl` of an archive, or a whole legacy file, which begins with several pickles.

    Raises:
        PickleRefusedError: it names a global, nests, repeats or declares what no state dict does.
        PickleDamagedError: it is cut off, or contradicts itself.
    """
    start = 0
    for _ in range(1 if zipped else _LEGACY_PICKLES):
        start = _require_harmless(data, start)
        if not 0 < start < len(data):
            return


def _require_harmless(data: bytes | mmap.mmap, start: int) -> int:
    """Check one pickle; gives the byte behind it, or -1 where it does not end and torch will say so."""
    keys = DictionaryKeys(also_plain=_CLASSES_AS_KEYS)
    encodes, calls, longest = False, 0, 0
    for name, first, end in opcodes_of(data, start):
        argument = data[first : min(end, first + 256)]
        if name in _UNSUPPORTED:
            return -1
        if name == "GLOBAL":
            asked = argument.decode("latin-1").replace("\n", " ").strip()
            if asked in _REFUSED:
                raise PickleRefusedError(f"asks for {asked.replace(' ', '.')}, which no state dict needs")
            encodes = encodes or asked == _ENCODES
        calls += name == "REDUCE"
        longest = max(longest, end - first)
        if encodes and calls * longest > _MAX_ENCODED_BYTES:
            raise PickleRefusedError("encodes long texts again and again")
        try:
            accepted = keys.accepts(name, argument)
        except (LookupError, ValueError):
            raise PickleDamagedError(f"{name} before byte {end} finds nothing to work on") from None
        if not accepted:
            raise PickleRefusedError(f"nests tuples, or makes something a key that is no name, before byte {end}")
        if name == "STOP":
            return end
    return -1
