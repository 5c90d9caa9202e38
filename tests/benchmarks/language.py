"""NPO + KL on a model of SmolLM2's shape against the textbook loop, and MUSE's generation against one prompt at a time.

Every measurement of a step is a process of its own, as memory is a peak; the sides take turns.
"""

from __future__ import annotations

import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.config.schema import Trainer
from unlearn.core.optim import Optim
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch, Dataset, Split
from unlearn.data.factbook.source import Factbook
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.text.muse import MuseMetrics
from unlearn.models.language.config import Language, SmallLlama
from unlearn.models.lora import Lora
from unlearn.models.scope import All, Scope
from unlearn.objectives.language.kl import KL
from unlearn.objectives.language.npo import NPO
from unlearn.objectives.language.target_logits import bucketed, recall_logits
from unlearn.training.build import build_module
from unlearn.training.dataloader import StepLoader
from unlearn.training.fit import fit, peak_memory
from unlearn.training.module import UnlearningModule

VOCABULARY, TOKENS, ANSWER, BATCH = 49_152, 256, 64, 4
WARM, TIMED, ROUNDS = 1, 2, 2
TOP_KS = (100, 1000)
TOP = f"top_{TOP_KS[-1]}"
MEMORY = {"exact": 0.75, "lora": 0.4, "lora_checkpointing": 0.4}
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
OPTIM = Optim(name="adamw", lr=1e-5, steps=WARM + TIMED, batch=BATCH)
BETA = 0.1
LOSSES = {"npo": "forget", "kl": "retain"}


class RandomText(Dataset):
    """Items of 256 random tokens, the last quarter of them answers."""

    def __init__(self, size: int) -> None:
        self.labels = [""] * size
        self.attributes = [frozenset[str]()] * size
        self.is_test = torch.zeros(size, dtype=torch.bool)
        self.fingerprint, self.info = "random", {}

    def batch(self, ids: Tensor) -> Batch:
        """Return items; the same id is the same text."""
        tokens = Randomness(0, "text").integers(ids, VOCABULARY, (TOKENS,))
        mask = torch.ones_like(tokens, dtype=torch.bool)
        return {"id": ids, "tokens": tokens, "mask": mask, "answer": mask & (torch.arange(TOKENS) >= TOKENS - ANSWER)}


class Tick(NamedTuple):
    """A moment: seconds of wall time and of this process's processors."""

    wall: float
    processor: float


class Side(NamedTuple):
    """What one process measured: wall and processor seconds a step, peak memory in bytes, first and last losses.

    ``errors`` holds the exact KL at the end, and what the top k tokens give of it.
    """

    seconds: float = 0.0
    processor: float = 0.0
    peak: float = 0.0
    losses: dict[str, list[float]] = {}
    errors: dict[str, float] = {}


def main() -> None:
    """Print the ratios, each beside what is wanted."""
    answers = f"{BATCH} + {BATCH} x {TOKENS} tokens, {ANSWER} of them answers"
    print(f"NPO + KL, AdamW, SmolLM2's shape, vocabulary {VOCABULARY:,}, {answers}, {torch.get_num_threads()} threads")
    timed: dict[str, list[Side]] = {name: [] for name in ("textbook", "exact", TOP)}
    for _ in range(ROUNDS):
        for name, sides in timed.items():
            sides.append(_apart(name))
    book = timed["textbook"]
    for name, wanted in (("exact", 1.25), (TOP, 1.4)):
        ratios = [_median(book, unit) / _median(timed[name], unit) for unit in ("seconds", "processor")]
        print(
            f"  {name:<9} {_median(timed[name], 'seconds'):6.2f} s a step, textbook {_median(book, 'seconds'):6.2f} s: "
            f"{ratios[0]:.2f} times as fast (wanted >= {wanted}), {ratios[1]:.2f} in processor time"
        )
    errors = timed["exact"][0].errors
    tops = ", ".join(f"top {k} {errors[str(k)]:.5f} ({errors[str(k)] / errors['exact'] - 1:+.1%})" for k in TOP_KS)
    print(f"  KL after {OPTIM.steps} steps, nats a token: exact {errors['exact']:.5f}, {tops}")
    print(f"  the textbook's losses are found again to {_gap(book[0], timed['exact'][0]):.1e}")
    memory({name: statistics.median(side.peak for side in timed[name]) for name in ("textbook", "exact")})
    generation()


def memory(known: dict[str, float]) -> None:
    """Print peaks against the textbook's, as they are and where malloc gives every large piece back at once.

    On a CPU the C library keeps much of what a program frees, more or less by chance, so that a peak of resident
    memory says little about what was needed; with a fixed limit for pieces of their own it does.
    """
    for malloc, settings in {"as it is": {}, "pieces given back": GIVING_BACK}.items():
        sides = ("imports", "textbook", *MEMORY)
        same = {} if settings else known
        peak = {name: (same.get(name) or _apart(name, settings).peak) / 2**30 for name in sides}
        print(f"  peak memory, {malloc}: textbook {peak['textbook']:.2f} GiB, imports alone {peak['imports']:.2f}")
        for name, wanted in MEMORY.items():
            net = (peak[name] - peak["imports"]) / (peak["textbook"] - peak["imports"])
            print(
                f"    {name:<20} {peak[name]:.2f} GiB, {peak[name] / peak['textbook']:.2f} of the textbook's "
                f"(wanted <= {wanted}), {net:.2f} without the imports"
            )
        if torch.cuda.is_available():  # its allocator knows what is needed
            return


def _median(sides: Sequence[Side], unit: str) -> float:
    return statistics.median(getattr(side, unit) for side in sides)


def _gap(first: Side, second: Side) -> float:
    """Return the largest relative difference of the losses of two sides."""
    pairs = [(a, b) for name in LOSSES for a, b in zip(first.losses[name], second.losses[name], strict=True)]
    return max(abs(a - b) / max(abs(a), 1e-2) for a, b in pairs)


def model(checkpointing: bool = False) -> Language:
    """Return the model with random weights, whose next token is about as uncertain (3 nats) as in real text."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llama = LlamaForCausalLM(config)
        # logits of deviation s over V tokens have an entropy of about ln V - s^2 / 2
        torch.nn.init.normal_(llama.get_input_embeddings().weight, std=4 / math.sqrt(config.hidden_size))
    return Language(llama, SmallLlama().build({}, Randomness(0)).encoder, checkpointing).to(_device())


def splits() -> dict[str, Split]:
    """As many items as the steps take."""
    count = BATCH * OPTIM.steps
    data = RandomText(2 * count)
    return {
        "forget": Split("forget", data, torch.arange(count)),
        "retain": Split("retain", data, torch.arange(count, 2 * count)),
    }


def textbook() -> Side:
    """Time the loop that one would write by hand (as OpenUnlearning does): a frozen copy, all logits, one backward."""
    student = model().model
    target = copy.deepcopy(student).requires_grad_(False)
    loader = StepLoader(splits(), {"forget": BATCH, "retain": BATCH}, Randomness(0).child("order"))
    optimizer = torch.optim.AdamW(student.parameters(), lr=OPTIM.lr, weight_decay=OPTIM.weight_decay)
    ticks: list[Tick] = []
    losses: dict[str, list[float]] = {"npo": [], "kl": []}
    for step in range(OPTIM.steps):
        ticks.append(_now())
        batch = {
            name: {key: value.to(_device()) for key, value in parts[0].items()} for name, parts in loader[step].items()
        }
        with torch.no_grad():
            before = _log_prob(target, batch["forget"])
        ratio = _log_prob(student, batch["forget"]) - before
        npo = (-2 / BETA * F.logsigmoid(-BETA * ratio)).mean()
        with torch.no_grad():
            reference = target(input_ids=batch["retain"]["tokens"]).logits[:, :-1].log_softmax(dim=-1)
        own = student(input_ids=batch["retain"]["tokens"]).logits[:, :-1].log_softmax(dim=-1)
        divergence = F.kl_div(own, reference, reduction="none", log_target=True).sum(dim=-1)
        kl = (divergence * batch["retain"]["answer"][:, 1:]).sum(dim=1).div(ANSWER).mean()
        optimizer.zero_grad()
        torch.autograd.backward(npo + kl)
        optimizer.step()
        if step in (0, OPTIM.steps - 1):
            losses["npo"].append(npo.item())
            losses["kl"].append(kl.item())
    return Side(*_per_step([*ticks, _now()]), peak_memory(), losses)


def _log_prob(llama: Any, batch: Batch) -> Tensor:
    """Return the summed log p of the answers, (B,), from the logits of all tokens."""
    logits = llama(input_ids=batch["tokens"]).logits[:, :-1]
    nll = F.cross_entropy(logits.transpose(1, 2), batch["tokens"][:, 1:], reduction="none")
    return -(nll * batch["answer"][:, 1:]).sum(dim=1)


def engine(retain: KL, scope: Scope, checkpointing: bool = False) -> Side:
    """Time the same job as a run does it, with its curves, checkpoints and checks."""
    student = model(checkpointing)
    terms: Any = {"forget": {"npo": NPO(beta=BETA)}, "retain": {"kl": retain}}
    module = build_module(student, splits(), 0, **terms, scope=scope, optim=OPTIM, log_every=OPTIM.steps - 1)
    ticks: list[Tick] = []
    rows: list[dict[str, float]] = []
    step = module.training_step

    def timed(*arguments: Any) -> None:
        ticks.append(_now())
        step(*arguments)
        rows.append(module.row)
        if len(rows) == OPTIM.steps:  # what follows, the last checkpoint, belongs to the run and not to a step
            ticks.append(_now())

    module.training_step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        fit(module, Trainer(tensorboard=False, checkpoint_every=1000), Path(folder), "bench")
        peak = peak_memory()
        errors = top_errors(module) if retain.top_k is None else {}
    losses = {name: [row[f"loss/{group}/{name}"] for row in rows if row] for name, group in LOSSES.items()}
    return Side(*_per_step(ticks), peak, losses, errors)


@torch.no_grad()
def top_errors(module: UnlearningModule) -> dict[str, float]:
    """Return, at the weights of a finished run, the KL of the retain items, and what the top k tokens give of it."""
    split = module.common.splits["retain"]
    context = module._context("retain/kl")
    found = {str(k): 0.0 for k in ("exact", *TOP_KS)}
    for ids in split.ids.split(BATCH):
        batch = context.batch("retain", ids)
        target = recall_logits(module.model, context, batch["id"])
        answers = module.model.answers(batch)
        pairs = {"exact": (target.log_softmax(dim=1), answers.logits.log_softmax(dim=1))}
        for k in TOP_KS:
            tokens = target.topk(k, dim=1).indices
            pairs[str(k)] = (bucketed(target, tokens), bucketed(answers.logits, tokens))
        for name, (p, q) in pairs.items():
            found[name] += F.kl_div(q, p, reduction="sum", log_target=True).item() / (len(split) * ANSWER)
    return found


def generation() -> None:
    """Print how much faster MUSE's two scores are in batches than with one prompt at a time, and that they agree."""
    source = Factbook(countries=20, facts=8, passages=4, holdout_countries=0)
    config = SmallLlama(max_length=96)
    data = config.read(source.load())
    everything = torch.arange(len(data))
    stream = Randomness(0, "bench")
    subject = config.build(data.info, stream).to(_device())
    found = {"forget": Split("forget", data, everything[::2]), "retain": Split("retain", data, everything[1::2])}
    seconds, figures = {}, {}
    for size in (32, 1):
        times = []
        for _ in range(ROUNDS):
            evaluation = Evaluation({"unlearned": subject}, found, stream, _device())
            began = time.perf_counter()
            records = MuseMetrics(items=40, batch_size=size)(evaluation).records
            times.append(time.perf_counter() - began)
        seconds[size] = min(times)
        figures[size] = {(record.metric, record.split): record.value for record in records}
    gap = max(abs(value - figures[1][key]) for key, value in figures[32].items())
    print(
        f"  MUSE's scores, {len(figures[1])} figures: alone {seconds[1]:.1f} s, in batches {seconds[32]:.1f} s, "
        f"{seconds[1] / seconds[32]:.1f} times as fast (wanted >= 5), largest difference {gap:.0e}"
    )


SIDES: dict[str, Callable[[], Side]] = {
    "textbook": textbook,
    "exact": lambda: engine(KL(), All()),
    TOP: lambda: engine(KL(top_k=TOP_KS[-1]), All()),
    "lora": lambda: engine(KL(), Lora()),
    "lora_checkpointing": lambda: engine(KL(), Lora(), checkpointing=True),
}


def _apart(name: str, settings: dict[str, str] | None = None) -> Side:
    """Measure one side in a process of its own, with these environment variables."""
    command = [sys.executable, "-m", "tests.benchmarks.language", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **(settings or {})})
    return Side(**json.loads(done.stdout.splitlines()[-1]))


def _per_step(ticks: Sequence[Tick]) -> tuple[float, float]:
    """Return the median wall and processor time between ticks after the warm-up."""
    gaps = [(b.wall - a.wall, b.processor - a.processor) for a, b in pairwise(ticks[WARM:])]
    return statistics.median(gap[0] for gap in gaps), statistics.median(gap[1] for gap in gaps)


def _now() -> Tick:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Tick(time.perf_counter(), time.process_time())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        side = Side(peak=peak_memory()) if sys.argv[1] == "imports" else SIDES[sys.argv[1]]()
        print(json.dumps(side._asdict()))
    else:
        main()
