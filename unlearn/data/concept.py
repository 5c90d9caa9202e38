"""What a diffusion model forgets, as a record: never names joined into one string."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Concept:
    """A thing that a model draws: a class, an object, a style, a person.

    Args:
        name: the class, or the words as they appear in prompts.
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

    def anchored(self, prompt: str) -> str:
        """Return a prompt with the anchor's words in place of the concept's; only whole words are replaced."""
        if self.anchor is None:
            raise ValueError(f"the concept {self.name!r} has no anchor")
        return self.replaced_in(self.anchor, prompt)

    def replaced_in(self, words: str, prompt: str) -> str:
        """Return a prompt with other words in place of the concept's."""
        return re.sub(rf"(?<!\w){re.escape(self.name)}(?!\w)", lambda _: words, prompt)
