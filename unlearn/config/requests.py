"""Several forget requests of one recipe: sets of growing size, or one request after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unlearn.core.errors import RecipeError
from unlearn.data.base import Selection


@dataclass
class Requests:
    """Forget sets of several sizes, or requests one after the other; each is a run, and one report shows all of them.

    Args:
        sizes: sizes of the forget set, growing; every run starts from the target. So many labels are forgotten where
            ``data.forget.label`` names several, else so many items, as by ``data.forget.count``; a smaller set is part
            of a larger one.
        sequence: selections in place of ``data.forget``, or a label alone. Each request starts from the model that the
            one before it made, and what was forgotten before is neither forgotten again nor retained.
        at: number of the size or request that this run carries out, from 1; null carries out all.

    Reference:
        criteria 5 (scalability) and 6 (sustainability) of Shi et al., MUSE, 2024. arXiv:2407.06460
    """

    sizes: list[int] | None = None
    sequence: list[Selection] | None = None
    at: int | None = None

    def __post_init__(self) -> None:
        if (self.sizes is None) == (self.sequence is None):
            raise ValueError("give either sizes, such as [10, 20], or sequence, such as [NAME, NAME]")
        if not (self.sizes or self.sequence):
            raise ValueError(f"{self.over if self.sizes is not None else 'sequence'} is empty; name one at least")
        if self.sizes and (self.sizes[0] < 1 or sorted(set(self.sizes)) != self.sizes):
            raise ValueError(f"sizes is {self.sizes}; it must be growing numbers from 1")
        if empty := [number for number, one in enumerate(self.sequence or (), 1) if one.is_empty]:
            raise ValueError(f"request {empty[0]} of sequence is empty; it must say what to forget")
        if self.at is not None and not 1 <= self.at <= self.count:
            raise ValueError(f"at is {self.at}; it must be a number from 1 to {self.count}, or null")

    @property
    def over(self) -> str:
        """What the runs differ in: ``sizes`` or ``requests``."""
        return "sizes" if self.sizes is not None else "requests"

    @property
    def count(self) -> int:
        """Number of sizes or requests."""
        return len(self.sizes or self.sequence or ())

    @property
    def folder(self) -> str:
        """Name of the folder of the run ``at``."""
        return f"size-{self.sizes[(self.at or 1) - 1]}" if self.sizes else f"request-{self.at}"

    @property
    def about(self) -> dict[str, str]:
        """What the figures of the run ``at`` carry; nothing for all of them together."""
        if self.at is None:
            return {}
        return {"size": str(self.sizes[self.at - 1])} if self.sizes else {"request": f"{self.at} of {self.count}"}

    @property
    def before(self) -> list[Selection]:
        """The selections of the requests that were carried out before the run ``at``."""
        return self.sequence[: (self.at or 1) - 1] if self.sequence else []

    def selection(self, forget: Selection) -> Selection:
        """Return what the run ``at`` forgets, given the recipe's ``data.forget``."""
        place = (self.at or 1) - 1
        if self.sequence:
            return self.sequence[place]
        size = (self.sizes or [1])[place]
        if forget.label is None or len(forget.label) < 2:
            return replace(forget, count=size)
        if size > len(forget.label):
            raise RecipeError(
                f"requests.sizes: {size} is more than the {len(forget.label)} labels of data.forget.label. Take a "
                "smaller size, or name a single label to count items."
            )
        return replace(forget, label=forget.label[:size])
