"""`make accept`: the long checks, run through the real command line, with their figures.

``python -m tests.acceptance taming kills`` runs some of them by name. The exit code is 1 where a figure is missed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.toys import ROOT
from tests.toys.pipelines import CROSS, LORA, METHODS, SALIENT, WORDS, images, sampled, stable_diffusion
from tests.toys.pipelines import recipe as recipe_for

SMALL = f"recipe={ROOT / 'tests' / 'toys' / 'recipes' / 'small.yaml'}"


class Check:
    """Prints a figure with its bound, and remembers whether all were met."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def __call__(self, what: str, value: float, least: float | None = None, most: float | None = None) -> None:
        met = (least is None or value >= least) and (most is None or value <= most)
        bound = " and ".join(
            part
            for part in (f">= {least:.4g}" if least is not None else "", f"<= {most:.4g}" if most is not None else "")
            if part
        )
        print(f"  {'ok  ' if met else 'MISS'} {what:<58} {value:9.4f}  {bound}", flush=True)
        if not met:
            self.missed.append(what)


def demo(check: Check, folder: Path) -> None:
    """The quick start, from the shipped models."""
    began = time.monotonic()
    run("recipe=quickstart", "output=demo", cwd=folder)
    check("quick start, seconds", time.monotonic() - began, most=90)


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


FACE_NETS = ("dlib_face", "mobile_face")
"""Two nets that judge faces; no loss of the recipes looks with either."""
PEOPLE = range(7, 15)


def people(*seeds: int) -> str:
    """Return the setting that has a recipe forget the faces of some seeds."""
    return f"data.identities={json.dumps([{'seed': seed} for seed in seeds])}"


def gan_faces(check: Check, folder: Path) -> None:
    """GUIDE on eight faces, one at a time, against its parts; runs to the mean and without a forget term must fail."""
    study(folder, "gan_ablation")
    table = {
        name: face_figures(sorted((folder / "gan_ablation" / name).glob("seed-*/"), key=seed_of))
        for name in (
            "average_local",
            "extrapolation_local",
            "extrapolation_local_adjacent",
            "guide",
            "extrapolation_0_control",
        )
    }
    guide = table["guide"]
    for row, seed in enumerate(PEOPLE):
        one = f"GUIDE, seed {seed}"
        check(f"{one}: seconds of unlearning", guide["seconds"][row], most=180)
        for net in FACE_NETS:
            check(f"{one}: similarity to the person, {net}", guide[f"forget, {net}"][row], most=0.3)
            check(f"{one}: distance from the target latent's, {net}", guide[f"gap, {net}"][row], most=0.1)
            check(f"{one}: strangers before and after, {net}", guide[f"strangers, {net}"][row], least=0.75)
        ratio = guide["frechet"][row] / table["extrapolation_local"]["frechet"][row]
        check(f"{one}: Frechet distance over that of extrapolation and local", ratio, most=0.5)
    for name, columns in table.items():
        for key, values in columns.items():
            half = 2.365 * float(np.std(values, ddof=1)) / len(values) ** 0.5  # Student's t, 7 degrees of freedom
            check(f"{name}: {key}, mean of {len(values)} (+- {half:.3f})", float(np.mean(values)))
    for name in ("guide", "extrapolation_0_control"):  # its mean latent draws no face, which nobody resembles
        means = [
            float(np.mean(table[name][f"{subject} to the nearest stranger, mobile_face"]))
            for subject in ("unlearned", "target")
        ]
        bounds = {"least": -0.15} if name == "guide" else {"most": -0.15}
        check(f"{name}: similarity to the nearest stranger less the target's", means[0] - means[1], **bounds)
    idle = run("recipe=gan/guide_faces", "forget.weight=0", "gate=null", "output=control", cwd=folder)
    for net in FACE_NETS:
        kept = figure(idle, "identity_similarity", split="forget", features=net)
        check(f"no forget term: similarity to the person, {net} (the control)", kept, least=0.9)


def study(folder: Path, name: str) -> None:
    """Run a study into a folder of its name."""
    done = subprocess.run([sys.executable, "-m", "unlearn.study", name, f"output={name}"], cwd=folder)
    if done.returncode:
        raise SystemExit(f"unlearn.study {name} failed with {done.returncode}")


def seed_of(run: Path) -> int:
    """Return the seed of a study's run."""
    return int(run.name.split("-")[1])


def face_figures(runs: list[Path]) -> dict[str, list[float]]:
    """Return figures of runs that forget faces, by name."""
    table: dict[str, list[float]] = {}
    for run in runs:
        figures = {"seconds": figure(run, "cost_seconds"), "frechet": figure(run, "frechet_dlib_face")}
        for net in FACE_NETS:
            for split in ("forget", "same_person", "neighbours", "strangers"):
                figures[f"{split}, {net}"] = figure(run, "identity_similarity", split=split, features=net)
            for subject in ("target", "unlearned"):
                figures[f"{subject} to the nearest stranger, {net}"] = figure(
                    run, "identity_similarity", subject, "forget", features=net, score="to_strangers"
                )
            aim = figure(run, "identity_similarity", "target_latent", features=net)
            figures[f"target latent, {net}"] = aim
            figures[f"gap, {net}"] = abs(figures[f"forget, {net}"] - aim)
        for key, value in figures.items():
            table.setdefault(key, []).append(value)
    return table


def gan_digits(check: Check, folder: Path) -> None:
    """A class of a StyleGAN2, by the methods for GANs, against the model that was retrained without it."""
    cases = [("guide", seed) for seed in range(3)] + [("adapt_then_unlearn", 0), ("latent_projection", 0)]
    for method, seed in cases:
        done = run(f"recipe=gan/{method}_digits", "gate=null", f"seed={seed}", f"output={method}{seed}", cwd=folder)
        shares, distances = (
            {subject: figure(done, metric, subject, split, **about) for subject in ("target", "unlearned", "retrained")}
            for metric, split, about in (
                ("sample_share", None, {"category": "3"}),
                ("frechet_digitnet8", "retain", {}),
            )
        )
        ours = method == "guide"
        bound = max(0.2 * shares["target"], shares["retrained"] + 0.02)
        told = f"target {shares['target']:.3f}, retrained {shares['retrained']:.3f}"
        check(f"{method}, seed {seed}: share of threes ({told})", shares["unlearned"], most=bound if ours else None)
        told = f"target {distances['target']:.2f}, retrained {distances['retrained']:.2f}"
        worse = distances["unlearned"] - distances["target"]
        check(f"{method}, seed {seed}: Frechet distance less the target's ({told})", worse, most=2 if ours else None)
        check(f"{method}, seed {seed}: seconds of unlearning", figure(done, "cost_seconds"))
    idle = run("recipe=gan/guide_digits", "forget.weight=0", "gate=null", "output=control", cwd=folder)
    share = figure(idle, "sample_share", category="3") / figure(idle, "sample_share", "target", category="3")
    check("no forget term: share of threes over the target's (the control)", share, least=0.8)
    for name, setting in (("surgery", "combine=pcgrad"), ("LoRA", "scope=lora"), ("saliency", "scope=saliency")):
        done = run("recipe=gan/guide_digits", setting, "gate=null", f"output={name}", cwd=folder)
        check(f"GUIDE, {setting}: share of threes", figure(done, "sample_share", category="3"))
    weights = []
    for ranks in (1, 2):
        # In single precision Adam blows up the rounding of the smallest gradients: 3e-4 after five steps.
        settings = ["trainer.accelerator=cpu", "trainer.precision=64-true", f"trainer.devices={ranks}"]
        quick = ["optim.steps=5", "gate=null", "evaluate=null", f"output=ranks-{ranks}"]
        done = run("recipe=gan/guide_digits", *settings, *quick, cwd=folder)
        weights.append(torch.load(done / "checkpoints" / "last.ckpt", weights_only=True)["parameters"][0])
    apart = max((value - weights[1][key]).abs().max().item() for key, value in weights[0].items())
    check("GUIDE, two ranks against one: largest difference of a weight after 5 steps", apart, most=1e-6)


def gan_several(check: Check, folder: Path) -> None:
    """One, four and eight faces: GUIDE on all at once and one after the other, and SUGAR."""
    study(folder, "gan_identities")
    chain, last = [], "model.pretrained=face_dcgan"
    for seed in PEOPLE:
        quick = ["gate=null", "evaluate=null", f"output=then-{seed}"]
        chain.append(run("recipe=gan/guide_faces", people(seed), last, *quick, cwd=folder))
        last = f"model.pretrained={chain[-1] / 'model'}"
    for count in (1, 4, 8):
        found = {"GUIDE in sequence": judged(chain[count - 1] / "model", people(*list(PEOPLE)[:count]))}
        for method in ("guide", "sugar"):
            (place,) = (folder / "gan_identities" / f"{method}_{count}").glob("seed-*/")
            found[f"{method} at once"] = {"frechet": figure(place, "frechet_dlib_face")} | {
                split: figure(place, "identity_similarity", split=split, features="mobile_face")
                for split in ("forget", "same_person", "neighbours", "strangers")
            }
        for name, figures in found.items():
            for key, value in figures.items():
                most = 0.3 if key == "forget" and name != "sugar at once" else None
                least = 0.75 if key == "strangers" and name != "sugar at once" else None
                check(f"{name}, {count}: {key}", value, least, most)


def judged(model: Path, setting: str) -> dict[str, float]:
    """Return what a net that no loss has seen says of a generator, by split, for some faces of the packaged one."""
    from unlearn.config.recipe import load
    from unlearn.core.randomness import Randomness
    from unlearn.data.splits import make_splits
    from unlearn.experiment.evaluation import measured

    recipe = load("gan/guide_faces", [setting])
    subjects = {"target": recipe.model.load(recipe.model.fetch("face_dcgan")), "unlearned": recipe.model.load(model)}
    splits = make_splits(recipe.model.read(recipe.data.load()), recipe.data, Randomness(0, "splits"))
    wanted = {name: recipe.evaluate[name] for name in ("identity", "generator_distance")}
    records = measured(wanted, subjects, splits, Randomness(0, "evaluate"), torch.device("cpu")).records
    ours = [record for record in records if record.subject == "unlearned" and "score" not in record.about]
    frechet = next(record.value for record in ours if record.metric == "frechet_dlib_face")
    return {"frechet": frechet} | {
        record.split: record.value
        for record in ours
        if record.metric == "identity_similarity" and record.about["features"] == "mobile_face"
    }


def gan_reinversion(check: Check, folder: Path) -> None:
    """How near an attacker comes to the person on target and unlearned generator, by number of steps."""
    done = run(
        "recipe=gan/guide_faces",
        people(*list(PEOPLE)[:4]),
        "evaluate.reinversion.steps=[50,200,500]",
        "gate=null",
        "output=attacked",
        cwd=folder,
    )
    for record in json.loads((done / "metrics.json").read_text())["records"]:
        if record["metric"] == "attack_reinversion":
            budget, net = record["about"]["budget"], record["about"]["features"]
            check(f"{record['subject']}, {budget}, {net}: similarity that the attacker reaches", record["value"])
    found = {name: figure(done, "attack_reinversion", name, features="mobile_face") for name in ("target", "unlearned")}
    check(
        "similarity reached on the unlearned generator over the target's",
        found["unlearned"] / found["target"],
        most=1.0,
    )


def kills(check: Check, folder: Path) -> None:
    """kill -9 at 20 random moments of a run of about 10 seconds, then resume=auto."""
    settings = [SMALL, "optim.steps=150"]
    run(*settings, "output=first", cwd=folder)  # trains what is cached
    began = time.monotonic()
    whole = load_file(run(*settings, "output=whole", cwd=folder) / "model" / "model.safetensors")
    length = time.monotonic() - began
    same = midway = 0
    chance = random.Random(0)
    for number in range(20):
        place = folder / f"killed-{number}"
        place.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-m", "unlearn.run", *settings],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(1, length))
        process.kill()
        process.wait()
        reports = len(list(place.glob("runs/**/report.html")))
        midway += reports == 0 and len(list(place.glob("runs/**/last.ckpt")))
        run(*settings, "resume=auto", cwd=place)
        found = load_file(next(place.glob("runs/**/report.html")).parent / "model" / "model.safetensors")
        same += all(torch.equal(value, found[name]) for name, value in whole.items())
    check("kills between the first checkpoint and the report", midway, least=5)
    check(f"killed runs (of {length:.0f} s) that end in the same weights", same, least=20)


def start(check: Check, folder: Path) -> None:
    """Help and listing against an empty Python."""

    def seconds(*arguments: str) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
            times.append(time.perf_counter() - began)
        return median(times)

    bound = 5 * seconds("-c", "pass") + 0.2
    check("seconds of --help", seconds("-m", "unlearn.run", "--help"), most=bound)
    check("seconds of the listing", seconds("-m", "unlearn.run"), most=bound)


def run(*arguments: str, cwd: Path) -> Path:
    """Run the command line and return the run directory."""
    done = subprocess.run([sys.executable, "-m", "unlearn.run", *arguments], cwd=cwd, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(arguments)} failed with {done.returncode}:\n{done.stderr}")
    output = next((a.partition("=")[2] for a in arguments if a.startswith("output=")), "")
    return cwd / output


def figure(folder: Path, metric: str, subject: str = "unlearned", split: str | None = None, **about: str) -> float:
    """Return one figure of a run."""
    for record in json.loads((folder / "metrics.json").read_text())["records"]:
        if (record["metric"], record["subject"]) == (metric, subject) and split in (None, record["split"]):
            if all(record["about"].get(key) == value for key, value in about.items()):
                return float(record["value"])
    raise SystemExit(f"{folder}: no {metric} of {subject} on {split} {about}")


def difference(folder: Path, metric: str, split: str) -> float:
    """Return unlearned minus target."""
    return figure(folder, metric, split=split) - figure(folder, metric, "target", split=split)


def splits(folder: Path) -> dict[str, list[int]]:
    """Return the ids of each split."""
    return json.loads((folder / "splits.json").read_text())  # type: ignore[no-any-return]


def recipe(folder: Path) -> dict[str, Any]:
    """Return the resolved recipe of a run."""
    from unlearn.config.recipe import load

    return load(folder / "recipe.yaml").tree


CHECKS: dict[str, Callable[[Check, Path], None]] = {
    check.__name__: check
    for check in (
        start,
        demo,
        taming,
        category,
        debias,
        language,
        restor,
        diffusion_text,
        diffusion_class,
        diffusion_key,
        diffusion_folders,
        gan_faces,
        gan_digits,
        gan_several,
        gan_reinversion,
        kills,
    )
}


def main(wanted: list[str]) -> int:
    """Run the checks and say what was missed."""
    check = Check()
    for name in wanted or CHECKS:
        print(f"{name}: {CHECKS[name].__doc__}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            CHECKS[name](check, Path(folder))
    print(f"{len(check.missed)} figures missed" + "".join(f"\n  {what}" for what in check.missed))
    return 1 if check.missed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
