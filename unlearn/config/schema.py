"""The fixed parts of a recipe, the same for every family; each component has a dataclass of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from unlearn.core.optim import Optim
from unlearn.core.validation import at_least

if TYPE_CHECKING:
    from unlearn.config.requests import Requests
    from unlearn.data.base import Source
    from unlearn.evaluators.base import Evaluator
    from unlearn.models.base import ModelConfig
    from unlearn.models.guards.base import Guard
    from unlearn.models.scope import Scope
    from unlearn.objectives.base import Objective
    from unlearn.objectives.edits.base import Edit
    from unlearn.objectives.surgery import Combination


Subject = Literal["target", "unlearned", "retrained", "teacher", "clean", "corrupted", "target_latent"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
SplitName = Literal[
    "", "forget", "retain", "holdout", "test", "probe", "same_person", "neighbours", "strangers", "cross_domain"
]


@dataclass
class About:
    """What the listing shows.

    Args:
        title: one line: what the recipe does.
        method: the published method, as the paper index names it.
        needs: hardware and time, e.g. "CPU, 2 min, 1 GB".
    """

    title: str = ""
    method: str = ""
    needs: str = ""


@dataclass
class Trainer:
    """Devices, precision, checkpoints and logs of a run.

    Only ``precision`` changes the result beyond float tolerance, and ``devices`` if a GAN's discriminator is trained:
    its loss depends on how the batch is divided among ranks.

    Args:
        devices: number of processes or GPUs (data parallel).
        accelerator: auto uses a GPU if there is one.
        precision: bf16-mixed halves activation memory on recent GPUs; 64-true is for exact comparisons.
        compile: torch.compile the model in place: slower start, faster steps.
        workers: processes that read data; 0 reads in the main process.
        log_every: steps between rows of metrics.csv. Over several ranks or micro-batches these steps take the two
            gradients apart for the conflict cosine (one more copy of the trained parameters; the sum may differ in the
            last bits).
        checkpoint_every: steps between checkpoints.
        threads: CPU threads per process; null leaves PyTorch's choice.
        tensorboard: write TensorBoard logs too; null does so if tensorboard is installed.
        wandb: Weights & Biases project name; null does not log there.
    """

    devices: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32", "bf16-mixed", "64-true", "16-mixed"] = "32"
    compile: bool = False
    workers: int = 0
    log_every: int = 10
    checkpoint_every: int = 50
    threads: int | None = None
    tensorboard: bool | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        at_least(self, devices=1, log_every=1, checkpoint_every=1, threads=1, workers=0)
        if self.precision == "16-mixed":
            raise ValueError(
                "precision is 16-mixed, which scales the loss and unscales inside the optimizer's step; here gradients "
                "are combined before that, where scaled ones may overflow unnoticed. Take bf16-mixed"
            )


@dataclass
class Pretrain:
    """How the target, and the model retrained without the forget data, are trained.

    Args:
        retrained: whether the run needs the retrained model (trained if it is neither shipped nor cached).
        seed: seed of the initial weights and the data order; one target serves all seeds of a recipe.
        optim: as for unlearning.
    """

    retrained: bool = True
    seed: int = 0
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed is {self.seed}; it must lie in 0 ... {2**31 - 1}")


@dataclass
class Gate:
    """A threshold on a figure; if it is missed, the run exits with code 3.

    Args:
        metric: metric name.
        split: split of the record, "" for any.
        subject: subject of the record.
        about: required entries of the record's ``about``.
        min: smallest value allowed.
        max: largest value allowed.
        minus: subject whose value is subtracted first (target or retrained).
        evaluator: key of the evaluator in ``evaluate``, where several entries measure the metric; "" for any.
    """

    metric: str = "???"
    split: SplitName = ""
    subject: Subject = "unlearned"
    about: dict[str, str] = field(default_factory=dict)
    min: float | None = None
    max: float | None = None
    minus: Subject | None = None
    evaluator: str = ""

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("neither min nor max is given; give one of them")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min} and max is {self.max}; min must not be above max")


@dataclass
class Select:
    """Keeps the weights of the best step, judged on half of the forget items; the figures are of the others.

    An edit has one result, so nothing is selected; its figures are still of the other items.

    Args:
        evaluator: entry of ``evaluate`` that measures; optional if only one gives the metric.
        metric: its figure on forget.
        about: required entries of the record's ``about``.
        aim: lower, higher, or retrained: as near as possible to the retrained model's.
        every: steps between measurements, >= 1.
        limit: a threshold that a step must meet to be kept; the name of its metric comes from the same evaluator.
        patience: number of measurements in a row that may miss the limit before the run ends; null: no such end.

    Reference:
        the stop rule of Shi et al., MUSE, 2024, section 4.1 (utility below the retrained model's). arXiv:2407.06460
    """

    evaluator: str = ""
    metric: str = ""
    about: dict[str, str] = field(default_factory=dict)
    aim: Literal["lower", "higher", "retrained"] = "retrained"
    every: int = 20
    limit: Gate | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        at_least(self, every=1, patience=1)
        if not self.metric:
            raise ValueError("metric has no value; write the figure to judge by, e.g. exact_memorization")


@dataclass
class Corrupt:
    """How the target is made from a clean model: trained further on the data's corrupted items (RESTOR).

    Args:
        seed: of the data order.
        optim: as for unlearning.
    """

    seed: int = 0
    optim: Optim = field(default_factory=Optim)


@dataclass
class Distil:
    """How the target is made from a teacher: trained on all training items by an objective that queries the teacher.

    The teacher is the model that ``pretrain`` trains, or that ``model.pretrained`` names; the run's own objectives may
    query it too. A recipe gives these settings together with the objective's: ``distil: {name: sfd, optim: ...}``.

    Args:
        pretrained: folder of a model that was distilled before; by default the recipe distils it (or takes the copy
            that ships, or the cached one).
        train: distil again even if a distilled model ships or is cached.
        seed: of the data order.
        optim: as for unlearning.
    """

    pretrained: str | None = None
    train: bool = False
    seed: int = 0
    optim: Optim = field(default_factory=Optim)


@dataclass
class Recipe:
    """A recipe with every component built; made by ``unlearn.config.recipe.load``."""

    name: str
    about: About
    model: ModelConfig
    data: Source
    pretrain: Pretrain
    forget: dict[str, Objective[Any]]
    retain: dict[str, Objective[Any]]
    combine: Combination
    scope: Scope
    optim: Optim
    trainer: Trainer
    edit: Edit[Any] | None
    guard: Guard[Any] | None
    corrupt: Corrupt | None
    distil: Distil | None
    distil_by: dict[str, Objective[Any]]
    requests: Requests | None
    select: Select | None
    evaluate: dict[str, Evaluator[Any]]
    gate: dict[str, Gate]
    seeds: list[int]
    output: str | None
    tree: dict[str, Any]
    origins: dict[str, str]
    hash: str

    @property
    def asks_likelihood(self) -> bool:
        """Whether a selection of the data or of a request needs the likelihood under the target."""
        asked = self.requests.sequence if self.requests else None
        return self.data.asks_likelihood or any(one.likelihood_quantile is not None for one in asked or ())
