"""The wrapper around an nflows flow: likelihood, samples, save and load."""

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from nflows import distributions, flows, transforms
from safetensors.torch import load_file, save
from torch import Tensor, nn
from typing_extensions import override

from unlearn.core.boundary import described, reading
from unlearn.core.errors import RecipeError, some
from unlearn.core.folders import check_folder
from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.base import REMEDY, Wrapper, refuse_not_finite, refuse_other_kinds, stored_dtypes, stored_weights
from unlearn.models.flow.architectures import build_flow
from unlearn.models.flow.recall import recall
from unlearn.models.likelihood import bits_per_dim

log = logging.getLogger(__name__)


class Flow(Wrapper):
    """An nflows ``Flow`` with what the engine asks of it: likelihood, samples, training loss, save and load.

    Images of grey levels 0 ... L - 1 are dequantised, y = (image + u) / L with u uniform in [0, 1), and the
    likelihood is the lower bound log p(y) - M log L on the discrete image's (Theis et al. 2016, eq. 4.
    arXiv:1511.01844), one draw of u per call. Vectors are taken as they are.

    Args:
        flow: the nflows flow; over [0, 1] for images.
        shape: of one item: (C, H, W) or (D,).
        levels: number of grey levels, or None for vectors.
        temperature: standard deviation of the latents that samples start from, > 0.
        description: what ``config.json`` holds, so that ``from_pretrained`` can build the flow again.
    """

    family: ClassVar[str] = "flow"
    reads: ClassVar[tuple[str, ...]] = ("image", "vector")
    recall = recall

    def __init__(
        self,
        flow: Any,
        shape: tuple[int, ...],
        levels: int | None = None,
        temperature: float = 1.0,
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.flow = flow
        self.shape = tuple(shape)
        self.levels = levels
        self.temperature = temperature
        self.description = description

    @classmethod
    def wrap(cls, flow: Any, shape: tuple[int, ...], levels: int | None = None, temperature: float = 1.0) -> Self:
        """Wrap an nflows ``Flow`` that you built and trained; arguments as above.

        ``save_pretrained`` keeps its weights; to read them, build it again, wrap it, and call ``load_weights``.
        """
        if not isinstance(flow, flows.Flow):
            raise RecipeError(f"Flow.wrap was given {type(flow).__name__}; it takes an nflows.flows.Flow.")
        if (levels is None) != (len(shape) == 1):
            raise RecipeError(
                f"Flow.wrap was given shape={tuple(shape)} and levels={levels}. "
                "Images need shape=(C, H, W) and levels, e.g. 256; vectors shape=(D,) and no levels."
            )
        return cls(flow, shape, levels, temperature)

    @override
    @classmethod
    def adopt(cls, model: Any, info: dict[str, Any]) -> Self:
        if "shape" not in info:
            raise RecipeError("A flow in memory needs data of one shape, and this data has none. Type other data=NAME.")
        wrapped = cls.wrap(model, tuple(info["shape"]), info.get("levels"))
        key, dtype = ("vector", torch.float32) if wrapped.levels is None else ("image", torch.uint8)
        example = {"id": torch.zeros(2, dtype=torch.int64), key: torch.zeros(2, *info["shape"], dtype=dtype)}
        try:
            with torch.no_grad():
                copy.deepcopy(wrapped).eval().log_prob(example, Randomness(0, "adopt"))
        except Exception as error:  # of the user's own layers
            raise RecipeError(
                f"The flow does not take data of shape {tuple(info['shape'])} ({described(error)}). Give one built for "
                "that shape; images are numbers in [0, 1)."
            ) from error
        return wrapped

    @override
    @property
    def stored(self) -> nn.Module:
        flow: nn.Module = self.flow
        return flow

    @override
    def check_fits(self, info: dict[str, Any]) -> None:
        wanted = (tuple(info.get("shape", ())), info.get("levels"))
        if (tuple(self.shape), self.levels) != wanted:
            raise RecipeError(
                f"The model was built for shape {tuple(self.shape)} and {self.levels} grey levels; the data has shape "
                f"{wanted[0]} and {wanted[1]}. Type another model.pretrained=FOLDER, or the data it was trained on."
            )

    def log_prob(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return log p(x) per item, (B,), in nats: of discrete images (a lower bound), or the density of vectors."""
        inputs = self.dequantise(batch, randomness)
        if len(inputs) == 0:  # nflows cannot reshape an empty batch; this keeps the graph, with gradients of zero
            return self._density(inputs.new_full((1, *self.shape), 0.5))[:0]
        # v = L y has the density p(v) = p(y) / L^M, and log P(x) >= E_u log p(x + u) by Jensen's inequality
        return self._density(inputs) - math.prod(self.shape) * math.log(self.levels or 1)

    def training_loss(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return -log p(x) per item, (B,), in bits per dimension."""
        return bits_per_dim(self, batch, randomness)

    def dimensions(self, batch: Batch) -> Tensor:
        """Return the number of values per item, (B,) int64."""
        return torch.full_like(batch["id"], math.prod(self.shape))

    def dequantise(self, batch: Batch, randomness: Randomness) -> Tensor:
        """Return the continuous inputs, (B, *shape), in the precision of the weights: images in [0, 1)."""
        name = "vector" if self.levels is None else "image"
        given = tuple(batch[name].shape[1:]) if name in batch else None
        if given != self.shape:
            raise RecipeError(
                f"The flow takes items {name!r} of shape {self.shape}; the data has {given or sorted(batch)}. "
                "Give a model.pretrained and data of the same shape."
            )
        if self.levels is None:
            return batch["vector"].to(self._dtype)
        # the noise fills the cell of a grey level; a density of bare levels could grow without bound at each of them
        noise = randomness.child("dequantise").uniform(batch["id"], self.shape, self._dtype)
        return (batch["image"].to(self._dtype) + noise) / self.levels

    @torch.no_grad()
    def sample(self, ids: Tensor, randomness: Randomness, like: Batch | None = None) -> Batch:
        """Draw one item per id, (B,) int64: ``id`` and ``image`` (B, C, H, W) uint8, or ``vector`` (B, D)."""
        outputs = self.decode(self.latents(ids, randomness))
        if self.levels is None:
            return {"id": ids, "vector": outputs}
        outside = ((outputs < 0) | (outputs >= 1)).flatten(1).any(dim=1).sum()
        log.debug("%d of %d samples had values outside the grey levels, and were clamped", outside, len(ids))
        return {"id": ids, "image": self.grey(outputs)}

    def grey(self, outputs: Tensor) -> Tensor:
        """Return continuous images, (B, C, H, W) in [0, 1), as grey levels, uint8."""
        levels = self.levels or 1
        # floor undoes the dequantisation; a diverged flow's NaN become black
        return torch.nan_to_num(torch.floor(outputs * levels).clamp(0, levels - 1)).to(torch.uint8)

    def latents(self, ids: Tensor, randomness: Randomness) -> Tensor:
        """Draw z ~ N(0, temperature^2), one per id, in the shape of the base distribution."""
        base = self.flow._distribution
        if any(isinstance(module, transforms.NaiveLinear) for module in self.modules()):
            raise RecipeError("nflows' NaiveLinear has no inverse with this PyTorch. Use nflows.transforms.LULinear.")
        if not isinstance(base, distributions.StandardNormal):
            raise RecipeError(
                f"Samples are drawn from a StandardNormal base; this flow's is {type(base).__name__}. Fold its mean "
                "and scale into the flow as a last transform (nflows.transforms.PointwiseAffineTransform)."
            )
        return self.temperature * randomness.child("latent").normal(ids, tuple(base._shape), self._dtype)

    def encode(self, inputs: Tensor) -> Tensor:
        """Map continuous items (B, *shape) to latents, in the shape of the base distribution."""
        if len(inputs) == 0:
            return inputs.new_empty(0, *self.flow._distribution._shape)
        latents: Tensor = self.flow._transform(inputs)[0]
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents (B, ...) to continuous items (B, *shape)."""
        if len(latents) == 0:
            return latents.new_empty(0, *self.shape)
        with warnings.catch_warnings():  # LULinear and OneByOneConvolution in flows that a user built
            warnings.filterwarnings("ignore", message="torch.triangular_solve is deprecated")
            outputs: Tensor = self.flow._transform.inverse(latents)[0]
        return outputs.view(-1, *self.shape)

    @torch.no_grad()
    def initialise(self, batch: Batch, randomness: Randomness) -> None:
        """Set every ActNorm that was not set before, so that this batch leaves it with mean 0 and deviation 1.

        A channel that is constant in the batch keeps its scale. On several ranks, give all the same batch.
        """
        layers = [m for m in self.modules() if isinstance(m, transforms.ActNorm) and not m.initialized]
        hooks = [layer.register_forward_pre_hook(_set_from_data) for layer in layers]
        was_training = self.training
        try:
            self.eval()  # nflows' own ActNorm sets itself in training mode
            self._density(self.dequantise(batch, randomness))
        finally:
            self.train(was_training)
            for hook in hooks:
                hook.remove()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the direction from data to latents, the one that training runs."""
        self.flow._transform.compile(*args, **kwargs)

    @property
    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    def _density(self, inputs: Tensor) -> Tensor:
        return self.flow.log_prob(inputs)  # type: ignore[no-any-return]

    @override
    def save_pretrained(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json`` into an existing folder."""
        about = self.description or {"kind": "wrapped", "shape": list(self.shape), "levels": self.levels}
        (folder / "model.safetensors").write_bytes(save(stored_weights(self.flow, self.types_to_save(dtype))))
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Build the flow that ``config.json`` describes and read its weights, as float32 or float64."""
        check_folder(folder)
        path = folder / "config.json"
        with reading(path, REMEDY):
            about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise RecipeError(f"{path} holds {type(about).__name__} instead of a mapping. {REMEDY}")
        if about.get("kind") == "wrapped":
            raise RecipeError(
                f"{path}: this flow was built by a user's own code, which is not stored. Build it again and type "
                f"Flow.wrap(flow, shape={tuple(about.get('shape', ()))}, levels={about.get('levels')})"
                f".load_weights({str(folder)!r})."
            )
        try:
            shape, levels = tuple(about["info"]["shape"]), about["info"].get("levels")
            temperature = float(about["config"]["temperature"])
            sizes = [*shape, 2 if levels is None else levels]
            if (
                not all(isinstance(size, int) and size > 0 for size in sizes)
                or sizes[-1] < 2
                or math.isinf(temperature)
            ):
                raise ValueError("shape must be whole numbers above 0, levels one above 1, temperature a number")
            flow = build_flow(str(about.get("kind")), shape, levels, about["config"], Randomness(0))
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error
        except Exception as error:  # what is described may be of any kind and size
            raise RecipeError(f"{path} does not describe a flow ({described(error)}). {REMEDY}") from error
        return cls(flow, shape, levels, temperature, about).load_weights(folder)

    @override
    def read_again(self, folder: Path, read: Callable[[Path], Wrapper]) -> Wrapper:
        return read(folder) if self.description else copy.deepcopy(self).load_weights(folder)

    @override
    @classmethod
    def read_by(cls, folder: Path) -> str:
        path = folder / "config.json"
        about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if about.get("kind") != "wrapped":
            return super().read_by(folder)
        return f'Flow.wrap(flow, shape={tuple(about["shape"])}, levels={about["levels"]}).load_weights(Path("model"))'

    def load_weights(self, folder: Path | str) -> Self:
        """Read ``model.safetensors`` into this flow; every weight must be there and fit. Returns the flow."""
        path = Path(folder) / "model.safetensors"
        with reading(path, REMEDY):
            weights = load_file(path)
        if problem := _misfit(weights, self.flow.state_dict()):
            raise RecipeError(f"{path} does not fit the flow: {problem}. {REMEDY}")
        if any(value.dtype == torch.float64 for value in weights.values()):
            self.double()
        refuse_other_kinds(self.flow, [path])
        self.flow.load_state_dict(weights)
        refuse_not_finite(self.flow, path)
        if broken := [name for name, order in _orders(self.flow) if sorted(order) != list(range(len(order)))]:
            raise RecipeError(
                f"{path} does not fit the flow: {some(broken)} names an entry twice or not at all, so the flow has no "
                f"inverse. {REMEDY}"
            )
        self.saved = stored_dtypes(self.flow, [path])
        return self


def _orders(flow: nn.Module) -> Iterator[tuple[str, list[int]]]:
    """Yield the numbers of entries that layers of nflows permute, or split in two, by the layers' names."""
    for name, module in flow.named_modules():
        parts = [getattr(module, key, None) for key in ("_permutation", "identity_features", "transform_features")]
        if numbers := [part for part in parts if isinstance(part, Tensor)]:
            yield name, torch.cat(numbers).tolist()


def _misfit(given: dict[str, Tensor], needed: dict[str, Tensor]) -> str:
    """Say in one line how stored weights differ from the flow's in name or shape; nothing where they do not."""
    shapes = [name for name in given.keys() & needed.keys() if given[name].shape != needed[name].shape]
    faults = {
        "missing": needed.keys() - given.keys(),
        "unknown": given.keys() - needed.keys(),
        "of another shape": shapes,
    }
    return ", ".join(f"{len(names)} weights {what} (e.g. {min(names)})" for what, names in faults.items() if names)


def _set_from_data(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook: normalise what comes in, (B, C) or (B, C, H, W), channel by channel."""
    rows = args[0].transpose(0, 1).flatten(1)
    mean, deviation = rows.mean(dim=1), rows.std(dim=1, correction=0)
    constant = ~(deviation > 1e-6)
    # y = exp(s) (x - mean) with s = -log(deviation); log_scale is s, and shift is -mean exp(s)
    log_scale = -torch.log(torch.where(constant, torch.ones_like(deviation), deviation))
    layer.log_scale.copy_(log_scale)  # type: ignore[operator]
    layer.shift.copy_(-mean * log_scale.exp())  # type: ignore[operator]
    layer.initialized.fill_(True)  # type: ignore[operator]
