"""The reader of public files: weights come out, and nothing in a file is executed."""

import pickle
import pickletools
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toys.stylegan2_files import write
from unlearn.core.errors import RecipeError
from unlearn.models.gan.stylegan2.discriminator import Discriminator
from unlearn.models.gan.stylegan2.generator import Generator, Shape
from unlearn.models.gan.stylegan2.pickles import ALLOWED, MOST_OPCODES, Persistent, Strided, read_pickle
from unlearn.models.gan.stylegan2.public import read_networks

SMALL = Shape(size=16, z_dim=6, w_dim=8, layers=2, channel_base=128, channel_max=16, clamp=256.0, group=2)


def networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    generator = Generator(SMALL)
    generator.mapping.w_avg.normal_()
    judge = Discriminator(SMALL)
    judge.b4.mbstd = torch.nn.Identity()  # a module of its own in the files, without weights
    return generator, judge


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_networks_come_out_as_they_went_in(protocol: int, tmp_path: Path, canary: Path) -> None:
    """At protocol 3, that of the public files, sets are made by a call; protocol 2 is refused only for its bytes."""
    generator, judge = networks()
    path = tmp_path / "network.pkl"
    held = {"G": None, "D": judge, "G_ema": generator, "augment_pipe": None}
    write(path, held, protocol, canary, conv_clamp=256, bias_gain=0.01, group_size=2)
    if protocol == 2:
        with pytest.raises(RecipeError, match=r"_codecs\.encode', which is not on the list"):
            read_networks(path)
        return
    found, found_judge = read_networks(path)
    assert found.shape == replace(SMALL, group=4) and found_judge is not None and found_judge.shape == SMALL
    for mine, theirs in ((found, generator), (found_judge, judge)):
        wanted = theirs.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in mine.state_dict().items())
    z = torch.randn(2, 6)
    assert torch.equal(found(z), generator(z))
    assert not canary.exists()


def test_other_parts_of_a_file_are_read_too(tmp_path: Path, canary: Path) -> None:
    generator, judge = networks()
    write(tmp_path / "a.pkl", {"G_ema": generator, "D": judge}, 4, canary)
    found = read_pickle(tmp_path / "a.pkl")
    assert found["training_set_kwargs"]["path"] == "images.zip"
    part = found["G_ema"]
    assert isinstance(part, Persistent) and part.kind == "Generator" and "state" not in repr(part)
    assert part.state["weight_gain"] == pytest.approx(0.5 * np.sqrt(2))
    assert isinstance(part.state["_modules"]["mapping"].state["_buffers"]["w_avg"], Strided)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_every_type_and_stride(dtype: torch.dtype, tmp_path: Path) -> None:
    held = torch.arange(24).reshape(4, 6).to(dtype)
    views = {"whole": held, "part": held[1:3, ::2], "turned": held.T, "one": held[2, 3], "none": held[:0, 0]}
    for protocol in (3, 4):
        (tmp_path / "t.pkl").write_bytes(pickle.dumps(views, protocol=protocol))
        found = read_pickle(tmp_path / "t.pkl")
        for name, view in views.items():
            back = found[name].tensor()
            assert back.dtype == dtype and back.shape == view.shape and torch.equal(back, view), name


def test_a_file_without_a_discriminator_or_with_another_kind_of_one(tmp_path: Path, canary: Path) -> None:
    generator, judge = networks()
    write(tmp_path / "a.pkl", {"G_ema": generator}, 3, canary)
    assert read_networks(tmp_path / "a.pkl")[1] is None
    del judge.b4.out
    write(tmp_path / "b.pkl", {"G": generator, "D": judge}, 3, canary)
    found, left_out = read_networks(tmp_path / "b.pkl")
    assert left_out is None and found.shape.clamp is None


def test_networks_that_are_no_stylegan2_are_refused(tmp_path: Path, canary: Path) -> None:
    generator, judge = networks()
    path = tmp_path / "a.pkl"
    write(path, {"D": judge}, 3, canary)
    with pytest.raises(RecipeError, match="no network under G_ema or G"):
        read_networks(path)
    path.write_bytes(pickle.dumps(("G", "D", "Gs"), protocol=3))
    with pytest.raises(RecipeError, match="TensorFlow version hold a tuple"):
        read_networks(path)
    del generator.synthesis.b8.torgb
    write(path, {"G_ema": generator}, 3, canary)
    with pytest.raises(RecipeError, match=r"of G_ema .*, e.g. synthesis.b8.torgb"):
        read_networks(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_networks(tmp_path / "absent.pkl")
    told, _ = networks()
    told.mapping.embed = torch.nn.Linear(3, 8)
    write(path, {"G_ema": told}, 3, canary)
    with pytest.raises(RecipeError, match="told a class"):
        read_networks(path)


# ------------------------------------------------------------------------------------------------- hostile files

PROTO = b"\x80\x04"


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


def hostile(canary: Path) -> dict[str, tuple[bytes, str]]:
    """What each file is -> its bytes, and what the refusal names."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    persistent = "torch_utils.persistence._reconstruct_persistent_obj"
    bag = PROTO + name(persistent) + values({"type": "class", "class_name": "G", "state": {}}) + b"R"
    nested = stored(system=call("os.system", touch))
    doubled = PROTO + b")q\x00" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
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
        "persistent object without a state": (call(persistent, {"type": "class"}), persistent),
        "persistent object of a list": (call(persistent, [1]), persistent),
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


KINDS = sorted(hostile(Path("/nowhere")))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_refused_and_nothing_is_executed(kind: str, tmp_path: Path, canary: Path) -> None:
    content, named = hostile(canary)[kind]
    path = tmp_path / "hostile.pkl"
    path.write_bytes(content)
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(RecipeError, match=named) as caught:
            read_pickle(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "Nothing of it was executed" in str(caught.value) and len(str(caught.value)) < 1000
    assert not canary.exists()
    assert peak < 20_000_000 and time.process_time() - start < 5


def test_there_are_enough_kinds_and_plain_reading_would_execute_them(canary: Path) -> None:
    """The control: Python's own reader runs what ours refuses."""
    assert len(KINDS) > 60
    pickle.loads(hostile(canary)["exec"][0])
    assert canary.exists()


def test_the_source_in_a_file_would_run_where_it_is_executed(tmp_path: Path, canary: Path) -> None:
    """The control of the networks' files: their source leaves a trace."""
    generator, _ = networks()
    write(tmp_path / "a.pkl", {"G_ema": generator}, 4, canary)
    read_networks(tmp_path / "a.pkl")
    assert not canary.exists()
    carried = [argument for _, argument, _ in pickletools.genops((tmp_path / "a.pkl").read_bytes())]
    exec(next(text for text in carried if isinstance(text, str) and "pathlib" in text))
    assert canary.exists()


def test_a_memo_with_a_huge_index_takes_no_memory(tmp_path: Path) -> None:
    """Python's own reader makes a table of that length."""
    path = tmp_path / "a.pkl"
    path.write_bytes(PROTO + b"]r\xff\xff\xff\xffj\xff\xff\xff\xff0.".replace(b"0.", b"\x86."))
    tracemalloc.start()
    assert read_pickle(path) == ([], [])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_time_is_bounded_by_a_number_of_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deep nesting, many values, and a set that is made again and again count alike."""
    assert MOST_OPCODES == 2_000_000
    monkeypatch.setattr("unlearn.models.gan.stylegan2.pickles.MOST_OPCODES", 10_000)
    path = tmp_path / "a.pkl"
    again = PROTO + name("builtins.set") + b"q\x00" + values(list(range(200))) + b"q\x01R" + b"h\x00h\x01R" * 60
    for content in (PROTO + b"N" + b"\x85" * 20_000 + b".", PROTO + b"(" + b"N" * 20_000 + b"t.", again + b"."):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="more than 10,000 instructions"):
            read_pickle(path)


def test_nested_tuples_take_linear_time(tmp_path: Path) -> None:
    """A million of them, one in another, are read and let go."""
    path = tmp_path / "a.pkl"
    path.write_bytes(PROTO + b"N" + b"\x85" * 300_000 + b".")
    assert len(read_pickle(path)) == 1


def test_modules_in_one_another_and_tensors_that_repeat_are_refused(tmp_path: Path, canary: Path) -> None:
    """A module that holds itself; and one stored tensor under so many names that copies would fill the memory."""
    persistent = name("torch_utils.persistence._reconstruct_persistent_obj")
    path = tmp_path / "a.pkl"

    def network(parameters: bytes, modules: bytes) -> bytes:
        state = b"}(" + text("_parameters") + parameters + text("_modules") + modules + b"u"
        meta = b"}(" + text("type") + text("class") + text("class_name") + text("G") + text("state") + state + b"u"
        return PROTO + b"}" + text("G_ema") + persistent + meta + b"\x85Rs."

    path.write_bytes(network(b"}", b"}q\x05" + text("x") + b"h\x05s"))
    with pytest.raises(RecipeError, match="unknown kind"):
        read_networks(path)
    one = tensor(0, (6,), (1,), stored(6))[2:-1]
    many = b"}" + text("a") + one + b"q\x09s" + b"".join(text(f"w{i}") + b"h\x09s" for i in range(2000))
    path.write_bytes(network(many, b"}"))
    with pytest.raises(RecipeError, match="more values than the file"):
        read_networks(path)
    assert not canary.exists()


def test_the_list_is_short() -> None:
    """Of names that a file may use, none is of the language but the set."""
    assert len(ALLOWED) == 14
    assert {entry for entry in ALLOWED if "builtin" in entry} == {"builtins.set", "__builtin__.set"}
