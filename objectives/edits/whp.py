"""Who's Harry Potter: the logits that a model reinforced on the forget data raises are lowered."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from unlearn.core.errors import RecipeError
from unlearn.core.optim import Optim
from unlearn.core.validation import NonNegativeFloat
from unlearn.data.base import Split
from unlearn.models.capabilities import TrainableLanguageModel
from unlearn.objectives.edits.base import Edit, Train


@dataclass(frozen=True)
class WhosHarryPotter(Edit[TrainableLanguageModel]):
    """v = v_t - alpha ReLU(v_r - v_t), with v_r the logits of the target trained further on the forget data.

    As in MUSE, the combined logits are the unlearned model, which therefore holds both models and answers at twice
    the cost; the paper trains a third model on them.

    Args:
        alpha: how strongly raised logits are lowered, >= 0.
        optim: how the reinforced copy is trained on the forget data.

    Reference:
        Eldan and Russinovich, Who's Harry Potter? Approximate Unlearning in LLMs, 2023, eq. 1. arXiv:2310.02238;
        on logits alone in Shi et al., MUSE, 2024. arXiv:2407.06460
    """

    alpha: NonNegativeFloat = 1.0
    optim: Optim = field(default_factory=Optim)

    def __call__(
        self, target: TrainableLanguageModel, train: Train, splits: Mapping[str, Split]
    ) -> TrainableLanguageModel:
        """Return a language model that answers by the logits of the target and of the reinforced copy."""
        from unlearn.models.guards.combined_logits import CombinedLogits
        from unlearn.models.language.wrapper import Language

        if not isinstance(target, Language):
            raise RecipeError(
                f"edit=whp combines the logits of transformers models; the target is a {type(target).__name__}."
            )
        if not target.route.stack:
            raise RecipeError(
                f"edit=whp reads last hidden states, and {type(target.model).__name__} is run by its own forward alone."
            )
        # an architecture that cannot be combined is refused before any step
        Language(CombinedLogits.of(target.model, target.model, self.alpha, target.route), target.encoder)
        reinforced = train(target, "forget", self.optim)
        combined = CombinedLogits.of(deepcopy(target.model), reinforced.model, self.alpha, target.route)
        saved = {f"{part}.{name}": own for part in ("base", "reinforced") for name, own in target.saved.items()}
        return Language(combined, target.encoder, saved=saved)
