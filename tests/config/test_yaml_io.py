"""Values stay the text that was written, and no document is too clever."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearn.config.yaml_io import dump, from_python, inline, parse
from unlearn.core.errors import RecipeError

TRAPS = [
    "no",
    "yes",
    "on",
    "off",
    "y",
    "1:30",
    "012",
    "0x10",
    "1_000",
    "1e3",
    ".5",
    "2024-01-01",
    "true",
    "=",
    "NULL",
    "nan",
]


@pytest.mark.parametrize("trap", TRAPS)
def test_a_value_means_itself(trap: str) -> None:
    assert parse(f"a: {trap}\nb: [{trap}]\n{trap}: c", "f") == {"a": trap, "b": [trap], trap: "c"}


def test_the_traps_are_traps() -> None:
    """The control: the plain reader changes most of them."""
    changed = [trap for trap in TRAPS if trap != "=" and yaml.safe_load(f"[{trap}]") != [trap]]
    assert len(changed) >= 10


@pytest.mark.parametrize("text", ["", "null", "~", "# only a comment"])
def test_null_is_none_only_unquoted(text: str) -> None:
    assert parse(text, "f") is None
    assert parse(f"a: {text}", "f") == {"a": None}


@pytest.mark.parametrize("text", ["''", '"null"', "'~'", "|-\n  null"])
def test_quoted_null_is_text(text: str) -> None:
    assert parse(f"a: {text}", "f")["a"] in ("", "null", "~")


def test_an_alias_is_a_copy_of_its_own() -> None:
    tree = parse("a: &x [1]\nb: *x", "f")
    assert tree == {"a": ["1"], "b": ["1"]} and tree["a"] is not tree["b"]


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "f, line 2: the key 'a' .* remove one"),
        ("a: {b: 1, b: 2}", "the key 'b' .* remove one"),
        ("a: &x [*x]", "too large"),
        ("a: *nothing", "undefined alias"),
        (LAUGHS, "too large"),
        ("[" * 50_000, "nested over"),
        ("{a: " * 5_000, "nested over"),
        ("- " * 5_000, "nested over"),
        ("a: !!python/object:os.system ls", "the tag .* is not allowed"),
        ("a: !mine 3", "the tag !mine is not allowed"),
        ("<<: {a: 1}", "merge keys"),
        ("? [a]\n: 1", r"a key must be text, not \['a'\]"),
        ("null: 1", "a key must be text, not null"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: [1", "is no valid YAML"),
        ("a: 'x", "is no valid YAML"),
        ("\x00", "is no valid YAML"),
        ("a: \ud800", "is no valid YAML"),
        ("%YAML 7.0\n---\na: 1", "is no valid YAML"),
        ("x" * 300_000, "characters are too many"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(text, "f")


def test_python_values_are_what_a_recipe_would_say() -> None:
    values = {"a": 1, "b": [True, 2.5, None, "no"], "c": {"d": (1e-6,)}, 3: False}
    assert from_python(values, "r") == {"a": "1", "b": ["true", "2.5", None, "no"], "c": {"d": ["1e-06"]}, "3": "false"}


def circle() -> dict[str, object]:
    tree: dict[str, object] = {}
    tree["a"] = tree["b"] = [tree, tree]
    return tree


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": object()}, "r.a is a object"),
        ({"a": b"x"}, "r.a is a bytes"),
        ({"a": 2**70}, "too large"),
        ({None: 1}, "a key must be text"),
        ({"": 1}, "a key must be text"),
        (circle(), "is too large for a recipe"),
    ],
)
def test_python_values_that_no_recipe_holds(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_python(value, "r")


# YAML 1.1 writes 1e-6 as 1.0e-6: the same number, but other text
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: "." in repr(number))
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12), st.sampled_from([*TRAPS, "", "null", "~", "a: b", "- x", "#"])
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    FLOATS,
    TEXT,
)
KEYS = TEXT.filter(lambda key: key not in ("", "<<"))
TREES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
    ),
    max_size=4,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES)
def test_what_is_written_is_read_again(tree: dict[str, object]) -> None:
    """Both by this reader, as text, and by any YAML 1.1 reader, with the same types."""
    text = dump(tree)
    assert parse(text, "f") == (from_python(tree, "r") or None)
    assert (yaml.safe_load(text) or {}) == tree


def test_comments_stand_in_one_column() -> None:
    text = dump({"a": {"b": 1, "c": [1, 2]}, "d": "x"}, {"a.b": "default", "a.c": "file", "d": "command line"})
    assert text == "a:\n  b: 1       # default\n  c: [1, 2]  # file\nd: x         # command line\n"


def test_inline() -> None:
    assert [inline(value) for value in (None, True, "true", 1, "1", 1e-6, "a b", "a\nb", {"k": [1]})] == [
        "null", "true", "'true'", "1", "'1'", "1.0e-06", "a b", '"a\\nb"', "{k: [1]}",
    ]  # fmt: skip
