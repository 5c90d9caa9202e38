"""Pickles made by hand, byte by byte: what a hostile file may try, and what its refusal names."""

import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

PROTO = b"\x80\x04"
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(dotted: str) -> bytes:
    """GLOBAL."""
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def values(*arguments: Any) -> bytes:
    """A tuple of plain values."""
    return pickletools.optimize(pickle.dumps(arguments, protocol=3))[2:-1]


def call(dotted: str, *arguments: Any) -> bytes:
    return PROTO + name(dotted) + values(*arguments) + b"R."


def stored(length: int = 6, claimed: int | None = None, system: bytes | None = None) -> bytes:
    """The bytes of a stored tensor of single precision, as torch.save writes them."""
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts.append(system or pickle.dumps({"little_endian": True}, 2))
    claimed = length if claimed is None else claimed
    inner = text("storage") + b"ctorch\nFloatStorage\n" + text("1") + text("cpu") + pickle.dumps(claimed, 2)[2:-1]
    parts.append(b"\x80\x02(" + inner + b"NtQ.")
    parts.append(pickle.dumps(["1"], 2))
    return b"".join(parts) + struct.pack("<q", claimed) + bytes(4 * length)


def tensor(offset: Any, size: Any, stride: Any, data: bytes | None = None) -> bytes:
    storage = name("torch.storage._load_from_bytes") + values(data or stored()) + b"R"
    rest = values(offset, size, stride, False, {})
    return PROTO + name("torch._utils._rebuild_tensor_v2") + b"(" + storage + _items(rest) + b"tR."


def _items(whole: bytes) -> bytes:
    """What stands between the mark and the end of a pickled tuple."""
    assert whole.startswith(b"(")
    return whole[1 : whole.rindex(b"t")]


def scalar(code: str, data: bytes) -> bytes:
    dtype = name("numpy.dtype") + values(code, False, True) + b"R"
    return PROTO + name("numpy.core.multiarray.scalar") + dtype + values(data)[:-1] + b"\x86R."


def plain_dtype() -> bytes:
    return name("numpy.dtype") + values("f8", False, True) + b"R"


def long_header() -> bytes:
    """A stored tensor that is right but for a comment of 10 kB, which the reader would copy at each call."""
    whole = stored()
    return b"\x80\x04" + b"\x8e" + struct.pack("<Q", 10_000) + bytes(10_000) + whole[2:]


def hostile(canary: Path) -> dict[str, tuple[bytes, str]]:
    """What each file is -> its bytes, and what the refusal names."""
    return {**executing(canary), **misfitting(), **instructing(canary), **damaged()}


def executing(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Files that would leave a trace where they are executed."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    nested = stored(system=call("os.system", touch))
    return {
        "os.system": (call("os.system", touch), "os.system"),
        "posix.system": (call("posix.system", touch), "posix.system"),
        "nt.system": (call("nt.system", touch), "nt.system"),
        "subprocess": (call("subprocess.Popen", ["touch", str(canary)]), "subprocess.Popen"),
        "subprocess call": (call("subprocess.check_output", ["touch", str(canary)]), "subprocess.check_output"),
        "eval": (call("builtins.eval", code), "builtins.eval"),
        "exec": (call("builtins.exec", code), "builtins.exec"),
        "exec of Python 2": (call("__builtin__.eval", code), "__builtin__.eval"),
        "open": (call("builtins.open", str(canary), "w"), "builtins.open"),
        "import": (call("builtins.__import__", "os"), "builtins.__import__"),
        "getattr": (PROTO + name("builtins.getattr") + name("os.path") + text("x") + b"\x86R.", "builtins.getattr"),
        "dotted name": (PROTO + stack_name("collections", "OrderedDict.fromkeys.__globals__") + b".", "fromkeys"),
        "allowed module, other name": (call("torch.storage.os.system", touch), "torch.storage.os.system"),
        "name that is no text": (PROTO + b"K\x01" + text("system") + b"\x93.", "STACK_GLOBAL requires str"),
        "attrgetter": (call("operator.attrgetter", "system"), "operator.attrgetter"),
        "partial": (call("functools.partial", print), "functools.partial"),
        "importlib": (call("importlib.import_module", "os"), "importlib.import_module"),
        "runpy": (call("runpy.run_path", str(canary)), "runpy.run_path"),
        "codecs": (call("_codecs.encode", "x", "rot13"), "_codecs.encode"),
        "nested pickle": (call("pickle.loads", call("os.system", touch)), "pickle.loads"),
        "nested torch.load": (call("torch.load", str(canary)), "torch.load"),
        "nested in a stored tensor": (call("torch.storage._load_from_bytes", nested), "os.system"),
        "dotted module": (PROTO + stack_name("os.path.os", "system") + values(touch) + b"R.", "os.path.os.system"),
        "dotted name behind an allowed one": (PROTO + stack_name("numpy", "dtype.__class__") + b".", "dtype.__class__"),
        "name of a storage outside of one": (PROTO + stack_name("torch", "FloatStorage") + b".", "torch.FloatStorage"),
    }


def misfitting() -> dict[str, tuple[bytes, str]]:
    """Files that give a function of the list what it does not take."""
    sized = values("<" * 1000 + "f4", False, True)
    return {
        "stored tensor of garbage": (call("torch.storage._load_from_bytes", b"PK\x03\x04"), "PERSID"),
        "stored tensor of text": (call("torch.storage._load_from_bytes", "x"), "_load_from_bytes with"),
        "stored tensor that claims a terabyte": (
            call("torch.storage._load_from_bytes", stored(6, 2**38)),
            "length is not that of its bytes",
        ),
        "tensor beyond its storage": (tensor(0, (2, 4), (4, 1)), "larger than what is stored"),
        "tensor before its storage": (tensor(-1, (2,), (1,)), "no whole numbers of 0 or more"),
        "tensor of stride 0": (tensor(0, (2**20, 2**20), (0, 0)), "larger than what is stored"),
        "tensor of uneven strides": (tensor(0, (2, 2), (1,)), "strides that differ"),
        "tensor of texts": (tensor(0, ("2",), (1,)), "no whole numbers of 0 or more"),
        "tensor of nothing": (call("torch._utils._rebuild_tensor_v2", None, 0, (), ()), "NoneType in place"),
        "parameter of nothing": (call("torch._utils._rebuild_parameter", "x", True, {}), "_rebuild_parameter with"),
        "objects in numpy": (scalar("O8", bytes(8)), "numpy type"),
        "numpy bytes that do not fit": (scalar("f8", bytes(4)), "do not fit"),
        "call of an array type": (call("numpy.ndarray", (2**40,)), "numpy.ndarray"),
        "filled mapping": (call("collections.OrderedDict", [("a", 1)]), "OrderedDict with"),
        "persistent object without a state": (call(PERSISTENT, {"type": "class"}), PERSISTENT),
        "persistent object of a list": (call(PERSISTENT, [1]), PERSISTENT),
        "tensor of a stride of many bits": (tensor(0, (1,), (2**70,)), "of 63 bits"),
        "stored tensor with a long header": (call("torch.storage._load_from_bytes", long_header()), "damaged"),
        "numpy type of many characters": (PROTO + name("numpy.dtype") + sized + b"R.", "numpy type"),
        "numpy type of a state of objects": (PROTO + plain_dtype() + values(3, "|", None, ("x",), {}) + b"b.", "BUILD"),
        "set of itself": (PROTO + name("builtins.set") + b"]q\x00h\x00a\x85R.", "list for a key"),
        "argument that is a name": (
            PROTO + name("builtins.set") + name("numpy.dtype") + b"\x85R.",
            "builtins.set with",
        ),
        "keyword arguments": (
            PROTO + name("numpy.dtype") + b"}" + text("align") + b"Ns" + b"R.",
            "no name on the list",
        ),
    }


def instructing(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Files with instructions that are not on the list, or that are applied to what they must not change."""
    touch = f"touch {canary}"
    bag = PROTO + name(PERSISTENT) + values({"type": "class", "class_name": "G", "state": {}}) + b"R"
    doubled = PROTO + b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    return {
        "state of a persistent object": (bag + b"}" + text("__class__") + b"K\x01sb.", "BUILD"),
        "setstate": (PROTO + name("collections.OrderedDict") + b")R}" + text("__setstate__") + b"Nsb.", "BUILD"),
        "INST": (PROTO + b"(" + text(touch) + b"ios\nsystem\n.", "INST"),
        "OBJ": (PROTO + b"(" + name("os.system") + text(touch) + b"o.", "os.system"),
        "OBJ of an allowed name": (PROTO + b"(" + name("collections.OrderedDict") + b"o.", "OBJ"),
        "NEWOBJ": (PROTO + name("torch.storage._load_from_bytes") + values(b"") + b"\x81.", "makes an object"),
        "NEWOBJ_EX": (PROTO + name("collections.OrderedDict") + b")}\x92.", "NEWOBJ_EX"),
        "extension registry": (PROTO + b"\x82\x01.", "EXT1"),
        "persistent id": (PROTO + b"Pos.system\n.", "PERSID"),
        "binary persistent id": (PROTO + text("x") + b"Q.", "BINPERSID"),
        "storage type outside": (PROTO + name("torch.FloatStorage") + b".", "torch.FloatStorage"),
        "buffer out of band": (PROTO + b"\x97.", "NEXT_BUFFER"),
        "call of a number": (PROTO + b"K\x01)R.", "no name on the list"),
        "key of tuples in tuples": (doubled + b"}h\x3cNs.", "tuple for a key"),
        "key of a list": (PROTO + b"}]Ns.", "list for a key"),
        "keys of one hash": (PROTO + b"}" + b"\x8a\x08" + struct.pack("<q", 2**61 - 1) + b"Ns.", "int for a key"),
        "number of many bits": (PROTO + b"\x8a\x40" + b"\x7f" * 64 + b".", "80 bits"),
        "filled text": (PROTO + text("x") + b"Na.", "fills a str"),
        "method overwritten": (bag + b"}" + text("find_class") + name("numpy.dtype") + b"sb.", "BUILD"),
        "slots overwritten": (bag + b"N}" + text("state") + b"Ns\x86b.", "BUILD"),
        "name overwritten": (PROTO + name("numpy.dtype") + b"}" + text("name") + text("os.system") + b"sb.", "BUILD"),
        "object of a name, with keywords": (PROTO + name("builtins.set") + b")}\x92.", "NEWOBJ_EX"),
        "object of an object": (
            PROTO + name("collections.OrderedDict") + b")R)\x81.",
            "no name on the list",
        ),
        "extension registry of two bytes": (PROTO + b"\x83\x01\x01.", "EXT2"),
        "extension registry of four bytes": (PROTO + b"\x84\x01\x01\x01\x01.", "EXT4"),
        "instruction that no pickle has": (PROTO + b"\xff.", "of code 255"),
    }


def damaged() -> dict[str, tuple[bytes, str]]:
    """Files that end too early, or that take what is not there."""
    return {
        "huge frame": (PROTO + b"\x95" + struct.pack("<Q", 2**62), "damaged|too early"),
        "huge bytes": (PROTO + b"\x8e" + struct.pack("<Q", 2**62) + b"x", "damaged"),
        "huge text": (PROTO + b"\x8d" + struct.pack("<Q", 2**40) + b"x", "damaged"),
        "value that is not in the memo": (PROTO + b"j\xff\xff\xff\xff.", "damaged"),
        "empty stack": (PROTO + b"R.", "damaged .*empty list"),
        "mark without end": (PROTO + b"(.", "damaged .*empty list"),
        "end without mark": (PROTO + b"NN\x90.", "damaged .*empty list"),
        "truncated": (call("collections.OrderedDict")[:-4], "OrderedDic'"),
        "empty": (b"", "damaged"),
        "text": (b"<html>404</html>", "damaged|not on the list"),
        "endless": (PROTO + b"N0" * 8, "POP"),
    }
