"""GUIDE: a face becomes the face on the other side of the mean, and the latents around it follow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from unlearn.core.validation import NonNegativeFloat
from unlearn.objectives.gan.identity_replacement import IdentityReplacement


@dataclass(frozen=True, kw_only=True)
class Guide(IdentityReplacement):
    """Draw each forget identity w_u as the target draws w_t, and what is near w_u as what is near w_t.

    w_t = w_avg - d (w_u - w_avg) / |w_u - w_avg| (``extrapolation``), or w_avg (``average``, the paper's baseline);
    the aim of w_u + D is w_t + D. See ``IdentityReplacement`` for the two terms and their settings. The paper's third
    term, on drawn latents, is ``retain=global_preservation``, so that the two sides can be combined in any way. The
    paper trains the synthesis network (``scope={name: kind, kinds: [synthesis]}``).

    The paper's lengths, d = 30 and a < 15, are of 14 layers of 512 values: 8.02 and 4.01 per layer. Its T is 0.01 of
    the squared difference of features, 1 LPIPS and 0.1 (1 - cos) of ArcFace, which ``likeness`` has by default with
    other nets; those by path take their places.

    Args:
        target: see above.
        distance: d per layer; null takes |w_u - w_avg| over all layers, so that w_t is the reflection of w_u.
        reach: largest a per layer; null takes half of d, or of |w_u - w_avg| where d is not given or 0.

    Reference:
        Seo et al., Generative Unlearning for Any Identity, 2024. arXiv:2405.09879; weights and lengths as in the
        released code.
    """

    target: Literal["extrapolation", "average"] = "extrapolation"
    distance: NonNegativeFloat | None = None
    method: ClassVar[str] = "guide"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "average" and self.distance is not None:
            raise ValueError("distance has no effect with target=average; leave one of the two out")

    @override
    def aim(self, w: Tensor, steps: Tensor, state: Mapping[str, Any]) -> Tensor:
        mean: Tensor = state["mean"].to(w)
        away = w - mean
        if self.target == "average":
            return w - away + steps
        if self.distance is None:
            return w - 2 * away + steps
        # d per layer is d sqrt(num_ws) over all layers
        length = self.distance * math.sqrt(w.shape[1]) / away.flatten(1).norm(dim=1).clamp(min=1e-12)
        aim: Tensor = w - away - length[:, None, None] * away + steps
        return aim

    @property
    @override
    def radius(self) -> float | None:
        return self.distance / 2 if self.reach is None and self.distance else self.reach
