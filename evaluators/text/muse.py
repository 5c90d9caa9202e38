"""Verbatim and knowledge memorisation as MUSE defines them, generated in batches."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import PositiveInt
from unlearn.data.text import TextDataset
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import add_items, limited, without_traps
from unlearn.evaluators.text.generation import continuations, generated
from unlearn.evaluators.text.metrics import rouge_l
from unlearn.evaluators.text.scoring import DIRECTIONS, measured_splits, texts
from unlearn.models.capabilities import TokenizedLanguageModel

VERBATIM_MEMORIZATION = Metric(
    name="verbatim_memorization",
    label="verbatim memorization",
    formula="mean over passages of the ROUGE-L F1 of their greedy continuation, `verbatim_tokens` tokens, against "
    "how they go on. 0 ... 1 (MUSE writes it times 100)",
    unit="share",
    direction=DIRECTIONS,
    source="Shi et al. 2024 (MUSE), section 3.1",
)
KNOWLEDGE_MEMORIZATION = Metric(
    name="knowledge_memorization",
    label="knowledge memorization",
    formula="mean over questions of the ROUGE-L F1 of the greedy answer, `knowledge_tokens` tokens, cut at a blank "
    "line or another question. 0 ... 1 (MUSE writes it times 100)",
    unit="share",
    direction=DIRECTIONS,
    source="Shi et al. 2024 (MUSE), section 3.1",
)
UTILITY = Metric(
    name="utility",
    label="utility",
    formula="`knowledge_memorization` on retain",
    unit="share",
    direction="higher",
    source="Shi et al. 2024 (MUSE), section 3.1",
)
VERBATIM = "verbmem"
"""Attribute of items whose question is the beginning of a passage, and whose answer is the rest."""

KNOWLEDGE = "knowmem"
"""Prefix of the attribute of questions about a split (``knowmem_forget``), and of the data's examples for them."""

STOPS = re.compile(r"\n\n|\nQuestion|Question:")
"""Where an answer is cut."""


class PromptSet(NamedTuple):
    """Items of a split (n,), their prompts as tokens, and the right continuations.

    ``tokens`` is None for the model's own prompt format.
    """

    split: str
    ids: Tensor
    tokens: list[list[int]] | None
    truths: list[str]


@dataclass(frozen=True, kw_only=True)
class MuseMetrics(Evaluator[TokenizedLanguageModel]):
    """ROUGE-L F1 of greedy generations: continued passages, and answered questions.

    verbatim_memorization continues the beginnings of passages: those that the data give (attribute ``verbmem``), or
    the first ``prompt_tokens`` tokens of each passage of a split; the truth is cut to ``verbatim_tokens`` tokens.
    knowledge_memorization answers questions: those that the data give (``knowmem_forget``, ``knowmem_retain``) after
    their examples, in MUSE's wording, or the questions of a split in the model's own prompt format; an answer is cut at
    a blank line or at another question. Intervals are over items.

    Args:
        items: at most this many items per split, drawn by the seed; null takes all.
        prompt_tokens: tokens of a passage in the prompt, where the data gives none.
        verbatim_tokens: tokens of a continuation.
        knowledge_tokens: tokens of an answer.
        batch_size: prompts at once, of similar length; does not change the result.

    Reference:
        Shi et al., MUSE: Machine Unlearning Six-Way Evaluation for Language Models, 2024, section 3.1.
        arXiv:2407.06460
    """

    items: PositiveInt | None = 100
    prompt_tokens: PositiveInt = 32
    verbatim_tokens: PositiveInt = 128
    knowledge_tokens: PositiveInt = 32
    batch_size: PositiveInt = 32

    metrics: ClassVar = (VERBATIM_MEMORIZATION, KNOWLEDGE_MEMORIZATION, UTILITY)

    @override
    def __call__(self, evaluation: Evaluation[TokenizedLanguageModel]) -> EvaluationResult:
        findings = EvaluationResult()
        for subject, model in evaluation.models.items():
            for prompts in self.verbatim(evaluation, model):
                scores = f1_of(prompts, model.text(self._said(evaluation, subject, prompts, self.verbatim_tokens)))
                add_items(findings, evaluation, VERBATIM_MEMORIZATION, subject, prompts.split, prompts.ids, scores)
            for prompts in self.knowledge(evaluation, model):
                said = self._said(evaluation, subject, prompts, self.knowledge_tokens)
                scores = f1_of(prompts, answers_of(model, said))
                add_items(findings, evaluation, KNOWLEDGE_MEMORIZATION, subject, prompts.split, prompts.ids, scores)
                if prompts.split == "retain":
                    add_items(findings, evaluation, UTILITY, subject, prompts.split, prompts.ids, scores)
        measured = {record.metric for record in findings.records}
        for metric, lacking in (
            ("verbatim_memorization", f"passages of more than {self.prompt_tokens} tokens"),
            ("knowledge_memorization", "questions"),
        ):
            if metric not in measured:
                findings.notes.append(f"muse: the data have no {lacking}, so there is no {metric}.")
        return findings

    def verbatim(
        self, evaluation: Evaluation[TokenizedLanguageModel], model: TokenizedLanguageModel
    ) -> Iterator[PromptSet]:
        """Yield the beginnings of passages and their continuations."""
        data = texts(evaluation.splits["forget"])
        given = data.having([VERBATIM]).nonzero().flatten()
        for split in ["forget"] if len(given) else measured_splits(evaluation):
            ids = given if len(given) else self._passages(data, without_traps(evaluation.splits[split]))
            ids = limited(ids, self.items, evaluation.seed, f"{VERBATIM}/{split}")
            if len(given):
                pairs = [data.words(item) for item in ids.tolist()]
                halves = [(tokens_of(model, begun), tokens_of(model, rest, begins=False)) for begun, rest in pairs]
            else:
                whole = [prompt + answer for prompt, answer in map(data.tokens, ids.tolist())]
                halves = [(tokens[: self.prompt_tokens], tokens[self.prompt_tokens :]) for tokens in whole]
            truths = [model.text(torch.tensor([rest[: self.verbatim_tokens]]))[0] for _, rest in halves]
            if len(ids):
                yield PromptSet(split, ids, [begun for begun, _ in halves], truths)

    def knowledge(
        self, evaluation: Evaluation[TokenizedLanguageModel], model: TokenizedLanguageModel
    ) -> Iterator[PromptSet]:
        """Yield questions: those that the data gives, after their examples, or those of the splits."""
        data = texts(evaluation.splits["forget"])
        asked = data.having_form("prompt") & ~data.having([VERBATIM])
        given = {split: data.having([f"{KNOWLEDGE}_{split}"]).nonzero().flatten() for split in DIRECTIONS}
        by_data = any(len(ids) for ids in given.values())
        for split in DIRECTIONS if by_data else measured_splits(evaluation):
            ids = given[split] if by_data else without_traps(evaluation.splits[split])
            ids = limited(ids[asked[ids]], self.items, evaluation.seed, f"{KNOWLEDGE}/{split}")
            pairs = [data.words(item) for item in ids.tolist()]
            tokens = None
            if by_data:
                shown = data.in_context.get(f"{KNOWLEDGE}_{split}", ())
                before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in shown)
                prompts = [f"{before}Question: {question}\nAnswer: " for question, _ in pairs]
                tokens = [tokens_of(model, prompt) for prompt in prompts]
            if len(ids):
                yield PromptSet(split, ids, tokens, [answer for _, answer in pairs])

    def _passages(self, data: TextDataset, ids: Tensor) -> Tensor:
        """Return the passages among items (n,) with more tokens than the prompt takes."""
        found = ids[~data.having_form("prompt")[ids]].tolist()
        # one more for the end token, which is no text
        long = [item for item in found if sum(map(len, data.tokens(item))) > self.prompt_tokens + 1]
        return torch.tensor(long, dtype=torch.int64)

    def _said(
        self, evaluation: Evaluation[TokenizedLanguageModel], subject: str, prompts: PromptSet, new_tokens: int
    ) -> Tensor:
        """Return the generated tokens, (n, new_tokens); for its own prompts from the pass that evaluators share."""
        if prompts.tokens is None:
            return generated(evaluation, subject, prompts.split, prompts.ids, new_tokens, batch_size=self.batch_size)
        model = evaluation.models[subject]
        return continuations(model, prompts.tokens, new_tokens, evaluation.device, self.batch_size)


def tokens_of(model: TokenizedLanguageModel, text: str, begins: bool = True) -> list[int]:
    """Return the tokens of a text, after the model's start token, if it has one, where the text ``begins``."""
    tokens = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    start = model.tokenizer.bos_token_id
    return [start, *tokens] if begins and start is not None else tokens


def until_stop(text: str) -> str:
    """Return the text before the first blank line or further question."""
    return STOPS.split(text, maxsplit=1)[0]


def answers_of(model: TokenizedLanguageModel, tokens: Tensor) -> list[str]:
    """Return generated tokens (n, T) as text up to the first stop, white space included, as it may be one."""
    rows = [[token for token in row if token >= 0] for row in tokens.tolist()]
    return [until_stop(model.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]


def f1_of(prompts: PromptSet, said: list[str]) -> Tensor:
    """Return the ROUGE-L F1 of generated texts against the right continuations, (n,) float64."""
    pairs = zip(prompts.truths, said, strict=True)
    return torch.tensor([rouge_l(truth, text, stemmer=False)[1] for truth, text in pairs], dtype=torch.float64)
