"""Language models: facts forgotten, and restoration after corruption."""

from __future__ import annotations

import time
from pathlib import Path

from tests.acceptance.figures import Check, figure, run


def language(check: Check, folder: Path) -> None:
    """Facts about six countries, three seeds; ascent without a retain term is the control that must collapse."""
    for seed in range(3):
        began = time.monotonic()
        done = run("recipe=language/npo_factbook", f"seed={seed}", f"output=l{seed}", cwd=folder)
        name = f"npo seed {seed}"
        check(f"{name}: seconds in all", time.monotonic() - began, most=240)
        known = figure(done, "exact_memorization", "target", "forget")
        check(f"{name}: target's exact memorization on forget", known, least=0.98)
        for metric in ("exact_memorization", "extraction_strength"):
            gap = abs(figure(done, metric, split="forget") - figure(done, metric, "retrained", "forget"))
            check(f"{name}: {metric} on forget, distance from retrained", gap, most=0.10)
        check(f"{name}: exact memorization on retain", figure(done, "exact_memorization", split="retain"), least=0.95)
    collapsed = run("recipe=language/gradient_ascent_factbook", "gate=null", "output=ascent", cwd=folder)
    kept = figure(collapsed, "exact_memorization", split="retain")
    check("ascent without retain: exact memorization on retain (the control)", kept, most=0.5)


def restor(check: Check, folder: Path) -> None:
    """Restoration after corruption: doing nothing scores 0, the clean model 1."""
    done = run("recipe=language/restor_factbook", "gate=null", "output=r", cwd=folder)
    for score in ("match", "options"):
        for subject, value in (("corrupted", 0.0), ("clean", 1.0)):
            found = figure(done, "restoration_ratio", subject, score=score)
            check(f"restoration ratio of the {subject} model by {score}", abs(found - value), most=0.0)
        found = figure(done, "restoration_ratio", score=score)
        check(f"restoration ratio of NPO by {score} (reported as it is)", found)
