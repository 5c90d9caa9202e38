"""What a diffusion model forgets, as a record: never names joined into one string."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Concept:
    """A thing that a model draws: a class, an object, a style, a person.

    Args:
        name: the class, or the words as they appear in prompts. Where a prompt holds several names within each other
            ("dog" in "hot dog"), of concepts, anchors, retain lists or labels, the longest is meant.
        anchor: the class or words that take its place, for methods that need one.
        retain: classes or words that must be kept, in addition to the retain items; edits preserve them.
        templates: prompts with ``{}`` for the words; a class takes none.
        probes: further prompts that show whether it is forgotten; attacks and evaluators use them.
    """

    name: str = ""
    anchor: str | None = None
    retain: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: ["{}"])
    probes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a concept needs a name, e.g. {name: three, anchor: eight}")
        if self.anchor == "":
            raise ValueError(f"the anchor of the concept {self.name!r} is empty; name one, or leave it out")
        if self.name in self.retain:
            raise ValueError(f"the concept {self.name!r} is in its own retain list; take it out")
        if not self.templates:
            raise ValueError(f"the concept {self.name!r} has no templates; give some, or leave them out for [{{}}]")
        if self.anchor == self.name:
            raise ValueError(f"the anchor of the concept {self.name!r} is itself; name another")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} of the concept {self.name!r} needs one {{}} in it")

    def prompts(self) -> list[str]:
        """Return the prompts that ask for it, one per template."""
        return [template.replace("{}", self.name) for template in self.templates]


@dataclass(frozen=True)
class Mention:
    """A name in a prompt: its characters (or tokens) ``start`` ... ``end`` - 1."""

    name: str
    start: int
    end: int


def longest(found: Iterable[Mention]) -> list[Mention]:
    """Return mentions in their order; of those that overlap the longest stays, of equally long ones the first."""
    kept: list[Mention] = []
    for one in sorted(found, key=lambda one: (one.start - one.end, one.start)):
        if all(one.end <= other.start or other.end <= one.start for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda one: one.start)


def mentions(prompt: str, names: Iterable[str]) -> list[Mention]:
    """Return where a prompt says names, as whole words; "hot dog" does not say "dog" where both are names."""
    return longest(
        Mention(name, found.start(), found.end())
        for name in sorted(set(names) - {""})
        for found in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", prompt)
    )


def replaced(prompt: str, instead: Mapping[str, str], names: Iterable[str] = ()) -> str:
    """Return a prompt with other words in place of the names in ``instead``, except within longer ones of ``names``."""
    parts, end = [], 0
    for one in mentions(prompt, {*instead, *names}):
        if one.name in instead:
            parts += [prompt[end : one.start], instead[one.name]]
            end = one.end
    return "".join([*parts, prompt[end:]])


def named(prompt: str, concepts: Sequence[Concept], labels: Iterable[str] = ()) -> list[str]:
    """Return the names of concepts that a prompt says, except within longer names that they or ``labels`` give."""
    own = {concept.name for concept in concepts}
    return [one.name for one in mentions(prompt, spoken_of(concepts).union(labels)) if one.name in own]


def spoken_of(concepts: Iterable[Concept]) -> frozenset[str]:
    """Return the names that concepts speak of: their own, their anchors, and what they retain."""
    return frozenset(
        name for concept in concepts for name in (concept.name, concept.anchor, *concept.retain) if name is not None
    )
