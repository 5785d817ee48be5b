"""Pickles that execute, or exhaust memory, when an ordinary unpickler reads them. Each would touch the canary.

Objects are pickled under every protocol; what Python's own pickler would not write is spelled out by opcode, and put
behind every protocol's header.
"""

from __future__ import annotations

import builtins
import importlib
import operator
import os
import pickle
import struct
import subprocess
from functools import cache, partial
from pathlib import Path

import numpy as np

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Calls:
    """Pickles as a call of `function` with `arguments`, and a state for what comes of it."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[object, ...]:
        return self.reduced


def executing_pickles(canary: Path) -> dict[str, bytes]:
    """Name -> pickle; unpickled, most make the file `canary`, and none is a value that any of our files holds."""
    attacks = {}
    for name, value in _executing_objects(canary).items():
        for protocol in PROTOCOLS:
            attacks[f"{name}, protocol {protocol}"] = pickle.dumps(value, protocol)
    for name, body in _executing_opcodes(canary).items():
        for protocol in PROTOCOLS:
            attacks[f"{name}, protocol {protocol}"] = _with_protocol(body, protocol)
    return attacks


@cache
def exhausting_pickles() -> dict[str, bytes]:
    """Name -> pickle that declares, repeats or nests until memory, time or the stack ends."""
    huge, large, near_2_gib = struct.pack("<Q", 1 << 40), struct.pack("<I", 0xFFFFFFF0), struct.pack("<i", 0x7FFFFFF0)
    frombuffer, u1 = b"\x80\x05cnumpy.core.numeric\n_frombuffer\nq\x00", b"cnumpy\ndtype\n(Vu1\nI00\nI01\ntR"
    million = struct.pack("<Q", 1_000_000)
    # Python's hash of -1 is that of -2, and of a number that of what remains after division by 2 ** 61 - 1.
    tuples = (b"".join(b"J" + struct.pack("<i", -1 - (key >> bit & 1)) for bit in range(16)) for key in range(60_000))
    multiples = ((key * ((1 << 61) - 1)).to_bytes(12, "little") for key in range(100_000))
    return {
        "BINBYTES8 of 1 TiB": b"\x80\x04\x8e" + huge + b"a.",
        "BYTEARRAY8 of 1 TiB": b"\x80\x05\x96" + huge + b"a.",
        "BINUNICODE8 of 1 TiB": b"\x80\x04\x8d" + huge + b"a.",
        "BINBYTES of 4 GiB": b"\x80\x03B" + large + b"a.",
        "BINUNICODE of 4 GiB": b"X" + large + b"a.",
        "BINSTRING of 2 GiB": b"T" + near_2_gib + b"a.",
        "BINSTRING of -8": b"T" + struct.pack("<i", -8) + b"a.",
        "LONG4 of 2 GiB": b"\x80\x02\x8b" + near_2_gib + b"a.",
        "FRAME of 1 TiB": b"\x80\x04\x95" + huge + b"N.",
        "FRAME that ends early": b"\x80\x04\x95" + struct.pack("<Q", 1) + b"](NNe.",
        "LONG_BINPUT of 4 Gi": b"Nr" + large + b".",
        "PUT of 4 Gi": b"Np4294967280\n.",
        "PUT of -1": b"Np-1\n.",
        "PUT of Arabic digits": b"Np" + "٣".encode() + b"\n.",
        "INT of 100,000 digits": b"I" + b"9" * 100_000 + b"\n.",
        "LONG of 100,000 digits": b"L" + b"9" * 100_000 + b"L\n.",
        "LONG1 of 255 bytes": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        "3 million lists": b"]" * 3_000_000 + b".",
        "2 million nested lists": b"]" + b"]" * 900_000 + b"a" * 900_000 + b".",
        "a million nested tuples": b")" + b"\x85" * 1_000_000 + b".",
        "a key of a million nested tuples": b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.",
        "a list in itself": b"]q\x00h\x00a.",
        "keys of one hash": b"\x80\x02}(" + b"".join(b"(" + key + b"tN" for key in tuples) + b"u.",
        "ints of one hash": b"\x80\x02}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in multiples) + b"u.",
        "one text encoded 20,000 times": b"c_codecs\nencode\nq\x00X\x40\x42\x0f\x00%bq\x01](%be."
        % (b"a" * 1_000_000, b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R" * 20_000),
        "one buffer copied 20,000 times": frombuffer
        + b"\x96%b%bq\x01%bq\x02](" % (million, b"\xff" * 1_000_000, u1)
        + b"h\x00(h\x01h\x02J\x40\x42\x0f\x00\x85VC\ntR" * 20_000
        + b"e.",
        "an array of a terabyte": b"cnumpy\nndarray\n(L1099511627776L\nt\x85R.",
        "a bytearray of 1.5 GiB": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x60\x85R.",
        "a Python 2 bytearray of 1.5 GiB": b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x60\x85R.",
        "bytes of 1.5 GiB": b"\x80\x02cbuiltins\nbytes\nJ\x00\x00\x00\x60\x85R.",
        "a dtype of 2 GB": b"cnumpy\ndtype\n(VS2000000000\nI00\nI01\ntR.",
        "a shape of 8 huge sides": frombuffer + b"C\x01a%b(%btVC\ntR." % (u1, (b"\x8a\xff" + b"\x7f" * 255) * 8),
    }


def _executing_objects(canary: Path) -> dict[str, object]:
    command, write = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    call = Calls(os.system, command)
    jpeg = b"\xff\xd8\xff"
    return {
        "os.system": call,
        "eval": Calls(eval, write),
        "exec": Calls(exec, write),
        "compile": Calls(compile, write, "name", "exec"),
        "open": Calls(open, str(canary), "w"),
        "partial": Calls(partial(os.system, command)),
        "partial of partial": Calls(partial(partial(os.system), command)),
        "Popen": Calls(subprocess.Popen, ["touch", str(canary)]),
        "import_module": Calls(importlib.import_module, "antigravity"),
        "attrgetter": Calls(operator.attrgetter("__class__"), canary),
        "methodcaller": Calls(operator.methodcaller("mkdir"), canary),
        "getattr chain": Calls(getattr, Calls(getattr, Calls(importlib.import_module, "os"), "path"), "join"),
        "map and list": Calls(builtins.list, Calls(map, os.system, [command])),
        "state by __setattr__": Calls(Path, "a", state={"x": call}),
        "among the images": ([jpeg, jpeg, call, jpeg], [True, False]),
        "among the flags": ([jpeg] * 4, [True, call]),
        "in an object array": (np.array([jpeg, jpeg, call, jpeg], dtype=object), [True, False]),
        "behind nested lists": ([[[[call]]]], [True]),
        "as a dictionary's value": {"state_dict": {"weight": call}},
        "as a dictionary's key": {(1, call.reduced[0]): jpeg},
        "a nested pickle": ([pickle.dumps(call), jpeg], Calls(pickle.loads, pickle.dumps(call))),
        "an array subclass": (np.ma.masked_array([True], mask=[False]), [True]),
        "a matrix": (np.asmatrix(np.zeros((2, 2), np.uint8)), [True]),
        "a record array": ([jpeg] * 2, np.zeros(1, dtype=[("flag", "?")])),
        "a memory map's class": ([jpeg] * 2, Calls(np.ndarray, (1 << 40,))),
    }


def _executing_opcodes(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}".encode()
    line, text = command + b"\n", b"X" + struct.pack("<I", len(command)) + command
    inner = pickle.dumps(Calls(os.system, command.decode()), 2)
    return {
        "GLOBAL": b"cos\nsystem\n(V" + line + b"tR.",
        "GLOBAL of posix": b"cposix\nsystem\n(V" + line + b"tR.",
        "INST": b"(V" + line + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "NEWOBJ": b"cos\nsystem\n" + text + b"\x85\x81.",
        "NEWOBJ_EX": b"cos\nsystem\n" + text + b"\x85}\x92.",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",
        "STACK_GLOBAL with dots": b"\x8c\x05numpy\x8c\x10ndarray.__init__\x93" + text + b"\x85R.",
        "an attribute of an allowed global": b"\x8c\x07_codecs\x8c\x0fencode.__self__\x93.",
        "EXT1": b"\x82\x01.",
        "EXT2": b"\x83\x01\x00.",
        "EXT4": b"\x84\x01\x00\x00\x00.",
        "PERSID": b"Pevil\n.",
        "BINPERSID": text + b"Q.",
        "NEXT_BUFFER": b"\x97.",
        "READONLY_BUFFER": b"C\x01a\x98.",
        "BUILD on a global": b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",
        "BUILD with slots": b"c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        "FROZENSET": b"(K\x01\x91.",
        "behind a POP": b"cos\nsystem\n(V" + line + b"tR0(]]t.",
        "behind a POP_MARK": b"(cos\nsystem\n(V" + line + b"tR1(]]t.",
        "behind a STOP": b"(]]t.cos\nsystem\n(V" + line + b"tR.",
        "_pickle.loads": b"c_pickle\nloads\n(C" + bytes([len(inner)]) + inner + b"tR.",
        "eval of Python 2": b"c__builtin__\neval\n(V__import__('os').system('" + command + b"')\ntR.",
        "getattr of a method": b"cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR.",
        "a codec of another name": b"c_codecs\nencode\n(Vcode\nVrot13\ntR.",
        "a codec that unpacks": b"c_codecs\ndecode\n(C\x01aVzip\ntR.",
        "an array called": b"cnumpy\nndarray\n(L1099511627776L\nt\x85R.",
        "an array by NEWOBJ": b"cnumpy\nndarray\nJ\x00\x00\x00\x7f\x85\x85\x81.",
        "_reconstruct of a function": b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n\x85C\x01btR.",
        "numpy.testing runstring": b"cnumpy.testing._private.utils\nrunstring\n(Vprint(1)\n}tR.",
        "numpy.load": b"cnumpy\nload\n(Vevil.npy\ntR.",
        "an object dtype": b"cnumpy\ndtype\n(VO8\nI00\nI01\ntR.",
        "torch.load": b"ctorch\nload\n(Vevil.pth\ntR.",
        "torch.hub": b"ctorch.hub\nload\n(Va/b\nVc\ntR.",
        "torch.jit": b"ctorch.jit\nload\n(Vevil.pt\ntR.",
        "ctypes": b"cctypes\nCDLL\n(Vlibc.so.6\ntR.",
        "an unknown opcode": b"\xff.",
    }


def _with_protocol(body: bytes, protocol: int) -> bytes:
    return (b"\x80" + bytes([protocol]) if protocol >= 2 else b"") + body
