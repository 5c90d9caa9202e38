"""What a report does not show: the checks that were not run, and what follows from that."""

from collections.abc import Sequence
from dataclasses import dataclass

from unlearn.core.records import Record
from unlearn.report.read_run import RunFolder

GUARANTEE = (
    "Unlearning of this kind is no guarantee. The figures say how the model behaves where it was measured; "
    "they do not prove that the information is gone from the weights."
)


@dataclass(frozen=True)
class Check:
    """A check by its name, the evaluators or metrics (without ``attack_``) that run it, and what stays open without it.

    Args:
        families: the families it applies to; empty for all.
    """

    name: str
    found_in: tuple[str, ...]
    open: str
    families: tuple[str, ...] = ()


CHECKS = (
    Check(
        "Relearning",
        ("relearning", "relearn"),
        "a few training steps on related data may bring back what was forgotten.",
    ),
    Check("Membership inference", ("membership",), "an attacker may still tell which items were trained on."),
    Check(
        "Quantisation and pruning",
        ("quantisation", "quantization", "pruning"),
        "compressing the weights may undo the change.",
    ),
    Check(
        "Inversion",
        ("inversion", "concept_inversion", "reinversion", "latent_search"),
        "a search over latents or embeddings may still find an input that produces it.",
        ("flow", "gan", "diffusion"),
    ),
    Check(
        "Prompt search",
        ("unlearn_diff_atk", "ring_a_bell", "prefix", "paraphrase"),
        "other wordings, or prompts made to attack, may still bring it out.",
        ("diffusion", "language"),
    ),
    Check(
        "Context",
        ("in_context", "stepwise"),
        "examples or related questions before the question may still bring it out.",
        ("language",),
    ),
    Check(
        "Held-out items of the forgotten kind",
        ("split:holdout",),
        "it may be the trained items only that were forgotten.",
    ),
    Check(
        "Comparison with a retrained model",
        ("subject:retrained",),
        "there is no model that never saw the data to judge against.",
    ),
)


def not_run(run: RunFolder) -> list[Check]:
    """Return the checks that left no record, among those that apply to the family."""
    family = str(run.facts.get("family") or "")
    return [
        check
        for check in CHECKS
        if (not family or not check.families or family in check.families) and not _ran(check, run.records)
    ]


def _ran(check: Check, records: Sequence[Record]) -> bool:
    names = {name for record in records for name in _names(record)}
    return any(name == mark or name.startswith(f"{mark}_") for name in names for mark in check.found_in)


def _names(record: Record) -> tuple[str, ...]:
    return (
        record.evaluator,
        record.metric.removeprefix("attack_"),
        f"split:{record.split}",
        f"subject:{record.subject}",
    )


def caveats(run: RunFolder) -> list[str]:
    """Return what the figures themselves leave open: missing data, seeds, intervals, undefined values."""
    found = [*run.notes]
    seeds = len(run.seeds)
    if seeds == 0:
        found.append("One seed: another seed gives other figures. Intervals are over items or samples, not over seeds.")
    elif seeds == 2:
        found.append("Two seeds: their interval is so wide that it says little.")
    if any(record.value != record.value for record in run.records):
        found.append("Some figures are undefined; they are shown as such and count as missed goals.")
    return found
