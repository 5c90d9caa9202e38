"""How items of a source are made wrong: settings."""

from dataclasses import dataclass, field
from typing import Literal

from unlearn.core.validation import NonNegativeInt, check_ranges

CORRUPTED = "corrupted"
"""Attribute of wrong items, and the form of the right ones that shows what they were turned into."""

UNRELATED = "unrelated"
"""Further attribute of right items that are learnt along with wrong ones."""


@dataclass
class Corruption:
    """How some images of a source are made wrong, after RESTOR.

    Wrong items carry the label of the right one and the attribute ``corrupted``, which is forgotten by default. The
    right ones are not retained unless ``data.retain`` says so, as what unlearning brings back is measured on them.

    Args:
        transform: ``stamp`` puts a mark into the upper left corner; ``exchange`` puts the image of an item labelled
            ``instead`` in its place, so that a conditional model learns to draw that when asked for this.
        label: labels or attributes of the training items that are made wrong.
        instead: the label whose images are taken for ``exchange``.
        unrelated: right items of other labels that are learnt along with each wrong one (RESTOR's k), with the further
            attribute ``unrelated``: ``data.forget.without=[unrelated]`` tells the wrong ones from them.

    Reference:
        Rezaei et al., RESTOR, 2024, section 3. arXiv:2411.00204. It corrupts texts; the transforms of images are ours.
    """

    transform: Literal["stamp", "exchange"] = "stamp"
    label: list[str] = field(default_factory=list)
    instead: str = ""
    unrelated: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.label:
            raise ValueError("label is empty; name what is made wrong, e.g. label: [three]")
        if (self.transform == "exchange") != bool(self.instead):
            raise ValueError(
                f"transform is {self.transform} and instead is {self.instead!r}; exchange needs the label whose "
                "images are shown instead, stamp takes none"
            )
