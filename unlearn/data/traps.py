"""Copyright traps: random sequences planted in the forget set before training, and twins that no model sees."""

import re
from collections.abc import Iterable, Sequence
from itertools import compress

import torch

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.randomness import Randomness
from unlearn.data.text import TextDataset, TextItem

PLANTED = "trap"
"""Attribute of the planted traps, which are trained on."""

TWIN = "trap_holdout"
"""Attribute of their twins, which are test items."""

OVERLAP = 0.2
"""Largest share of words that two sequences may have in common (Jaccard's index)."""

_TRIES = 100


def with_traps(
    dataset: TextDataset,
    label: str | Sequence[str],
    seed: int = 0,
    count: int = 20,
    words: int = 25,
    repeats: int = 10,
    texts: Sequence[str] | None = None,
) -> TextDataset:
    """Return the data with traps planted under a label, after the training items, and their twins at the end.

    Which half of the sequences is planted is drawn before training, so a model that tells the halves apart remembers
    them, whatever the sequences are like. The ids of test items move; those of training items do not.

    Args:
        dataset: text items.
        label: of the items to forget; planted traps carry it, their twins do not. Several labels take turns.
        seed: draws the sequences and the halves.
        count: number of planted traps, each with a twin, >= 1.
        words: words per trap, >= 1.
        repeats: copies of each trap in the training data, >= 1.
        texts: 2 * count sequences of your own, such as samples of the target; they must differ from each other.

    Raises:
        RecipeError: the label is unknown, or the sequences overlap too much.

    Reference:
        Meeus et al., Copyright Traps for Large Language Models, 2024 (sequences of 25 to 100 tokens,
        repeated up to 1,000 times). arXiv:2402.09363
    """
    for name, value in (("count", count), ("words", words), ("repeats", repeats)):
        if value < 1:
            raise RecipeError(f"traps: {name} is {value}; it must be >= 1.")
    trained = list(compress(dataset.items, dataset.is_trained.tolist()))
    labels = [label] if isinstance(label, str) else list(label)
    known = sorted({item.label for item in trained} - {""})
    for name in labels:
        if name not in known:
            raise RecipeError(f"traps: no training item has the label {name!r}. {did_you_mean(name, known)}")
    sequences = random_texts(trained, 2 * count, words, seed) if texts is None else unlike(texts, 2 * count)
    order = Randomness(seed, "traps/halves").permutation(2 * count).tolist()
    halves = [[sequences[place] for place in half] for half in (order[:count], order[count:])]
    planted = [
        TextItem("", text, labels[place % len(labels)], frozenset({PLANTED}))
        for place, text in enumerate(halves[0])
        for _ in range(repeats)
    ]
    twins = [TextItem("", text, "", frozenset({TWIN, "evaluation"})) for text in halves[1]]
    others = list(compress(dataset.items, (~dataset.is_trained).tolist()))
    items = [*trained, *planted, *others, *twins]
    is_test, is_corrupt = torch.zeros(2, len(items), dtype=torch.bool)
    middle = slice(len(trained) + len(planted), len(items) - len(twins))
    is_test[middle], is_corrupt[middle] = dataset.is_test[~dataset.is_trained], dataset.is_corrupt[~dataset.is_trained]
    is_test[middle.stop :] = True
    return dataset.holding(items, is_test, is_corrupt)


def random_texts(items: Sequence[TextItem], count: int, words: int, seed: int) -> list[str]:
    """Return sequences of words drawn uniformly from those of the items; any two share few words."""
    known = sorted({word for item in items for word in re.findall(r"[^\W\d_]{3,}", f"{item.question} {item.answer}")})
    stream = Randomness(seed, "traps/words")
    drawn = (
        stream.integers(torch.tensor([attempt]), len(known), (words,))[0].tolist()
        for attempt in range(_TRIES * count if known else 0)
    )
    found = _different((" ".join(known[index] for index in indices) for indices in drawn), count)
    if len(found) < count:
        raise RecipeError(
            f"traps: the training items have {len(known)} different words, too few for {count} sequences of {words} "
            f"words that share at most {OVERLAP:.0%}. Plant fewer or shorter ones."
        )
    return found


def unlike(texts: Sequence[str], count: int) -> list[str]:
    """Return the first ``count`` texts of which no two share more than a fifth of their words."""
    found = _different(texts, count)
    if len(found) < count:
        raise RecipeError(
            f"traps: {count} sequences are needed that share at most {OVERLAP:.0%} of their words, and of the "
            f"{len(texts)} given only {len(found)} do. Give more, or plant fewer traps."
        )
    return found


def _different(texts: Iterable[str], count: int) -> list[str]:
    """Return the first texts of which no two overlap, ``count`` at most."""
    found: list[str] = []
    for text in texts:
        if text.strip() and all(jaccard(text, other) <= OVERLAP for other in found):
            found.append(text)
        if len(found) == count:
            break
    return found


def jaccard(first: str, second: str) -> float:
    """Return the share of the words of two texts that both have, in [0, 1]."""
    a, b = set(first.split()), set(second.split())
    return len(a & b) / len(a | b)
