"""The base of attacks on diffusion models: search other words, then classify the samples."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Batch, Split
from unlearn.data.concept import Mention
from unlearn.data.conditioned import Classes, Conditioned
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator
from unlearn.evaluators.image.concept_classifier import ConceptClassifier, concept_classifier
from unlearn.evaluators.sampling import conditioned_data, drawn, sampled_clusters, sampled_items
from unlearn.models.base import frozen
from unlearn.models.diffusion.protocols import PromptableDenoiser


@dataclass(frozen=True, kw_only=True)
class PromptSearch(Evaluator[PromptableDenoiser]):
    """Searches other words (or a class) for the forgotten concept, samples with them, and classifies the samples.

    The figure is the share of samples in which the classifier sees the concept. A model that never saw the concept is
    attacked with the same budget: what the attack finds in it comes from the budget, not from the data. One-step
    generators have no scores to attack, and are skipped.

    Args:
        samples: samples per subject, conditioned on forget items, from the same noise as in every other evaluator.
        features: feature net that classifies samples: packaged, or the folder of one; by default what fits the data.
        batch_size: samples drawn at once; does not change the result.
    """

    samples: PositiveInt = 100
    features: str | None = None
    batch_size: PositiveInt = 256

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        concept_classifier(splits, self.features)  # refuses data that no net fits

    @abstractmethod
    def search(
        self, evaluation: Evaluation[PromptableDenoiser], classifier: ConceptClassifier, subject: str, items: Tensor
    ) -> AbstractContextManager[tuple[Tensor, str]]:
        """Attack a subject.

        Args:
            evaluation: with the models.
            classifier: of the samples.
            subject: which model is attacked.
            items: forget items that the samples are conditioned on, (n,).

        Returns:
            a context in which the model reads what the attack found; it gives the conditions of the samples, (n, ...),
            and the budget in words.
        """

    @override
    def __call__(self, evaluation: Evaluation[PromptableDenoiser]) -> EvaluationResult:
        classifier = concept_classifier(evaluation.splits, self.features, evaluation.device)
        items = sampled_items(evaluation, "forget", self.samples)
        findings = EvaluationResult()
        for subject, model in evaluation.models.items():
            if model.settings.one_step is not None:
                continue
            with frozen(model), self.search(evaluation, classifier, subject, items) as (conditions, budget):
                attacked = evaluation.models[subject]  # requested again: the search may have loaded the target
                images = drawn(evaluation, attacked, "forget", items, self.batch_size, conditions)
            hits, about = classifier.seen(images, items), {"score": "accuracy", "budget": budget}
            clusters = sampled_clusters(evaluation, "forget", self.samples)
            add = partial(evaluation.record, clusters=clusters, detector=classifier.net.detector)
            findings.records.append(add(self.metrics[0], subject, "forget", hits, about=about))
        return findings


def check_prompts(splits: Mapping[str, Split], attack: str) -> None:
    """Refuse models conditioned on classes, which have no words to search. Raises RecipeError."""
    if isinstance(conditioned_data(splits).encoder, Classes):
        raise RecipeError(
            f"evaluate.{attack} searches for words of a prompt, and this model is conditioned on classes. "
            f"Type evaluate.{attack}=null, or take evaluate.concept_inversion."
        )


def free_words(data: Conditioned, tables: Sequence[nn.Embedding], attack: str) -> Tensor:
    """Return the words that an attack may try, (V,) int64: all except start, end and padding tokens.

    Raises RecipeError where two text encoders have different vocabularies.
    """
    sizes = {table.num_embeddings for table in tables}
    if len(sizes) > 1:
        raise RecipeError(
            f"evaluate.{attack} tries words of one vocabulary, and the text encoders have {sorted(sizes)} words. "
            f"Type evaluate.{attack}=null."
        )
    empty = set(data.conditions([""]).flatten().tolist())
    return torch.tensor([word for word in range(sizes.pop()) if word not in empty])


def words_of(data: Conditioned, text: str) -> list[list[int]]:
    """Return the tokens of words per text encoder, without start, end and padding tokens."""
    found = []
    for row, empty in zip(data.conditions([text])[0].tolist(), data.conditions([""])[0].tolist(), strict=True):
        end = empty[1]
        found.append(row[1 : row.index(end, 1)] if end in row[1:] else row[1:])
    return found


def mentions_of(tokens: Sequence[int], name: str, words: Sequence[int]) -> list[Mention]:
    """Return every place where a name's words, at least one, stand in a prompt."""
    n = len(words)
    return [
        Mention(name, at, at + n) for at in range(len(tokens) - n + 1) if n and list(tokens[at : at + n]) == list(words)
    ]


def mean_square_error(model: PromptableDenoiser, x0: Tensor, noise: Tensor, t: Tensor, conditions: Batch) -> Tensor:
    """Return the mean over values of (eps - eps(x_t, t, c))^2 per item, (B,), conditioned on ``conditions``."""
    found: Tensor = model.predict(model.noised(x0, noise, t), t, model.condition(conditions))
    return (found - noise).square().flatten(1).mean(dim=1)
