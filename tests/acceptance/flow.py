"""Flows: taming, forgetting a category, shares of categories."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.figures import Check, difference, figure, recipe, run, splits


def taming(check: Check, folder: Path) -> None:
    """Single images, three seeds; likelihood ascent on the same images is the control that must do worse."""
    for count in (1, 4, 8):
        for seed in range(3):
            name = f"taming {count} images, seed {seed}"
            settings = [f"data.forget.count={count}", f"seed={seed}", "pretrain.retrained=false"]
            tamed = run("recipe=flow/taming_digits", *settings, f"output=t{count}-{seed}", cwd=folder)
            check(f"{name}: reached", figure(tamed, "reached"), least=1)
            drop = figure(tamed, "quantile_drop", split="forget", score="gaussian")
            check(f"{name}: quantile drop on forget", drop, least=0.40)
            drop = figure(tamed, "quantile_drop", split="test", score="gaussian")
            check(f"{name}: |quantile drop| on test", abs(drop), most=0.03)
            rise = difference(tamed, "bits_per_dim", split="retain")
            check(f"{name}: retain bits/dim rise", rise, most=0.06)
            if count == 8:
                steps = [f"optim.steps={int(figure(tamed, 'steps'))}"]
                ascent = run("recipe=flow/likelihood_ascent", *settings, *steps, f"output=a-{seed}", cwd=folder)
                assert splits(tamed)["forget"] == splits(ascent)["forget"]
                worse = difference(ascent, "bits_per_dim", split="retain")
                check(f"{name}: ascent's retain rise over taming's", worse / max(rise, 1e-6), least=1.0)


def category(check: Check, folder: Path) -> None:
    """Each digit in turn against the model retrained without it."""
    for digit in map(str, range(10)):
        done = run("recipe=flow/category_digits", f"data.forget.label={digit}", f"output=c{digit}", cwd=folder)
        share = {
            s: figure(done, "sample_share", subject=s, category=digit) for s in ("target", "unlearned", "retrained")
        }
        bound = max(0.2 * share["target"], share["retrained"] + 0.02)
        check(f"digit {digit}: share in samples (target {share['target']:.3f})", share["unlearned"], most=bound)
        bits = {s: figure(done, "bits_per_dim", subject=s, split="retain") for s in ("unlearned", "retrained")}
        check(f"digit {digit}: retain bits/dim over retrained's", bits["unlearned"] / bits["retrained"], most=1.03)


def debias(check: Check, folder: Path) -> None:
    """Shares of categories within five points of what was asked for, three seeds."""
    for seed in range(3):
        done = run("recipe=flow/debias_digits", f"seed={seed}", f"output=d{seed}", cwd=folder)
        for name, asked in recipe(done)["forget"]["shares"].items():
            gap = abs(figure(done, "sample_share", category=name) - asked)
            check(f"seed {seed}: share of {name}, distance from {asked:.2f}", gap, most=0.05)
