"""StyleGAN2's synthesis against grouped convolutions, and GUIDE's step against a loop written from the paper.

Both sides of a pair have the same weights and draws, and give the same values: checked. Times are of the processor, in
one thread, which other work on the machine disturbs less than those of a clock.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tests.benchmarks.jobs import TIMED, WARM, Job, Side, adam, in_turns, nudge, term_of
from unlearn.core.optim import learning_rate
from unlearn.core.randomness import Randomness
from unlearn.models.gan.latents import latents_of
from unlearn.models.gan.stylegan2.generator import Generator, Shape
from unlearn.models.gan.wrapper import LatentGenerator
from unlearn.objectives.gan.global_preservation import GlobalPreservation
from unlearn.objectives.gan.guide import Guide
from unlearn.objectives.gan.latent_cache import recall_rows
from unlearn.objectives.gan.perceptual_loss import PerceptualLoss

SIZES = {
    64: (16, {"channel_base": 8192, "channel_max": 256, "z_dim": 256, "w_dim": 256}),
    256: (4, {"channel_base": 16384, "channel_max": 512}),
}
"""Side -> items a step, and the shape: that of gan/stylegan2_faces, and that of the public networks of 256 pixels."""


def main() -> None:
    """Print the ratios; each is the median over rounds in which the sides take turns."""
    torch.set_num_threads(1)
    for side in SIZES:
        synthesis(side)
    guide()


# ------------------------------------------------------------------------------------------------------- synthesis


def synthesis(side: int) -> None:
    """A forward and a backward pass of the synthesis network."""
    batch, settings = SIZES[side]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = Generator(Shape(size=side, **settings))
        w = torch.randn(batch, ours.num_ws, ours.shape.w_dim)
    grouped = copy.deepcopy(ours)
    grouped.synthesis.fused = True
    with torch.no_grad():
        torch.testing.assert_close(ours.synthesis(w)[0], grouped.synthesis(w)[0], rtol=1e-4, atol=1e-4)
    found = in_turns({"ours": lambda: passes(ours, w), "grouped": lambda: passes(grouped, w)})
    fast, slow = (statistics.median(each.step for each in found[name]) for name in ("ours", "grouped"))
    ratio = statistics.median(b.step / a.step for a, b in zip(found["ours"], found["grouped"], strict=True))
    print(f"StyleGAN2's synthesis, {side} pixels, {batch} items, forward and backward, against grouped convolutions")
    print(f"  {1e3 * fast:.0f} ms against {1e3 * slow:.0f} ms: {ratio:.2f} x (goal 1.5)", flush=True)


def passes(network: Generator, w: Tensor) -> Side:
    """Return the median seconds of a forward and a backward pass; the first is not counted."""
    taken = []
    for _ in range(4):
        began = time.process_time()
        image, _ = network.synthesis(w)
        image.square().mean().backward()
        taken.append(time.process_time() - began)
        network.zero_grad()
    return Side(statistics.median(taken[1:]))


# ----------------------------------------------------------------------------------------------------------- GUIDE


def guide() -> None:
    """A step on one face: all images of a step from one pass, the target's computed once, against one by one."""
    job = Job.of("gan/guide_faces")
    agrees(job)
    print(f"GUIDE on faces, one person and {job.recipe.optim.batch} strangers a step, against a loop from the paper")
    found = in_turns({"ours": job.engine, "paper": lambda: textbook(job)})
    own = [side.step + side.before / job.steps for side in found["ours"]]
    ratio = statistics.median(other.step / each for each, other in zip(own, found["paper"], strict=True))
    fast, slow = statistics.median(own), statistics.median(side.step for side in found["paper"])
    before = statistics.median(side.before for side in found["ours"])
    print(
        f"  {1e3 * fast:.0f} ms a step, {1e3 * before / job.steps:.0f} of them a share of the {before:.1f} s before "
        f"{job.steps} steps, against {1e3 * slow:.0f} ms: {ratio:.2f} x (goal 1.3)",
        flush=True,
    )


def textbook(job: Job) -> Side:
    """Return the median seconds of a step: each pair of images has a pass in the model and one in a frozen copy."""
    local, rest = term_of(job, "forget", Guide), term_of(job, "retain", GlobalPreservation)
    model, target = job.inputs.target.copy(), job.inputs.target.copy().requires_grad_(False)
    moving = set(job.recipe.scope.select(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in moving)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = adam(job.recipe.optim, parameters)
    split = job.inputs.splits["forget"]
    source = latents_of(model, split.dataset, split.ids[:1], local.inversion, Randomness(0))
    aim = local.aim(source, torch.zeros_like(source), {"mean": target.w_avg})
    longest = (source - target.w_avg).norm().item() / 2
    ticks = []
    for step in range(WARM + TIMED):
        ticks.append(time.process_time())
        near = [torch.zeros_like(source), *(drawn_step(target, source, longest) for _ in range(local.neighbours))]
        loss = torch.zeros(())
        for index, away in enumerate(near):
            weight = local.adjacent if index else local.local
            loss = loss + local.weight * weight * apart(local.likeness, model, target, source + away, aim + away)
        for _ in range(job.recipe.optim.batch):
            w = target.mapping(torch.randn(1, target.generator.z_dim))
            loss = loss + rest.weight / job.recipe.optim.batch * apart(rest.likeness, model, target, w, w)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.param_groups[0]["lr"] = learning_rate(job.recipe.optim, step)
        optimizer.step()
    return Side(statistics.median(b - a for a, b in pairwise(ticks[WARM:])))


def apart(likeness: PerceptualLoss, model: LatentGenerator, target: LatentGenerator, w: Tensor, aim: Tensor) -> Tensor:
    """Return the distance of the model's image of w from the target's image of its aim."""
    with torch.no_grad():
        theirs = likeness.seen(target, aim)
    return likeness.between(likeness.seen(model, w), theirs).squeeze(0)


def drawn_step(model: LatentGenerator, source: Tensor, longest: float) -> Tensor:
    """Return a D = a (w_r - w_u) / |w_r - w_u|, a uniform, (1, num_ws, w_dim)."""
    away = model.mapping(torch.randn(1, model.generator.z_dim))[:, None] - source
    return away / away.norm() * (longest * torch.rand(()))


def agrees(job: Job) -> None:
    """Check that both terms are the same both ways, on the same draws, with a model that has moved."""
    local, rest = term_of(job, "forget", Guide), term_of(job, "retain", GlobalPreservation)
    module, target = job.module(), job.inputs.target.copy()
    with tempfile.TemporaryDirectory() as folder:
        module.cache_reference_in(Path(folder))
        module.on_fit_start()
        nudge(module.model)
        batches = job.loader()[0]
        with torch.no_grad():
            context = module._context("forget/guide")
            batch = {key: value[:1] for key, value in batches["forget"][0].items()}
            (source,) = context.recall(context.state["latents"], "forget", batch["id"])[:, None]
            draws = [context.randomness.child(f"neighbour {number}") for number in range(local.neighbours)]
            first, size = batch["id"] * local._each + 1, local.pool or 0
            keys = [first + draw.integers(batch["id"], size) for draw in draws]
            near = [torch.zeros_like(source), *(recall_rows(context, context.state["steps"], key) for key in keys)]
            aim = local.aim(source, torch.zeros_like(source), context.state)
            weights = [local.local, *[local.adjacent] * len(draws)]
            pairs = [apart(local.likeness, module.model, target, source + away, aim + away) for away in near]
            wanted = torch.stack([weight * pair for weight, pair in zip(weights, pairs, strict=True)]).sum()
            found = local(module.model, batch, context).values
            torch.testing.assert_close(found, wanted[None], rtol=1e-3, atol=1e-4)
            context, batch = module._context("retain/global_preservation"), batches["retain"][0]
            spared = context.state["spared"]
            w = target.mapping(rest._z(target, spared[context.randomness.integers(batch["id"], len(spared))], context))
            wanted = torch.stack([apart(rest.likeness, module.model, target, row[None], row[None]) for row in w])
            torch.testing.assert_close(rest(module.model, batch, context).values, wanted, rtol=1e-3, atol=1e-4)
