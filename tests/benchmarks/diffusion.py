"""ESD and SFD on the shipped models of digits, against the loops that one would write by hand after the released codes.

Both sides have the same models, batches and Adam, ours fused, and the losses are the same on the same draws: checked.
Times are of the processor, in one thread, which other work on the machine disturbs less than those of a clock.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor, nn

from tests.benchmarks.jobs import TIMED, WARM, Job, Side, adam, in_turns, nudge, term_of
from unlearn.models.conditioning import Condition
from unlearn.models.diffusion.wrapper import Diffusion
from unlearn.objectives.diffusion.esd import ESD
from unlearn.objectives.diffusion.sfd import SFD, sid_loss
from unlearn.training.module import clip


def main() -> None:
    """Print the ratios; each is the median over rounds in which the sides take turns."""
    torch.set_num_threads(1)
    esd()
    sfd()


# ------------------------------------------------------------------------------------------------------------- ESD


def esd() -> None:
    """ESD-u, states of the target's trajectories: drawn once and shared, against walked from scratch at each step."""
    job = Job.of("diffusion/esd_digits", "retain=null")
    batch = job.recipe.optim.batch
    esd_agrees(job)
    print(f"ESD on coloured digits, {job.steps} steps of {batch}, against the textbook loop, a training sample")
    sides = {
        "ours": job.engine,
        f"{batch} together": lambda: textbook_esd(job, batch),
        "one by one, as released": lambda: textbook_esd(job, 1),
    }
    found = in_turns(sides)
    drawn = [side.before / job.steps / batch for side in found["ours"]]
    ours = [side.step / batch + own for side, own in zip(found.pop("ours"), drawn, strict=True)]
    for (name, rounds), size in zip(found.items(), (batch, 1), strict=True):
        ratio = statistics.median(side.step / size / own for side, own in zip(rounds, ours, strict=True))
        slow, fast = statistics.median(side.step / size for side in rounds), statistics.median(ours)
        print(
            f"  {1e3 * fast:.2f} ms, {1e3 * statistics.median(drawn):.2f} of them for the trajectories, against "
            f"{1e3 * slow:.2f} ms {name}: {ratio:.1f} x (goal 3)"
        )


def textbook_esd(job: Job, size: int) -> Side:
    """Return the mean seconds of a step over all numbers of DDIM steps to the state, of which a step draws one."""
    term = term_of(job, "forget", ESD)
    model, target = job.inputs.target.copy(), job.inputs.target.copy().requires_grad_(False)
    moving = job.recipe.scope.select(model)
    parameters = [parameter.requires_grad_(name in set(moving)) for name, parameter in model.named_parameters()]
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = adam(job.recipe.optim, parameters)
    split, seconds = job.inputs.splits["forget"], 0.0
    for index in range(-WARM, term.states.steps):
        began = time.process_time()
        picked = split.ids[torch.randint(len(split), (size,))]
        with torch.no_grad():
            condition = target.encode(target.condition(split.batch(picked)))
            null = target.encode(target.null(size))
        x, t = walked(target, torch.randn(size, *target.latent_shape), condition, null, term, max(0, index))
        loss = esd_loss(model, target, x, t, condition, null, term.eta).mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, job.recipe.optim.clip or float("inf"))
        optimizer.step()
        seconds += time.process_time() - began if index >= 0 else 0.0
    return Side(seconds / term.states.steps)


@torch.no_grad()
def walked(
    model: Diffusion, x: Tensor, condition: Condition, null: Condition, term: ESD, number: int
) -> tuple[Tensor, Tensor]:
    """Return the state before DDIM step ``number``, from x_T, with a pass for each condition; and its t, (B,)."""
    scheduler = DDIMScheduler.from_config(model.scheduler.config, clip_sample=True, set_alpha_to_one=True)
    scheduler.set_timesteps(term.states.steps)
    for t in scheduler.timesteps[:number].tolist():
        at = torch.full((len(x),), t)
        empty, full = model.predict(x, at, null), model.predict(x, at, condition)
        eps = empty + term.states.guidance * (full - empty)
        x = scheduler.step(eps, t, x, use_clipped_model_output=True, return_dict=False)[0]
    return x, scheduler.timesteps[number].expand(len(x))


def esd_loss(
    model: Diffusion, target: Diffusion, x: Tensor, t: Tensor, condition: Condition, null: Condition, eta: float
) -> Tensor:
    """Return the mean square an item, (B,), with a pass for each score."""
    with torch.no_grad():
        empty, full = target.predict(x, t, null), target.predict(x, t, condition)
    wanted = empty - eta * (full - empty)
    return F.mse_loss(model.predict(x, t, condition), wanted, reduction="none").flatten(1).mean(dim=1)


def esd_agrees(job: Job) -> None:
    """Check that a trajectory, and the loss at some states of a model that moved, are the same both ways."""
    term, module = term_of(job, "forget", ESD), job.module()
    with tempfile.TemporaryDirectory() as folder:
        module.cache_reference_in(Path(folder))
        module.on_fit_start()
        nudge(module.model)
        target, context = job.inputs.target.copy(), module._context("forget/esd")
        ids = term.states._chosen(term.states.items, context)[:2]
        states = context.recall(term.states._name, "forget", ids).unflatten(0, (2, term.states.steps))
        condition, null = target.condition(context.batch("forget", ids)), target.null(2)
        last = walked(target, states[:, 0], condition, null, term, term.states.steps - 1)[0]
        torch.testing.assert_close(last, states[:, -1], atol=1e-4, rtol=1e-4)
        batch = job.loader()[0]["forget"][0]
        found = term.states(module.model, batch, context)
        null = target.null(len(found.x))
        with torch.no_grad():
            ours = term(module.model, batch, context).values
            theirs = esd_loss(module.model, target, found.x, found.t, found.condition, null, term.eta)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- SFD


def sfd() -> None:
    """An iteration of SFD: a step of the fake score and one of the generator."""
    job = Job.of("diffusion/sfd_digits", "forget.warmup=0", "retain.warmup=0")  # every step is of both networks
    sfd_agrees(job)
    optim = job.recipe.optim
    print(f"SFD on digits, {optim.forget_batch} forget and {optim.batch} retain items, against the textbook loop")
    found = in_turns({"ours": job.engine, "textbook": lambda: textbook_sfd(job)})
    pairs = [(own.step, other.step) for own, other in zip(found["ours"], found["textbook"], strict=True)]
    fast, slow = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"  {1e3 * fast:.1f} ms an iteration against {1e3 * slow:.1f} ms: {ratio:.2f} x (goal 1.2)")


def textbook_sfd(job: Job) -> Side:
    """Return the median seconds of an iteration: items are drawn for each of the two steps, scores pass by pass."""
    assert job.inputs.teacher is not None
    generator, teacher = job.inputs.target.copy(), job.inputs.teacher.shared()
    fake = job.inputs.teacher.copy()
    optim, loader = job.recipe.optim, job.loader()
    sides = [list(generator.parameters()), list(fake.parameters())]
    optimizers = [adam(optim, parameters) for parameters in sides]
    average = [parameter.detach().clone() for parameter in sides[0]]
    ticks = []
    for step in range(WARM + TIMED):
        ticks.append(time.process_time())
        for turn, parameters in ((1, sides[1]), (0, sides[0])):
            loss = torch.zeros(())
            for group, (batch,) in loader[step].items():
                term = term_of(job, group, SFD)
                condition, size = generator.condition(batch), len(batch["id"])
                with torch.set_grad_enabled(turn == 0):
                    x0 = generator.generated(torch.randn(size, *generator.latent_shape), condition)
                t = torch.randint(term.t_min, term.t_max, (size,))
                noise = torch.randn_like(x0)
                x = generator.noised(x0, noise, t)
                null = generator.null(size)
                if turn:
                    classes = torch.where(torch.rand(size) < term.drop, null.classes, condition.classes)
                    loss = loss + term.fake_weight * fake_loss(fake, x, t, noise, classes, null, term).mean()
                else:
                    other = condition if group == "retain" else others(job, generator, size)
                    values = generator_loss(fake.requires_grad_(False), teacher, x0, x, t, condition, other, null, term)
                    loss = loss + term.weight * values.mean()
            optimizers[turn].zero_grad()
            torch.autograd.backward(loss)
            fake.requires_grad_(True)
            clip([parameter.grad for parameter in parameters], optim.clip)  # type: ignore[misc]
            optimizers[turn].step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in sides[0]], 1 - (optim.ema or 0.0))
    return Side(statistics.median(b - a for a, b in pairwise(ticks[WARM:])))


def guided(model: Diffusion, x: Tensor, t: Tensor, condition: Condition, null: Condition, guidance: float) -> Tensor:
    """Return the guided score with a pass for each condition."""
    empty = model.predict(x, t, null)
    return empty + guidance * (model.predict(x, t, condition) - empty)


def fake_loss(
    fake: Diffusion, x: Tensor, t: Tensor, noise: Tensor, classes: Tensor, null: Condition, term: SFD
) -> Tensor:
    """Return the fake score's loss per item, (B,)."""
    score = guided(fake, x, t, Condition(classes=classes), null, term.guidance)
    return F.mse_loss(score, noise, reduction="none").flatten(1).mean(dim=1)


def generator_loss(
    fake: Diffusion,
    teacher: Diffusion,
    x0: Tensor,
    x: Tensor,
    t: Tensor,
    condition: Condition,
    other: Condition,
    null: Condition,
    term: SFD,
) -> Tensor:
    """Return the generator's loss per item, (B,)."""
    f_psi = fake.denoised(x, t, guided(fake, x, t, condition, null, term.guidance))
    f_phi = teacher.denoised(x, t, guided(teacher, x, t, other, null, term.guidance))
    return sid_loss(x0, f_phi, f_psi, term.alpha)


def others(job: Job, model: Diffusion, size: int) -> Condition:
    """Return other classes than the forgotten ones, drawn by chance."""
    known = model.settings.classes or ()
    left = torch.tensor([index for index, name in enumerate(known) if name not in (job.recipe.data.forget.label or ())])
    return Condition(classes=left[torch.randint(len(left), (size,))])


def sfd_agrees(job: Job) -> None:
    """Check that both losses are the same both ways, on the same draws, with a fake score that has moved."""
    module = job.module()
    with tempfile.TemporaryDirectory() as folder:
        module.cache_reference_in(Path(folder))
        module.on_fit_start()
        for group, (batch,) in job.loader()[0].items():
            term, context, model = term_of(job, group, SFD), module._context(f"{group}/sfd"), module.model
            fake, teacher = context.beside(), context.teacher()
            nudge(fake)
            condition, null = model.condition(batch), model.null(len(batch["id"]))  # type: ignore[operator]
            with torch.no_grad():
                x0 = term.drawn(model, batch, context)
                x, t, noise = term.noised(model, batch, x0, context)
                f_psi = fake.denoised(x, t, guided(fake, x, t, condition, null, term.guidance))
                other = term._override(model, batch, f_psi, context)
                theirs = generator_loss(fake, teacher, x0, x, t, condition, other, null, term)
                torch.testing.assert_close(term(model, batch, context).values, theirs, atol=1e-5, rtol=1e-3)
                own = next(
                    each for phase in module.phases for g, _, each in phase.terms() if not phase.primary and g == group
                )
                dropped = context.randomness.child("drop").uniform(batch["id"], ()) < term.drop
                classes = torch.where(dropped, null.classes, condition.classes)
                theirs = fake_loss(fake, x, t, noise, classes, null, term)
                torch.testing.assert_close(own(model, batch, context).values, theirs, atol=1e-5, rtol=1e-4)
