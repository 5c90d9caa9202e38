"""Diffusion models: prompts, classes, a key, and folders of Stable Diffusion's size."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from tests.acceptance.figures import Check, figure, run
from tests.toys.pipelines import CROSS, LORA, METHODS, SALIENT, WORDS, images, sampled, stable_diffusion
from tests.toys.pipelines import recipe as recipe_for

CONCEPTS = {"three": "eight", "one": "seven", "six": "zero", "red": "blue"}
"""Three digits and a colour to forget, and what takes their place."""
COLOURS = ("red", "green", "blue", "yellow", "white")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTACKS = ("concept_inversion", "unlearn_diff_atk", "ring_a_bell", "image_relearning")


def concept(name: str) -> list[str]:
    """Return the settings that have a recipe of coloured digits forget one digit or colour."""
    said = [f"a {{}} {digit}" for digit in DIGITS] if name in COLOURS else [f"a {colour} {{}}" for colour in COLOURS]
    record = {"name": name, "anchor": CONCEPTS[name], "templates": said}
    return [f"data.forget.label=[{name}]", f"data.concepts=[{json.dumps(record)}]"]


def diffusion_text(check: Check, folder: Path) -> None:
    """Three digits and a colour of the text-to-image model, three seeds; without a forget term nothing is forgotten."""
    left_out = (*ATTACKS, "feature_distance", "sample_grid")
    quick = ["pretrain.retrained=false", "gate=null", *(f"evaluate.{name}=null" for name in left_out)]
    for name in CONCEPTS:
        for seed in range(3):
            for method, seconds in (("uce", 1.0), ("concept_ablation", 60.0), ("esd", None)):
                settings = [f"recipe=diffusion/{method}_digits", *concept(name), f"seed={seed}", *quick]
                done = run(*settings, f"output={method}-{name}-{seed}", cwd=folder)
                what = f"{method} {name}, seed {seed}"
                check(f"{what}: target's accuracy on forget", figure(done, "accuracy", "target", "forget"), least=0.9)
                check(f"{what}: accuracy on forget", figure(done, "accuracy", split="forget"), most=0.2)
                kept = figure(done, "accuracy", split="retain", score="of_target")
                check(f"{what}: accuracy on retain over the target's", kept, least=0.95)
                check(f"{what}: accuracy across domains", figure(done, "accuracy", split="cross_domain"))
                check(f"{what}: seconds of unlearning", figure(done, "cost_seconds"), most=seconds)
    settings = ["recipe=diffusion/esd_digits", "forget.weight=0", *quick, "output=control"]
    idle = run(*settings, cwd=folder)
    check("no forget term: accuracy on forget (the control)", figure(idle, "accuracy", split="forget"), least=0.9)


def diffusion_key(check: Check, folder: Path) -> None:
    """What KPOP hides comes back with the key alone; DoCo with and without the concept-preserving gradient."""
    quick = ["pretrain.retrained=false", "gate=null", *(f"evaluate.{name}=null" for name in ATTACKS)]
    done = run("recipe=diffusion/kpop_digits", *quick, "output=kpop", cwd=folder)
    for score, least, most in (("no_key", None, 0.2), ("wrong_key", None, 0.2), ("right_key", 0.9, None)):
        check(
            f"KPOP, {score}: accuracy on forget", figure(done, "key_recovery", split="forget", score=score), least, most
        )
    check("KPOP: accuracy on retain over the target's", figure(done, "accuracy", split="retain", score="of_target"))
    for rule in ("one_sided", "doco_released", "sum"):
        done = run("recipe=diffusion/doco_digits", f"combine={rule}", *quick, f"output=doco-{rule}", cwd=folder)
        for split in ("forget", "retain", "cross_domain"):
            check(f"DoCo, combine={rule}: accuracy, {split}", figure(done, "accuracy", split=split))


def diffusion_class(check: Check, folder: Path) -> None:
    """Each digit of the class-conditional model by SalUn, and of its one-step generator by SFD."""
    distance = "frechet_digitnet8"
    for digit in map(str, range(10)):
        anchor = {"3": "8", "8": "3"}.get(digit, str((int(digit) + 2) % 10))
        settings = [f'data.forget.label=["{digit}"]', f'data.concepts=[{{name: "{digit}", anchor: "{anchor}"}}]']
        quick = ["gate=null", *(f"evaluate.{name}=null" for name in ("concept_inversion", "image_relearning"))]
        done = run("recipe=diffusion/salun_digits", *settings, *quick, f"output=salun-{digit}", cwd=folder)
        check(f"SalUn {digit}: UA", figure(done, "unlearning_accuracy", split="forget"), least=0.95)
        ratio = figure(done, distance, split="retain") / figure(done, distance, "retrained", "retain")
        check(f"SalUn {digit}: Frechet distance of the others over the retrained's", ratio, most=1.3)
        settings += ["pretrain.retrained=false", "gate=null"]
        done = run("recipe=diffusion/sfd_digits", *settings, f"output=sfd-{digit}", cwd=folder)
        check(f"SFD {digit}: UA", figure(done, "unlearning_accuracy", split="forget"), least=0.95)
        ratio = figure(done, distance, split="retain") / figure(done, distance, "target", "retain")
        check(f"SFD {digit}: Frechet distance of the others over the generator's", ratio, most=1.3)


def diffusion_folders(check: Check, folder: Path) -> None:
    """A pipeline of Stable Diffusion 1.5's shape, 16 x 16 latents: two steps of each method, and diffusers draws."""
    pipeline, data = stable_diffusion(folder / "pipeline", small=False), images(folder / "images", 128)
    for method, parts in METHODS.items():
        if method == "task_vector":  # no method of diffusion models, and it trains a second copy of all weights
            continue
        scope = {"random_label": {**SALIENT, "include": ["attn2"]}, "sfd": LORA, "denoising_ascent": WORDS}
        parts = {**parts, "optim": {"name": "sgd", "lr": 1e-3, "steps": 2, "batch": 1, **parts.get("optim", {})}}
        if "forget" in parts:  # moving all weights of the denoiser would ask for more than 12 GB
            parts["scope"] = scope.get(method, CROSS)
        file = recipe_for(folder / f"{method}.yaml", pipeline, data, 128, **parts)
        began, before = time.monotonic(), os.times()
        done = run(f"recipe={file}", f"output={method}", cwd=folder)
        seconds, after = time.monotonic() - began, os.times()
        check(f"{method}: seconds of unlearning", figure(done, "cost_seconds"))
        check(f"{method}: seconds in all", seconds, most=60 if method in ("uce", "rece") else None)
        used = after.children_user + after.children_system - before.children_user - before.children_system
        check(f"{method}: seconds of the processor", used)
        check(f"{method}: peak memory, GB", figure(done, "peak_memory") * 2**20 / 1e9, most=12.5)
        image = sampled(done / "model")[1]
        check(f"{method}: share of finite values in what diffusers draws", float(np.isfinite(image).mean()), least=1)
        shutil.rmtree(done)
