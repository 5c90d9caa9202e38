"""Names of the components: a lazy table, entry points of other packages, and dotted paths to a user's own class."""

import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any, Literal

from unlearn.core.boundary import described
from unlearn.core.errors import RecipeError, did_you_mean, shorten

Kind = Literal["model", "data", "objective", "combination", "scope", "evaluator", "edit", "guard"]

BASES: dict[Kind, str] = {
    "model": "unlearn.models.base:ModelConfig",
    "data": "unlearn.data.base:Source",
    "objective": "unlearn.objectives.base:Objective",
    "combination": "unlearn.objectives.surgery:Combination",
    "scope": "unlearn.models.scope:Scope",
    "evaluator": "unlearn.evaluators.base:Evaluator",
    "edit": "unlearn.objectives.edits.base:Edit",
    "guard": "unlearn.models.guards.base:Guard",
}
"""The class that every component of a kind extends."""

COMPONENTS: dict[Kind, dict[str, str]] = {
    "model": {
        "glow": "unlearn.models.flow.config:GlowConfig",
        "coupling_flow": "unlearn.models.flow.config:CouplingFlowConfig",
        "autoregressive_flow": "unlearn.models.flow.config:AutoregressiveFlowConfig",
        "spline_flow": "unlearn.models.flow.config:SplineFlowConfig",
        "causal_lm": "unlearn.models.language.config:CausalLM",
        "llama": "unlearn.models.language.config:SmallLlama",
        "smollm2": "unlearn.models.language.config:SmolLM2",
        "unet": "unlearn.models.diffusion.config:UNet",
        "text_unet": "unlearn.models.diffusion.config:TextUNet",
        "dit": "unlearn.models.diffusion.config:DiT",
        "stable_diffusion": "unlearn.models.diffusion.config:StableDiffusion",
        "stylegan2": "unlearn.models.gan.config:StyleGAN2",
        "face_dcgan": "unlearn.models.gan.config:FaceDCGAN",
    },
    "data": {
        "digits": "unlearn.data.digits:Digits",
        "mnist": "unlearn.data.mnist:Mnist",
        "image_folder": "unlearn.data.image_folder:ImageFolder",
        "prompts": "unlearn.data.prompts:PromptList",
        "identities": "unlearn.data.identities:Identities",
        "coloured_digits": "unlearn.data.coloured_digits:ColouredDigits",
        "openmoji": "unlearn.data.openmoji:OpenMoji",
        "factbook": "unlearn.data.factbook.source:Factbook",
        "tofu": "unlearn.data.tofu:Tofu",
        "muse": "unlearn.data.muse:Muse",
        "text_files": "unlearn.data.text_files:TextFiles",
    },
    "objective": {
        "taming": "unlearn.objectives.flow.taming:Taming",
        "taming_retain": "unlearn.objectives.flow.taming_retain:TamingRetain",
        "category_taming": "unlearn.objectives.flow.category_taming:CategoryTaming",
        "debias": "unlearn.objectives.flow.debias:Debias",
        "likelihood_ascent": "unlearn.objectives.flow.likelihood_ascent:LikelihoodAscent",
        "esd": "unlearn.objectives.diffusion.esd:ESD",
        "sdd": "unlearn.objectives.diffusion.sdd:SDD",
        "concept_ablation": "unlearn.objectives.diffusion.concept_ablation:ConceptAblation",
        "random_label": "unlearn.objectives.diffusion.random_label:RandomLabel",
        "denoising_ascent": "unlearn.objectives.diffusion.denoising_ascent:DenoisingAscent",
        "score_preservation": "unlearn.objectives.diffusion.score_preservation:ScorePreservation",
        "doco": "unlearn.objectives.diffusion.doco:DoCo",
        "sfd": "unlearn.objectives.diffusion.sfd:SFD",
        "kpop": "unlearn.objectives.diffusion.kpop:KPOP",
        "guide": "unlearn.objectives.gan.guide:Guide",
        "global_preservation": "unlearn.objectives.gan.global_preservation:GlobalPreservation",
        "sugar": "unlearn.objectives.gan.sugar:Sugar",
        "adapt_then_unlearn": "unlearn.objectives.gan.adapt_then_unlearn:AdaptThenUnlearn",
        "latent_projection": "unlearn.objectives.gan.latent_projection:LatentProjection",
        "attribute": "unlearn.objectives.gan.attribute:Attribute",
        "text_to_unlearn": "unlearn.objectives.gan.text_to_unlearn:TextToUnlearn",
        "training_loss": "unlearn.objectives.common.training_loss:TrainingLoss",
        "weight_anchor": "unlearn.objectives.common.weight_anchor:WeightAnchor",
        "ewc": "unlearn.objectives.common.ewc:EWC",
        "gradient_ascent": "unlearn.objectives.common.gradient_ascent:GradientAscent",
        "npo": "unlearn.objectives.language.npo:NPO",
        "simnpo": "unlearn.objectives.language.simnpo:SimNPO",
        "dpo": "unlearn.objectives.language.dpo:DPO",
        "idk_nll": "unlearn.objectives.language.idk_nll:IdkNLL",
        "rmu": "unlearn.objectives.language.rmu:RMU",
        "undial": "unlearn.objectives.language.undial:UNDIAL",
        "wga": "unlearn.objectives.language.wga:WGA",
        "satimp": "unlearn.objectives.language.satimp:SatImp",
        "ceu": "unlearn.objectives.language.ceu:CEU",
        "pdu": "unlearn.objectives.language.pdu:PDU",
        "flat": "unlearn.objectives.language.flat:FLAT",
        "maximum_entropy": "unlearn.objectives.language.maximum_entropy:MaximumEntropy",
        "nll": "unlearn.objectives.common.training_loss:TrainingLoss",
        "kl": "unlearn.objectives.language.kl:KL",
        "embedding_difference": "unlearn.objectives.language.embedding_difference:EmbeddingDifference",
        "answer_preservation": "unlearn.objectives.language.answer_preservation:AnswerPreservation",
        "pdu_retain": "unlearn.objectives.language.pdu:PDURetain",
    },
    "combination": {
        "sum": "unlearn.objectives.surgery:WeightedSum",
        "pcgrad": "unlearn.objectives.surgery:PCGrad",
        "one_sided": "unlearn.objectives.surgery:OneSided",
        "gru": "unlearn.objectives.surgery:GRU",
        "mgda": "unlearn.objectives.surgery:MGDA",
        "orthograd": "unlearn.objectives.surgery:OrthoGrad",
        "doco_released": "unlearn.objectives.surgery:DoCoReleased",
    },
    "scope": {
        "all": "unlearn.models.scope:All",
        "pattern": "unlearn.models.scope:Pattern",
        "kind": "unlearn.models.scope:ByKind",
        "saliency": "unlearn.models.scope:Saliency",
        "lora": "unlearn.models.lora:Lora",
    },
    "evaluator": {
        "bits_per_dim": "unlearn.evaluators.likelihood.bits_per_dim:BitsPerDim",
        "likelihood_rank": "unlearn.evaluators.likelihood.likelihood_rank:LikelihoodRank",
        "sample_share": "unlearn.evaluators.image.sample_share:SampleShare",
        "concept_accuracy": "unlearn.evaluators.image.concept_accuracy:ConceptAccuracy",
        "clip_score": "unlearn.evaluators.image.clip_score:ClipScore",
        "nudity": "unlearn.evaluators.image.nudity:Nudity",
        "feature_distance": "unlearn.evaluators.image.feature_distance:FeatureDistance",
        "membership": "unlearn.evaluators.likelihood.membership:Membership",
        "sample_grid": "unlearn.evaluators.image.sample_grid:SampleGrid",
        "memorization": "unlearn.evaluators.text.memorization:Memorization",
        "tofu": "unlearn.evaluators.text.tofu:TofuMetrics",
        "muse": "unlearn.evaluators.text.muse:MuseMetrics",
        "image_memorization": "unlearn.evaluators.muse.reconstruction:ImageMemorization",
        "image_presence": "unlearn.evaluators.muse.presence:ImagePresence",
        "image_privacy": "unlearn.evaluators.muse.privacy:ImagePrivacy",
        "image_utility": "unlearn.evaluators.muse.utility:ImageUtility",
        "text_membership": "unlearn.evaluators.text.membership:TextMembership",
        "answer_samples": "unlearn.evaluators.text.answer_samples:AnswerSamples",
        "lm_eval": "unlearn.evaluators.text.lm_eval:LmEval",
        "relearning": "unlearn.evaluators.attacks.answer_relearning:AnswerRelearning",
        "image_relearning": "unlearn.evaluators.attacks.image_relearning:ImageRelearning",
        "concept_inversion": "unlearn.evaluators.attacks.concept_inversion:ConceptInversion",
        "unlearn_diff_atk": "unlearn.evaluators.attacks.unlearn_diff_atk:UnlearnDiffAtk",
        "ring_a_bell": "unlearn.evaluators.attacks.ring_a_bell:RingABell",
        "quantization": "unlearn.evaluators.attacks.quantization:Quantization",
        "in_context": "unlearn.evaluators.attacks.in_context:InContext",
        "stepwise": "unlearn.evaluators.attacks.stepwise:Stepwise",
        "prefix": "unlearn.evaluators.attacks.prefix:Prefix",
        "paraphrase": "unlearn.evaluators.attacks.paraphrase:Paraphrase",
        "traps": "unlearn.evaluators.attacks.traps:TrapsAttack",
        "restor": "unlearn.evaluators.text.restor:Restor",
        "image_restor": "unlearn.evaluators.image.image_restor:ImageRestor",
        "sampling_time": "unlearn.evaluators.image.sampling_time:SamplingTime",
        "cost": "unlearn.evaluators.cost:Cost",
        "identity": "unlearn.evaluators.image.identity:IdentityMetrics",
        "generator_distance": "unlearn.evaluators.image.generator_distance:GeneratorDistance",
        "attribute_share": "unlearn.evaluators.image.attribute_share:AttributeShare",
        "reinversion": "unlearn.evaluators.attacks.reinversion:Reinversion",
        "face_relearning": "unlearn.evaluators.attacks.face_relearning:FaceRelearning",
        "key_recovery": "unlearn.evaluators.image.key_recovery:KeyRecovery",
        "goal": "unlearn.evaluators.goal:Goal",
    },
    "edit": {
        "task_vector": "unlearn.objectives.edits.task_vector:TaskVector",
        "whp": "unlearn.objectives.edits.whp:WhosHarryPotter",
        "uce": "unlearn.objectives.edits.uce:UCE",
        "rece": "unlearn.objectives.edits.rece:RECE",
    },
    "guard": {
        "negative_guidance": "unlearn.models.guards.guidance:NegativeGuidance",
        "sld": "unlearn.models.guards.guidance:SafeLatentDiffusion",
    },
}
"""Kind -> name -> ``module:class``. Nothing is imported before it is asked for."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "diffusion": ("diffusers",),
    "language": ("datasets", "lm_eval", "peft", "rouge_score", "tokenizers", "transformers"),
}
"""Extra of the distribution -> packages that it installs."""

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*", re.ASCII)


def names(kind: Kind) -> list[str]:
    """Return the registered names of a kind, plugins included, sorted, without importing any component."""
    return sorted({**COMPONENTS[kind], **_plugins(kind)})


def is_registered(kind: Kind, name: str) -> bool:
    """Whether a component or a plugin goes by this name."""
    return name in COMPONENTS[kind] or name in _plugins(kind)


def target(kind: Kind, name: str) -> str:
    """Return the ``module:class`` behind a name or a dotted path. Raises RecipeError for an unknown name."""
    if is_registered(kind, name):
        return COMPONENTS[kind].get(name) or _plugins(kind)[name]
    if _PATH.fullmatch(name):
        return name if ":" in name else ":".join(name.rsplit(".", 1))
    raise RecipeError(
        f"there is no {kind} {shorten(name)}. {did_you_mean(name, names(kind))} "
        "Your own class goes by its path: package.module:Class."
    )


def name_of(kind: Kind, cls: type) -> str:
    """Return the registered name of a packaged component's class (the first of several), else its dotted path."""
    path = f"{cls.__module__}:{cls.__qualname__}"
    return next((name for name, target in COMPONENTS[kind].items() if target == path), path)


@cache
def resolve(kind: Kind, name: str) -> type[Any]:
    """Return the dataclass behind a name or a dotted path.

    Raises:
        RecipeError: the name is unknown, its module cannot be imported, or it is no component of this kind.
    """
    path = target(kind, name)
    cls = _load(path, f"{kind} {name!r}")
    base = _load(BASES[kind], f"the base of every {kind}")
    problem = _problem(cls, base)
    if problem:
        raise RecipeError(f"{kind} {name!r} cannot be used: {path} {problem}.")
    return cls  # type: ignore[no-any-return]


def _problem(cls: Any, base: type[Any]) -> str | None:
    """Return why an object is no component, or None."""
    if not isinstance(cls, type):
        return f"is no class but a {type(cls).__name__}"
    if not issubclass(cls, base):
        return f"does not extend {base.__module__}.{base.__qualname__}"
    if "__dataclass_fields__" not in vars(cls):
        return "is no dataclass; put @dataclass above it"
    if abstract := getattr(cls, "__abstractmethods__", None):
        return f"is abstract; it lacks {', '.join(sorted(abstract))}"
    if any(field.name == "name" for field in fields(cls)):
        return "has a field called name, which in a recipe names the component itself"
    return None


def _load(path: str, what: str) -> Any:
    """Import ``module:attribute``; whatever goes wrong inside the module is named in the error."""
    module_name, attribute = path.split(":")
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        cause = described(error)
        lacks = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        extra = next((extra for extra, packages in EXTRAS.items() if lacks in packages), None)
        hint = f'. Type: pip install "unlearnkit[{extra}]"' if extra else ""
        raise RecipeError(f"{what}: importing {module_name} failed with {cause}{hint}") from error
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise RecipeError(f"{what}: {module_name} has no {attribute!r}. {did_you_mean(attribute, public)}")
    return getattr(module, attribute)


@cache
def _plugins(kind: Kind) -> dict[str, str]:
    """Return name -> ``module:class`` of other packages' components (entry-point group ``unlearn.<kind>``)."""
    from importlib.metadata import entry_points  # slow to import, and the command line's list does without

    return {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=f"unlearn.{kind}")}
