"""Renders the chat templates of tokenizers: programs of strangers, in a sandbox with limits on time and size."""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, update_wrapper
from types import FrameType
from typing import Any, Self, TypeVar, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from typing_extensions import override

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError, shorten

SECONDS = 2.0
"""Longest time that one conversation may take."""
MOST = 1_000_000
"""Most characters of a text, and largest number that a template may hand to a function."""
TODAY = datetime(2024, 7, 26)
"""The date that templates see: a text that changes from day to day would be another one after training."""

Message = dict[str, Any]
T = TypeVar("T")
log = logging.getLogger(__name__)


class _Generator(CodeGenerator):
    """Lets the environment join texts (``~``), so that their size is limited."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """Reads the block ``{% generation %}``, by which transformers marks what an assistant says."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Formatter(SandboxedFormatter):
    """Formats texts whose widths and precisions are small, whichever parts they are put together of."""

    @override
    def format_field(self, value: Any, format_spec: str) -> Any:
        _refuse_large_numbers(format_spec)
        return super().format_field(value, format_spec)


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, in which nothing large can be made."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters = {name: self._limited(name, made) for name, made in self.filters.items()}
        self.filters["tojson"] = _to_json
        del self.filters["random"]  # a prompt is the same whenever it is written
        self.globals["raise_exception"] = _refuse
        self.wrote_date = False
        self.globals["strftime_now"] = self._now

    def _now(self, form: str) -> str:
        self.wrote_date = True
        return TODAY.strftime(form)

    def joined(self, parts: Sequence[Any]) -> str:
        """Return texts joined."""
        return _small("".join(str(_small(part)) for part in parts))

    @override
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple | dict) else abs(side) for side in (left, right)]
        product = sizes[0] * sizes[1] if operator in "**" else sum(sizes)
        if product > MOST:
            raise SecurityError(f"{operator} would make something of size {product:,}")
        if operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return super().call_binop(context, operator, left, right)

    @override
    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _small(value)
        return _small(super().call(__context, __obj, *args, **kwargs))

    @override
    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        made = super().wrap_str_format(value)
        if made is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            named = args[0] if value.__name__ == "format_map" else kwargs
            _Formatter(self).vformat(value.__self__, args, named)
            return made(*args, **kwargs)

        return update_wrapper(limited, value)

    def _limited(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that takes and returns nothing large; marks that jinja2 reads off a filter stay."""

        def limited(*args: Any, **kwargs: Any) -> Any:
            given = [
                _small(value) for value in (*args, *kwargs.values()) if isinstance(value, str | list | tuple | int)
            ]
            sizes = [len(value) for value in given if not isinstance(value, int)]
            if name == "format":
                _check_format(str(args[0]), (*args[1:], kwargs))
            if name in ("replace", "join") and math.prod(size + 1 for size in sizes) > 100 * MOST:
                raise SecurityError(f"{name} would make something too large")
            return _small(made(*args, **kwargs))

        limited.__dict__.update(getattr(made, "__dict__", {}))
        return limited


def _small(value: T) -> T:
    """Return a value. Raises SecurityError for one that is large with all that it holds, or a large number."""
    size, waiting = 0.0, [cast(Any, value)]
    while waiting and size <= MOST:
        one = waiting.pop()
        size += len(one) + 1 if isinstance(one, str) else abs(one) if isinstance(one, int | float) else 1
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            waiting += one
    if size > MOST:
        raise SecurityError("something is too large")
    return value


def _check_format(text: str, values: Any) -> None:
    """Refuse a text that ``%`` formats with a large width or precision: in the text, or a value that it names by *."""
    for begun in re.findall(r"[%)]([-#0 +.*\d]+)", text):  # what follows the sign, or the name in parentheses
        _refuse_large_numbers(begun)
    _small(values)


def _refuse_large_numbers(form: str) -> None:
    if any(len(digits.lstrip("0")) >= len(str(MOST)) for digits in re.findall(r"\d+", form)):
        raise SecurityError(f"the format {shorten(form)} would make something too large")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    """Return JSON without the escapes of HTML, as transformers does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)


def _refuse(message: str) -> None:
    raise TemplateError(message)


@contextmanager
def _timed() -> Iterator[None]:
    """End the body, Python code, after ``SECONDS``."""
    deadline = time.monotonic() + SECONDS

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not end within {SECONDS:g} s")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


@dataclass(frozen=True)
class Turns:
    """A question, or a question with its answer, as a chat template writes them.

    Args:
        prompt: everything before the answer.
        rest: the answer and what the template puts behind it; empty without an answer.
        end: what it puts behind it.
    """

    prompt: str
    rest: str = ""
    end: str = ""


class ChatTemplate:
    """A tokenizer's chat template, tried with a question and an answer that cannot be mistaken.

    Args:
        tokenizer: of transformers, with a chat template.

    Raises:
        RecipeError: it raises an error, does not end, or leaves out the question or the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            self.source = str(tokenizer.get_chat_template())
        except ValueError as error:  # several by name, and none of them the usual one
            raise self._error(described(error)) from error
        self._special = dict(tokenizer.special_tokens_map)
        self._environment = _Environment()
        question, answer = "Qxq7Zk", "Axa7Zk"
        self._in_parts = False
        if question not in self._text([("user", question)], True):
            self._in_parts = True  # a template that walks over the parts of a content takes a plain text for none
            if question not in self._text([("user", question)], True):
                raise self._error("the question does not appear in what it writes")
        if answer not in self._text([("user", question), ("assistant", answer)], False):
            raise self._error("the answer does not appear in what it writes")
        self.lead = self.end = ""
        """What stands between a prompt and its answer, and behind the answer."""
        tried = self.turns(question, answer)
        self.lead, self.end = tried.rest.partition(answer)[0], tried.end
        if self._environment.wrote_date:
            log.warning("The chat template writes the date; every prompt has %s.", TODAY.strftime("%d %B %Y"))

    def turns(self, question: str, answer: str | None = None) -> Turns:
        """Return how the template writes a question, and its answer if there is one."""
        asked = self._text([("user", question)], True)
        if question.strip() not in asked:  # templates strip contents
            raise self._error(f"the question {shorten(question)} does not appear as it is in what it writes")
        if answer is None:
            return Turns(asked)
        whole, said = self._text([("user", question), ("assistant", answer)], False), answer.strip()
        # an answer may stand in the question too, and in the marks before and behind it
        if whole.endswith(said + self.end):
            place = len(whole) - len(said + self.end)
        else:
            place = whole.find(said, len(asked)) if whole.startswith(asked) else whole.rfind(said)
        if place < 0:
            raise self._error(f"the answer {shorten(answer)} does not appear as it is in what it writes")
        prompt = asked if whole.startswith(asked) else whole[:place]
        return Turns(prompt, whole[len(prompt) :], whole[place + len(said) :])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: it does not change, and compiled templates cannot be copied."""
        return self

    @cached_property
    def _template(self) -> Any:
        return self._environment.from_string(self.source)

    def _text(self, turns: Sequence[tuple[str, str]], add_generation_prompt: bool) -> str:
        messages: list[Message] = [
            {"role": role, "content": [{"type": "text", "text": text}] if self._in_parts else text}
            for role, text in turns
        ]
        given = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **self._special}
        text = ""
        try:
            with _timed():
                for part in self._template.generate(messages=messages, **given):
                    text = _small(text + part)
                text.encode()  # a lone half of a character is none
        except Exception as error:  # a template may raise anything, and so may the libraries under it
            raise self._error(described(error)) from error
        return text

    def _error(self, why: str) -> RecipeError:
        return RecipeError(
            f"The tokenizer's chat template cannot be used: {why}. Type "
            "model.template='Question: {question}\\nAnswer:', or another text with {question} in it."
        )
