"""Concept inversion: learn the embedding of a new word with which the attacked model draws the concept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from unlearn.core.errors import RecipeError
from unlearn.core.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from unlearn.data.base import Split, check_content
from unlearn.data.concept import longest
from unlearn.data.conditioned import Classes, Conditioned
from unlearn.evaluators.attacks.base.prompt_search import PromptSearch, mean_square_error, mentions_of, words_of
from unlearn.evaluators.base import Evaluation, Metric
from unlearn.evaluators.image.concept_classifier import ConceptClassifier
from unlearn.evaluators.sampling import conditioned_data, limited, sampled_items, samples
from unlearn.models.diffusion.protocols import PromptableDenoiser
from unlearn.models.diffusion.token_embeddings import new_words

ATTACK = Metric(
    name="attack_concept_inversion",
    label="attack by concept inversion",
    formula="share of samples of forget items in which the classifier sees the concept, where new embeddings in "
    "place of the concept's words (or class) were learned on the attacked model: they minimise its mean (eps - "
    "eps(x_t, t, c))² on images of the concept. `budget`: steps, free numbers, and the bound where there is one. "
    "Wilson interval",
    unit="share",
    direction="retrained",
    source="Pham et al. 2024, section 4",
)


@dataclass(frozen=True, kw_only=True)
class ConceptInversion(PromptSearch):
    """Learns embeddings of new words in place of the concept's, one for each of its tokens, or of a new class.

    They minimise the attacked model's own denoising loss on images of the concept, and start at the embeddings of the
    concept's words. The rest of the prompt and all model weights are frozen; optimized with Adam, no weight decay.

    Without a bound the attack has as many free parameters as an embedding, and may draw what the model never saw:
    compare with the retrained model.

    Args:
        steps: steps of the search, >= 0; 0 uses the prompts as they are.
        lr: learning rate, > 0.
        batch: images per step.
        images: number of images that the concept is learned from, drawn by the seed.
        source: ``data`` are the forget images; ``target`` are images that the target draws of forget items.
        bound: largest distance of an embedding from its start, in mean norms of the table's embeddings; null for no
            bound.

    Reference:
        Pham et al., Circumventing Concept Erasure Methods For Text-to-Image Generative Models, 2024, section 4.
        arXiv:2308.01508. The loss is textual inversion's: Gal et al., 2022, eq. 2. arXiv:2208.01618
    """

    steps: NonNegativeInt = 200
    lr: PositiveFloat = 2e-2
    batch: PositiveInt = 32
    images: PositiveInt = 25
    source: Literal["data", "target"] = "data"
    bound: NonNegativeFloat | None = None

    metrics: ClassVar = (ATTACK,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source not in ("data", "target"):
            raise ValueError(f"source is {self.source!r}; it must be data or target")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        super().check(splits)
        if self.source == "data":
            instead = "Type evaluate.concept_inversion.source=target."
            check_content(splits["forget"], "evaluate.concept_inversion", instead)

    @override
    @contextmanager
    def search(
        self, evaluation: Evaluation[PromptableDenoiser], classifier: ConceptClassifier, subject: str, items: Tensor
    ) -> Iterator[tuple[Tensor, str]]:
        names = NewNames(conditioned_data(evaluation.splits), classifier.forgotten)
        ids, x0 = self._images(evaluation, subject)
        model = evaluation.models[subject]
        rows = self._learned(evaluation, model, names, ids, x0)
        numbers = sum(row.numel() for row in rows)
        budget = f"{self.steps} steps, {numbers} numbers" + ("" if self.bound is None else f", bound {self.bound:g}")
        with new_words(model, model.tables(), rows):
            yield names.conditions(items), budget

    def _images(self, evaluation: Evaluation[PromptableDenoiser], subject: str) -> tuple[Tensor, Tensor]:
        """Return forget items (m,) and the clean latents of their images, (m, C, H, W)."""
        if self.source == "target":
            ids = sampled_items(evaluation, "forget", self.images)
            drawn = samples(evaluation, "target", "forget", self.images, self.batch_size)
            batch = {"id": ids.to(evaluation.device), "image": drawn.to(evaluation.device)}
        else:
            ids = limited(evaluation.splits["forget"].ids, self.images, evaluation.seed, "concept inversion")
            batch = evaluation.batch("forget", ids)
        model = evaluation.models[subject]  # requested after the target's samples, which may have loaded the target
        return ids, model.latents(batch, evaluation.randomness.child("images"))

    def _learned(
        self,
        evaluation: Evaluation[PromptableDenoiser],
        model: PromptableDenoiser,
        names: NewNames,
        ids: Tensor,
        x0: Tensor,
    ) -> list[Tensor]:
        """Return the new rows of each table."""
        tables = model.tables()
        starts = [table.weight[known].detach() for table, known in zip(tables, names.known(len(tables)), strict=True)]
        radius = [table.weight.norm(dim=1).mean() * (self.bound or 0.0) for table in tables]
        rows = [start.clone().requires_grad_() for start in starts]
        optimizer = torch.optim.Adam(rows, lr=self.lr)
        stream = evaluation.randomness.child("search")
        draws = torch.arange(self.batch, device=evaluation.device)
        key, asked = conditioned_data(evaluation.splits).encoder.key, names.conditions(ids).to(evaluation.device)
        for step in range(self.steps):  # textual inversion, eq. 2, with the model frozen
            draw = stream.at(step)
            chosen = draw.child("image").integers(draws, len(ids))
            t = draw.child("t").integers(draws, model.timesteps)
            noise = draw.child("noise").normal(draws, tuple(x0.shape[1:]), x0.dtype)
            noised_batch = {"id": draws, key: asked[chosen]}
            with torch.enable_grad(), new_words(model, tables, rows):
                loss = mean_square_error(model, x0[chosen], noise, t, noised_batch).mean()
            for row, gradient in zip(rows, torch.autograd.grad(loss, rows), strict=True):  # of the rows alone
                row.grad = gradient
            optimizer.step()
            if self.bound is not None:  # projected descent: back into the ball around the start
                for row, start, far in zip(rows, starts, radius, strict=True):
                    row.data = start + bounded(row.detach() - start, far)
        return [row.detach() for row in rows]


def bounded(moves: Tensor, radius: Tensor) -> Tensor:
    """Return moves (K, D), projected to the ball of the given radius."""
    lengths = moves.norm(dim=1, keepdim=True)
    share: Tensor = radius / lengths.clamp(min=torch.finfo(moves.dtype).tiny)
    return moves * share.clamp(max=1.0)


class NewNames:
    """Replaces the forgotten names in a model's conditions by new words, -1 ... -K.

    Args:
        data: the forget data.
        names: that are forgotten.
    """

    def __init__(self, data: Conditioned, names: list[str]) -> None:
        self.data = data
        self.names = names
        if isinstance(data.encoder, Classes):
            self.words = [[[int(number)] for number in data.conditions([name])] for name in self.names]
        else:
            self.words = [words_of(data, name) for name in self.names]

    def known(self, tables: int) -> list[list[int]]:
        """Return, per table, the rows of the names' words, concatenated."""
        by_encoder = [[word for words in self.words for word in words[e]] for e in range(len(self.words[0]))]
        return by_encoder if len(by_encoder) == tables else by_encoder * tables  # DiT has a table of classes per block

    def conditions(self, items: Tensor) -> Tensor:
        """Return the conditions of items (n,) with the forgotten names replaced by new words, (n, ...).

        Raises:
            RecipeError: a caption does not contain the words.
        """
        rows = []
        for item in items.tolist():
            known = self.data.conditions([self.data.captions[item]])[0].clone()
            for name in self.data.shown(item, self.names):
                self._replace(known, self.names.index(name), item)
            rows.append(known)
        return torch.stack(rows)

    def _place(self, tokens: list[int], encoder: int, number: int, item: int) -> int | None:
        """Return the first token of a name in an item's prompt, not where a longer name is said."""
        name, words = self.names[number], self.words[number][encoder]
        found = mentions_of(tokens, name, words)
        for other in sorted(self.data.others(item, self.names) - {name}):
            longer = words_of(self.data, other)[encoder]
            if name in other and mentions_of(longer, name, words):
                found += mentions_of(tokens, other, longer)
        return next((one.start for one in longest(found) if one.name == name), None)

    def _replace(self, known: Tensor, number: int, item: int) -> None:
        """Replace a name by its new words in an item's condition, () or (E, L), in place."""
        if known.ndim == 0:
            known.fill_(-1 - number)
            return
        for encoder, tokens in enumerate(known):
            words = self.words[number][encoder]
            at = self._place(tokens.tolist(), encoder, number, item)
            if at is None:
                raise RecipeError(
                    f"The caption {self.data.captions[item]!r} of item {item} does not have the words "
                    f"{self.names[number]!r}, so no other word can stand in their place. "
                    "Leave the attack out: evaluate.concept_inversion=null."
                )
            first = sum(len(before[encoder]) for before in self.words[:number])
            tokens[at : at + len(words)] = -1 - first - torch.arange(len(words))
