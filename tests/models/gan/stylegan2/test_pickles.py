"""The reader of public files: weights come out, and nothing in a file is executed."""

import pickle
import pickletools
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys.hostile_pickles import PROTO, hostile, name, stored, tensor, text, values
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
        for key, view in views.items():
            back = found[key].tensor()
            assert back.dtype == dtype and back.shape == view.shape and torch.equal(back, view), key


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
    with pytest.raises(RecipeError, match="conditioned on a class"):
        read_networks(path)


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
    assert len(KINDS) > 80
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
    path.write_bytes(network(b"}" + text("w" * 101) + one + b"s", b"}"))  # which many modules could share
    with pytest.raises(RecipeError, match="100 characters"):
        read_networks(path)
    assert not canary.exists()


def test_the_list_is_short() -> None:
    """Of names that a file may use, none is of the language but the set."""
    assert len(ALLOWED) == 14
    assert {entry for entry in ALLOWED if "builtin" in entry} == {"builtins.set", "__builtin__.set"}
