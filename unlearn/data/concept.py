"""What a diffusion model is to forget, as a record: never names joined into one string."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Concept:
    """A thing that a model draws: a class, an object, a style, a person.

    Args:
        name: the class, or the words as they stand in prompts.
        anchor: the class or words that take its place, where a method asks for some.
        retain: classes or words that must stay, beside the retain items; edits preserve them.
        templates: prompts with ``{}`` for the words; a class takes none.
        probes: further prompts that show whether it is forgotten; attacks and evaluators ask them.
    """

    name: str = ""
    anchor: str | None = None
    retain: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=lambda: ["{}"])
    probes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse a record without a name, and templates without a place for it."""
        if not self.name:
            raise ValueError("a concept needs a name, e.g. {name: three, anchor: eight}")
        if self.anchor == "":
            raise ValueError(f"the anchor of the concept {self.name!r} is empty; name one, or leave it out")
        if self.name in self.retain:
            raise ValueError(f"the concept {self.name!r} stands in its own retain list; take it out")
        if not self.templates:
            raise ValueError(f"the concept {self.name!r} has no templates; give some, or leave them out for [{{}}]")
        if self.anchor == self.name:
            raise ValueError(f"the anchor of the concept {self.name!r} is itself; name another")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} of the concept {self.name!r} needs one {{}} in it")

    def prompts(self) -> list[str]:
        """Return the prompts that ask for it, one a template."""
        return [template.replace("{}", self.name) for template in self.templates]

    def anchored(self, prompt: str) -> str:
        """Return a prompt with the anchor's words in place of the concept's; words, not letters, are replaced."""
        if self.anchor is None:
            raise ValueError(f"the concept {self.name!r} has no anchor")
        return self.said_as(self.anchor, prompt)

    def said_as(self, words: str, prompt: str) -> str:
        """Return a prompt with other words in place of the concept's."""
        return re.sub(rf"(?<!\w){re.escape(self.name)}(?!\w)", lambda _: words, prompt)
