"""Benchmarks of lm-evaluation-harness on the models in memory; multiple choice needs no network."""

import copy
import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import cached_property
from os.path import expanduser
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from typing_extensions import override

from unlearn.core.errors import RecipeError, did_you_mean
from unlearn.core.records import Direction, Record
from unlearn.core.validation import PositiveInt
from unlearn.data.base import Split
from unlearn.evaluators.base import Evaluation, EvaluationResult, Evaluator, Metric
from unlearn.evaluators.sampling import limited
from unlearn.evaluators.statistics import mean_ci95, share_ci95
from unlearn.evaluators.text.metrics import missing_package
from unlearn.evaluators.text.multiple_choice import Question, multiple_choice, perturbed_choices, read_questions
from unlearn.evaluators.text.scoring import DIRECTIONS, measured_splits, question_ids, texts
from unlearn.models.capabilities import TokenizedLanguageModel

CHOICES = "perturbed_choices"
"""The task built from each question's right answer and its perturbed ones."""

_HARNESS = "a named task: `higher`, `lower` or `none`, as the harness says"
ACC = Metric(
    name="lm_eval_acc",
    label="accuracy (lm-eval)",
    formula="share of questions of the task in `about` whose right choice has the highest log p given the prompt. "
    "Task `perturbed_choices`: the right answer among the perturbed ones; `questions`: those of a file",
    unit="share",
    direction=DIRECTIONS,
    otherwise=_HARNESS,
    source="Gao et al. 2024; Li et al. 2024 (WMDP), section 3",
)
ACC_NORM = Metric(
    name="lm_eval_acc_norm",
    label="accuracy by length (lm-eval)",
    formula="the same with log p / bytes of the choice",
    unit="share",
    direction=DIRECTIONS,
    otherwise=_HARNESS,
    source="Gao et al. 2024",
)
OTHER = Metric(
    name="lm_eval_{metric}",
    label="{metric} (lm-eval)",
    formula="another metric of lm-evaluation-harness on the task in `about`",
    direction=DIRECTIONS,
    otherwise=_HARNESS,
    source="Gao et al. 2024",
)


class Task(NamedTuple):
    """A task of the harness (a name or a configuration), with the task and split of its records."""

    name: str
    split: str
    spec: str | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LmEval(Evaluator[TokenizedLanguageModel]):
    """Metrics of lm-evaluation-harness, each ``lm_eval_<metric>``; a multiple-choice task has ``acc`` and ``acc_norm``.

    Only the harness's own tasks need a network. Intervals are over items, where the metric is a mean over items. Every
    rank does all the work.

    Args:
        tasks: names of tasks: ``perturbed_choices`` (forget, retain and holdout questions with their perturbed
            answers), tasks in ``include_path``, and tasks of the harness, which asks the hub for their data.
        include_path: folder of your own task files (YAML); file names in them are relative to it.
        questions: JSONL file of {question, choices, answer} (as WMDP has it; answer is an index from 0) about what is
            to be forgotten; task ``questions``.
        limit: at most this many questions per task; those of the data are drawn by the seed. null takes all.
        batch_size: requests per forward pass.

    Reference:
        Gao et al., The Language Model Evaluation Harness, 2024. doi:10.5281/zenodo.12608602
        Li et al., The WMDP Benchmark, 2024, section 3. arXiv:2403.03218
    """

    tasks: list[str] = field(default_factory=lambda: [CHOICES])
    include_path: str | None = None
    questions: str | None = None
    limit: PositiveInt | None = 200
    batch_size: PositiveInt = 8

    metrics: ClassVar = (ACC, ACC_NORM, OTHER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks and self.questions is None:
            raise ValueError(f"tasks is empty; name a task, e.g. [{CHOICES}]")

    @override
    def check(self, splits: Mapping[str, Split]) -> None:
        """Refuse questions that cannot be read, and unknown tasks."""
        _ = self._asked, self._manager  # read now, and kept for the run

    @override
    def __call__(self, evaluation: Evaluation[TokenizedLanguageModel]) -> EvaluationResult:
        self.check(evaluation.splits)
        perturbed = self._perturbed(evaluation)
        findings = EvaluationResult()
        for subject, model in evaluation.models.items():
            tasks = list(self._tasks(model, perturbed))
            if tasks:
                output = self._run(model, tasks)
                for task in tasks:
                    findings.records.extend(_records(evaluation, subject, task, output))
        if lacking := [split for split, questions in perturbed.items() if not questions]:
            findings.notes.append(
                f"lm_eval: the questions of {' and '.join(lacking)} have no perturbed answers, so there is no task "
                f"{CHOICES} for them."
            )
        return findings

    @cached_property
    def _asked(self) -> list[Question]:
        """The questions of the file, if one is named."""
        if self.questions is None:
            return []
        try:
            return read_questions(Path(expanduser(self.questions)))[: self.limit]
        except RecipeError as error:
            raise RecipeError(f"evaluate.lm_eval.questions: {error}") from error

    def _perturbed(self, evaluation: Evaluation[TokenizedLanguageModel]) -> dict[str, list[Question]]:
        """Return split -> its questions with perturbed answers; no splits where that task is not chosen."""
        found = {}
        for split in measured_splits(evaluation) if CHOICES in self.tasks else ():
            data, ids = texts(evaluation.splits[split]), question_ids(evaluation.splits[split])
            able = limited(ids[data.having_form("perturbed_0")[ids]], self.limit, evaluation.seed, split)
            found[split] = perturbed_choices(data, able)
        return found

    def _tasks(self, model: TokenizedLanguageModel, perturbed: Mapping[str, Sequence[Question]]) -> Iterator[Task]:
        """Yield the tasks, in the model's own prompt format."""
        for split, questions in perturbed.items():
            if questions:
                yield Task(CHOICES, split, multiple_choice(f"{CHOICES}_{split}", questions, model.encoder))
        if self._asked:
            yield Task("questions", "forget", multiple_choice("questions", self._asked, model.encoder))
        for name in self.tasks:
            if name != CHOICES:
                yield Task(name, "", name)

    @cached_property
    def _folder(self) -> Path | None:
        """The absolute folder of the user's own tasks, in which the harness runs."""
        return None if self.include_path is None else Path(expanduser(self.include_path)).resolve()

    @cached_property
    def _manager(self) -> Any:
        """The harness's list of tasks; its own 14,000 are slow to read, and included only where one is named."""
        manager_class = _harness()[2]
        wanted = [name for name in self.tasks if name != CHOICES]
        folder = self._folder
        if folder is not None and not folder.is_dir():
            raise RecipeError(f"evaluate.lm_eval.include_path={self.include_path}: there is no such folder.")
        with _quiet():
            manager = manager_class(include_path=folder, include_defaults=False)
            if not set(wanted) <= set(manager.all_tasks):
                manager = manager_class(include_path=folder, include_defaults=True)
        for name in wanted:
            if name not in manager.all_tasks:
                raise RecipeError(
                    f"evaluate.lm_eval.tasks: there is no task {name!r}. "
                    f"{did_you_mean(name, [CHOICES, *manager.all_tasks])} To see the harness's own, type: "
                    "python -m lm_eval ls tasks"
                )
        return manager

    def _run(self, model: TokenizedLanguageModel, tasks: Sequence[Task]) -> Mapping[str, Any]:
        simple_evaluate, model_class, _ = _harness()
        try:
            with kept_random_state(), _quiet(), chdir(self._folder or "."):
                found: Mapping[str, Any] = simple_evaluate(
                    model=model_class(
                        pretrained=model.model,
                        tokenizer=copy.deepcopy(model.tokenizer),  # the harness sets its padding
                        batch_size=self.batch_size,
                    ),
                    tasks=[task.spec for task in tasks],
                    task_manager=self._manager,
                    limit=self.limit,
                    bootstrap_iters=0,
                )
                return found
        except (OSError, ValueError) as error:
            names = ", ".join(task.name for task in tasks if not task.split)
            reason = (str(error).splitlines() or [""])[0]
            raise RecipeError(
                f"evaluate.lm_eval: the tasks {names or CHOICES} could not be run ({type(error).__name__}: {reason}). "
                "The harness's own tasks need the hub or its local cache; your own need the files that they name."
            ) from error


def _records(
    evaluation: Evaluation[TokenizedLanguageModel], subject: str, task: Task, output: Mapping[str, Any]
) -> list[Record]:
    """Return one record per metric of a task; a group of tasks also has its members'."""
    name = task.spec if isinstance(task.spec, str) else task.spec["task"]
    members = [name, *output.get("group_subtasks", {}).get(name, [])]
    records = []
    for member in [each for each in members if each in output["results"]]:
        for key, value in output["results"][member].items():
            metric, _, chosen = key.partition(",")  # "acc,none" is acc without a filter of the answers
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            samples = [s for s in output.get("samples", {}).get(member, []) if s["filter"] == chosen]
            each = [s[metric] for s in samples if isinstance(s.get(metric), int | float)]
            mean, ci95 = _interval(each)
            about = {"task": task.name if task.split else member}
            better = output.get("higher_is_better", {}).get(member, {}).get(metric)
            own: Direction = "none" if better is None else "higher" if better else "lower"
            records.append(
                evaluation.record(
                    {"acc": ACC, "acc_norm": ACC_NORM}.get(metric) or OTHER.named(metric=metric),
                    subject,
                    task.split,
                    (float(value), ci95 if abs(mean - value) < 1e-9 else None),  # not every metric is a mean over items
                    n=max(1, len(each)),
                    about=about if chosen == "none" else {**about, "filter": chosen},
                    direction=None if task.split else own,
                )
            )
    return records


def _interval(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of item values and its interval: Wilson's where each is 0 or 1."""
    if values and set(values) <= {0, 1}:
        return share_ci95(torch.tensor(values) > 0)
    return mean_ci95(torch.tensor(values, dtype=torch.float64))


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and PyTorch afterwards; the harness seeds all of them."""
    python, numpy, devices = random.getstate(), np.random.get_state(), range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness: its loggers, its bars, the programs that it starts (git), and what it imports."""
    sys.stderr.flush()
    disabled, stderr = logging.root.manager.disable, os.dup(2)
    logging.disable(logging.WARNING)
    try:
        # not redirected to the file: a log handler that is made here keeps its stream when the file is closed
        with open(os.devnull, "w") as nowhere, redirect_stderr(io.StringIO()), warnings.catch_warnings():
            os.dup2(nowhere.fileno(), 2)  # what other programs write
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        logging.disable(disabled)


def _harness() -> tuple[Any, Any, Any]:
    """Return ``simple_evaluate``, ``HFLM`` and ``TaskManager``."""
    try:
        with kept_random_state(), _quiet():
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise missing_package("evaluate.lm_eval", "lm-eval") from error
    return simple_evaluate, HFLM, TaskManager
