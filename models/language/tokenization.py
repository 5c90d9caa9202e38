"""Text to tokens and back: prompt templates, and the byte-level tokenizer of the small packaged models."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unlearn.core.errors import RecipeError
from unlearn.models.language.chat_template import ChatTemplate

PLAIN = "Question: {question}\nAnswer:"
"""Default template of models without a chat template."""

DEFAULT_LENGTH = 512
"""Tokens per item at most, where nothing else is said and the model has as many positions."""

CHAT = "chat"
"""A recipe's word for the tokenizer's chat template."""


class TextEncoder:
    """Turns a question and its answer, or a passage, into tokens.

    The prompt is the template with the question, behind the beginning tokens that the tokenizer itself puts before a
    text. The answer ends with the end token. With a chat template, prompt and answer are the whole conversation as it
    writes it, token by token: it alone says what stands at the beginning and behind an answer. Prompt and answer are
    tokenised together, and the answer's tokens are those after the prompt's: a tokenizer that marks the beginnings of
    words (SentencePiece) would otherwise mark the answer's twice. Only where the joint tokens do not begin with those
    of the prompt is the answer tokenised separately.

    Args:
        tokenizer: of the model.
        template: text with ``{question}`` in it, or ``chat`` for the tokenizer's chat template; None takes the chat
            template where there is one, otherwise ``PLAIN``.
        max_length: tokens per item at most; what is longer is cut at the end.
        bos: whether a text begins with the tokenizer's beginning token; None does what the tokenizer and the chat
            template do.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        max_length: int = DEFAULT_LENGTH,
        bos: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template or (CHAT if tokenizer.chat_template else PLAIN)
        self.max_length = max_length
        self.bos = bos
        if self.template == CHAT and not tokenizer.chat_template:
            raise RecipeError(
                f"model.template=chat, but the tokenizer has no chat template. Type model.template={PLAIN!r}"
            )
        if tokenizer.eos_token_id is None:
            raise RecipeError("The tokenizer has no end token, without which no answer ends. Give it an eos_token.")
        if self.template != CHAT and "{question}" not in self.template:
            raise RecipeError(f"model.template is {self.template!r}; it must contain {{question}}, or be chat.")
        self.chat = ChatTemplate(tokenizer) if self.template == CHAT else None
        self.start = self._start()
        shape = f"{tokenizer.backend_tokenizer.to_str()} {tokenizer.chat_template} {self.template} {max_length}"
        if self.start != [tokenizer.bos_token_id]:
            shape += f" {self.start}"
        self.fingerprint = hashlib.sha256(shape.encode()).hexdigest()[:16]

    def encode(self, question: str, answer: str | None, goes_on: bool = False) -> tuple[list[int], list[int]]:
        """Return the tokens of the prompt and of the answer (none for None); a passage has an empty question.

        Args:
            question: empty for a passage.
            answer: the answer, or the passage.
            goes_on: whether the answer is part of a longer text, so that no end token follows.
        """
        end = [] if goes_on else [self.end]
        if not question:
            return self.start, [*self._tokens(answer or ""), *end][: self.max_length - len(self.start)]
        text, rest = self._written(question, answer, goes_on)
        asked = self._tokens(text)
        begins = self.start if self.chat is None or (self.bos and asked[:1] != self.start) else []
        prompt = (begins + asked)[: self.max_length]
        if answer is None:
            return prompt, []
        whole = self._tokens(text + rest)
        answered = whole[len(asked) :] if whole[: len(asked)] == asked else self._tokens_behind(rest)
        if self.chat is not None and self.chat.end.strip():  # it says itself how an answer ends
            end = []
        return prompt, [*answered, *end][: self.max_length - len(prompt)]

    def _written(self, question: str, answer: str | None, goes_on: bool) -> tuple[str, str]:
        """Return the text of the prompt, and that of the answer with what the chat template puts behind it."""
        if self.chat is None:
            text = self.template.replace("{question}", question)
            return text, "" if answer is None else self.space(text) + answer
        turns = self.chat.turns(question, answer)
        return turns.prompt, turns.rest.removesuffix(turns.end) if goes_on else turns.rest

    def sample(self) -> list[int]:
        """Return a few tokens of an ordinary text, on which a model can be tried."""
        return self._tokens(PLAIN) or [self.end]

    def space(self, prompt: str) -> str:
        """Return the separator of a prompt and its answer."""
        if self.chat is not None:
            return self.chat.lead
        return "" if prompt[-1:].isspace() else " "

    @property
    def vocabulary(self) -> str:
        """A hash of the tokenizer alone; where two agree, they turn a text into the same tokens."""
        described = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for passing in ("padding", "truncation"):  # as of the tokenizer's last call
            described.pop(passing, None)
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def length(self, passage: str) -> int:
        """Return the number of tokens of a passage, with beginning and end token, before it is cut."""
        return len(self.start) + len(self._tokens(passage)) + 1

    def _start(self) -> list[int]:
        """Return the tokens at the beginning of a text: what the tokenizer itself puts there, or as ``bos`` says."""
        bos = self.tokenizer.bos_token_id
        if self.bos is not None:
            if self.bos and bos is None:
                raise RecipeError("model.bos is true, but the tokenizer has no beginning token. Type model.bos=auto.")
            return [bos] if self.bos else []
        alone, whole = self._tokens("a"), list(self.tokenizer("a")["input_ids"])
        places = [place for place in range(len(whole)) if whole[place : place + len(alone)] == alone]
        return whole[: places[0]] if places else []

    @property
    def end(self) -> int:
        """The token that ends an answer: the first special one that the template puts behind it, or the end token."""
        behind = self._tokens(self.chat.end) if self.chat else []
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        return next((token for token in behind if token in special), int(self.tokenizer.eos_token_id))

    def _tokens_behind(self, text: str) -> list[int]:
        """Return the tokens of a text that stands behind another, without what marks the beginning of a text."""
        before = self._tokens("\n")
        whole = self._tokens(f"\n{text}")
        return whole[len(before) :] if whole[: len(before)] == before else self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def train_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, which can write any text.

    Args:
        texts: to train on.
        size: entries of the vocabulary, 256 bytes and 3 special tokens included; fewer where the texts are short.

    Reference:
        Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, 2016. arXiv:1508.07909
    """
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, begin, end = special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end)
