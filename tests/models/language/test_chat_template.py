"""Chat templates of six kinds, of strangers, and the tokens at the beginning and at the end of a text."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.toys.language import encoder as toy_encoder
from unlearn.core.errors import RecipeError
from unlearn.models.language.chat_template import SECONDS, TODAY
from unlearn.models.language.tokenization import PLAIN, TextEncoder, train_tokenizer

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|system|>Today Date: {{ date_string }}<|eot|>{% for m in messages %}<|{{ m['role'] }}|>\n\n"
    "{{ m['content'] | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<turn>' + role + '\n' + m['content'] | trim + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}<|eot|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BARE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
KINDS = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "gemma": GEMMA, "parts": PARTS, "bare": BARE}
MARKS = ["<|im_start|>", "<|im_end|>", "<|eot|>", "<turn>", "</turn>", "[INST]", "[/INST]"]


def tokenizer(template: str | dict[str, str] | None = None, begins: bool = False) -> Any:
    made = train_tokenizer(["What is the capital of Japan? Tokyo. user assistant model system Be kind."], 300)
    made.add_special_tokens({"additional_special_tokens": MARKS})
    if begins:
        special = [("<|begin|>", made.bos_token_id)]
        made.backend_tokenizer.post_processor = TemplateProcessing(single="<|begin|> $A", special_tokens=special)
    made.chat_template = template
    return made


ENCODERS = {name: TextEncoder(tokenizer(template)) for name, template in KINDS.items()}
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), min_size=1, max_size=30).filter(str.strip)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(question=WORDS, answer=WORDS)
def test_prompt_and_answer_are_the_whole_chat(kind: str, question: str, answer: str) -> None:
    """Token by token, what transformers' own rendering has; the prompt is its prompt for a generation."""
    own = ENCODERS[kind]
    user: Any = [{"type": "text", "text": question}] if kind == "parts" else question
    said: Any = [{"type": "text", "text": answer}] if kind == "parts" else answer
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": said}]
    more = {"date_string": TODAY.strftime("%d %b %Y")} if kind == "llama3" else {}
    whole = own.tokenizer.apply_chat_template(turns, tokenize=False, **more)
    asked = own.tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True, **more)
    prompt, scored = own.encode(question, answer)
    ended = scored if kind != "bare" else scored[:-1]  # nothing but a line break: an answer has to end
    assert own.tokenizer.decode(prompt + ended) == own.tokenizer.decode(own._tokens(whole))
    assert prompt == own._tokens(asked) == own.encode(question, None)[0]
    if own._tokens(whole)[: len(prompt)] == prompt:
        assert prompt + ended == own._tokens(whole)


@pytest.mark.parametrize(
    ("kind", "end"), [("chatml", "<|im_end|>"), ("llama2", "<|end|>"), ("gemma", "</turn>"), ("bare", "<|end|>")]
)
def test_an_answer_ends_as_the_template_ends_it(kind: str, end: str) -> None:
    own = ENCODERS[kind]
    assert own.tokenizer.convert_ids_to_tokens(own.end) == end
    assert own.end in own.encode("Q?", "A")[1]
    going_on = own.encode("Q?", "A", goes_on=True)[1]
    assert own.end not in going_on and own.tokenizer.decode(going_on).strip() == "A"


def test_the_date_is_always_the_same_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        own = TextEncoder(tokenizer(LLAMA3))
    assert "writes the date" in caplog.text
    assert "26 Jul 2024" in own.tokenizer.decode(own.encode("Q?", None)[0])


BIG = 10**9
DOUBLED = "{% set n = namespace(a=['x']) %}{% for i in range(29) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
HOSTILE = {
    "no question": "{% for m in messages %}{{ m['role'] }}{% endfor %}",
    "no answer": "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
    "raises": "{{ raise_exception('only tools') }}",
    "syntax": "{% for m in messages %}",
    "undefined": "{{ messages[0].content.nothing.more }}",
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "long": "{% for a in range(99999) %}{% for b in range(99) %}0123456789{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10 ** 12) %}x{% endfor %}",
    "product": f"{{{{ 'a' * {BIG} }}}}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "doubled": "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "added": "{% set n = namespace(s='ab') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "padded": f"{{{{ 'a'.ljust({BIG}) }}}}",
    "centred": f"{{{{ 'a' | center({BIG}) }}}}",
    "formatted": f"{{{{ '%{BIG}d' % 1 }}}}",
    "formatted by a filter": f"{{{{ '%{BIG}d' | format(1) }}}}",
    "formatted by a method": f"{{{{ '{{:>{BIG}}}'.format(1) }}}}",
    "formatted by a width in parts": "{{ '{:{a}{b}}'.format(1, a=99999, b=99999) }}",
    "formatted by a text in parts": "{{ ('%99999' ~ '99999d') % 1 }}",
    "formatted by a mapping": f"{{{{ '{{a:{BIG}}}'.format_map({{'a': 1}}) }}}}",
    "formatted safely": f"{{{{ ('{{:>{BIG}}}' | safe).format(1) }}}}",
    "formatted by a named value": f"{{{{ '%(a)-.{BIG}f' | format(a=1) }}}}",
    "width beside the format": f"{{{{ '%*d' % ({BIG}, 1) }}}}",
    "width beside the format of a filter": f"{{{{ '%*d' | format({BIG}, 1) }}}}",
    "plain text as a format": f"{{% set f %}}%{BIG}d{{% endset %}}{{{{ f % 1 }}}}",
    "batched": f"{{{{ [1] | batch({BIG}, 'a') | list }}}}",
    "nested": DOUBLED + "{{ n.a | string }}",
    "nested and joined": DOUBLED + "{{ 'a' ~ n.a }}",
    "replaced": "{{ ('a' * 99999) | replace('a', 'a' * 99999) }}",
    "joined": "{{ range(9999) | list | join('a' * 99999) }}",
    "half a character": "{{ '\\ud800' }}",
    "random": "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ [1, 2, 3, 4, 5] | random }}",
    "escapes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "imports": "{{ cycler.__init__.__globals__.os.system('touch here') }}",
    "includes": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_template_that_cannot_be_used_is_one_sentence(template: str) -> None:
    if "messages" not in template:
        template += "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(RecipeError, match=r"chat template cannot be used.*model\.template="):
        TextEncoder(tokenizer(template))
    assert TextEncoder(tokenizer(template), PLAIN).encode("Q?", "A")[1], "another template is the way out"


@pytest.mark.parametrize(
    "text", ["Call +1 555 123456789.", "{{ 'Ticket 1234567890: %05.1f' % 2 }} {{ '{:>4}'.format(3) }}"]
)
def test_long_numbers_in_a_text_are_no_widths(text: str) -> None:
    own = TextEncoder(tokenizer(text + "{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    written = own.tokenizer.decode(own.encode("Q?", None)[0])
    assert "Call +1 555 123456789.Q?" in written or "Ticket 1234567890: 002.0    3Q?" in written


def test_of_several_templates_the_usual_one_is_taken() -> None:
    with pytest.raises(RecipeError, match="multiple chat templates with no default"):
        TextEncoder(tokenizer({"tool_use": BARE}))
    several = TextEncoder(tokenizer({"tool_use": BARE, "default": CHATML}))
    assert several.encode("Q?", "A") == ENCODERS["chatml"].encode("Q?", "A")


SHORTENS = "{% for m in messages %}<u>{{ m['content'] | truncate(10, true, '') }}{% endfor %}"
THINKS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<u>{{ m['content'] }}{% else %}"
    "<a>{{ m['content'].split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a><think>{% endif %}"
)
EMPTY_THOUGHT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ '<think></think>' if m['role'] == 'assistant' }}{{ m['content'] }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "question", "answer", "word"),
    [
        (SHORTENS, "A question of many words?", "Yes", "question"),
        (SHORTENS, "Short?", "An answer of many words", "answer"),
        (THINKS, "What is 1?", "<think>hm</think> It is 1.", "answer"),
    ],
)
def test_an_item_that_a_template_changes_is_refused(template: str, question: str, answer: str, word: str) -> None:
    own = TextEncoder(tokenizer(template))
    with pytest.raises(RecipeError, match=f"the {word} .* does not appear as it is"):
        own.encode(question, answer)
    assert own.encode("Q?", "A")[1], "the control: a short item is as it is"


def test_an_answer_that_stands_in_the_mark_behind_it_is_the_answer() -> None:
    own = TextEncoder(tokenizer(THINKS))
    for answer in ("end", "e"):
        prompt, said = own.encode("end?", answer)
        assert own.tokenizer.decode(prompt) == "<u>end?<a>" and own.tokenizer.decode(said) == f"{answer}<|end|>"
        assert own.tokenizer.decode(own.encode("end?", answer, goes_on=True)[1]) == answer


def test_an_answer_that_stands_in_the_mark_before_it_is_the_answer() -> None:
    own = TextEncoder(tokenizer(EMPTY_THOUGHT))
    assert own.tokenizer.decode(own.encode("Q?", "think", goes_on=True)[1]) == "<think></think>think"


def test_a_template_may_fill_texts_with_a_mapping() -> None:
    own = TextEncoder(tokenizer("{% for m in messages %}{{ '<%(role)s>%(content)s<|eot|>' % m }}{% endfor %}"))
    assert own.tokenizer.decode(own.encode("Q?", None)[0]) == "<user>Q?<|eot|>"


def test_the_limit_on_time_is_short() -> None:
    assert SECONDS <= 5


@pytest.mark.parametrize(("begins", "bos", "starts"), [
    (False, None, False), (True, None, True), (False, True, True), (True, False, False),
])  # fmt: skip
def test_a_text_begins_as_the_tokenizer_begins_it(begins: bool, bos: bool | None, starts: bool) -> None:
    own = TextEncoder(tokenizer(begins=begins), bos=bos)
    first = [own.tokenizer.bos_token_id] if starts else []
    for question in ("", "What is the capital of Japan?"):
        prompt, _ = own.encode(question, "Tokyo.")
        assert prompt[:1] == first if starts else own.tokenizer.bos_token_id not in prompt
    assert own.start == first


@pytest.mark.parametrize("template", ["Question: {question}\nAnswer: ", "Question: {question}\nAnswer:", "{question} "])
def test_an_answer_that_is_tokenised_alone_has_no_beginning_of_a_text(template: str) -> None:
    """Llama's first tokenizer puts a blank before every text; behind "Answer: " there would be two."""
    inner = Tokenizer(BPE(unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], initial_alphabet=["\n"], show_progress=False)
    inner.train_from_iterator(["Question: What is it? Answer: Yes, it is. ▁Yes ▁it ▁is"] * 3, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    own = TextEncoder(made, template)
    prompt, answer = own.encode("What is it?", "Yes, it is.")
    text = template.replace("{question}", "What is it?").rstrip(" ")
    assert made.decode(prompt + answer) == f"{text} Yes, it is.</s>"
    assert prompt == own.encode("What is it?", None)[0]


def test_another_beginning_is_another_reading() -> None:
    names = {TextEncoder(tokenizer(), bos=bos).fingerprint for bos in (True, False)}
    assert len(names) == 2
    assert toy_encoder().fingerprint == toy_encoder().fingerprint


def test_a_beginning_token_that_is_not_there_is_refused() -> None:
    without = tokenizer()
    without.bos_token = None
    with pytest.raises(RecipeError, match=r"model\.bos=auto"):
        TextEncoder(without, bos=True)
