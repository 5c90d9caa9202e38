"""Face verification: select identities, look up their latents, embed their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor

from unlearn.core.distributed import map_ids
from unlearn.core.errors import RecipeError
from unlearn.core.randomness import Randomness
from unlearn.data.base import Split
from unlearn.data.identities import FIRST_STRANGER, IdentityData
from unlearn.evaluators.base import Evaluation
from unlearn.evaluators.figures import Panel
from unlearn.evaluators.statistics import mean_ci95
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.feature_extractors.embedders import Embedder, identity_net
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import latents_of, latents_of_seeds

FIRST_DRAWN = 2 * FIRST_STRANGER
"""First seed of strangers where the data has too few of its own; seeds of items are skipped."""

SIDE = 128
"""Side in pixels to which a face in a picture is enlarged, by an integer factor."""


def identity_nets(features: Sequence[str] | None, shape: Sequence[int]) -> list[Embedder]:
    """Return the nets that compare identities; the first selects the neighbours.

    By default the packaged ones: for faces ``mobile_face``, which no loss uses by default, then ``dlib_face``.
    """
    if features is not None:
        return [identity_net(name, shape) for name in features]
    try:
        first = identity_net(None, shape)
    except RecipeError as error:
        raise RecipeError(f"{error} Type features=[FILE.pt].") from error
    return [identity_net("mobile_face", shape), first] if first.name == "dlib_face" else [first]


def check_identity_nets(splits: Mapping[str, Split], features: Sequence[str] | None) -> None:
    """Refuse images that no net fits, if their shape is known."""
    if "shape" in (info := splits["forget"].dataset.info):
        identity_nets(features, info["shape"])


def latents(evaluation: Evaluation[ImageGenerator], subject: str, ids: Tensor, inversion: Inversion | str) -> Tensor:
    """Return the latents of forget items under a subject, (n, num_ws, w_dim), computed once.

    Under the target these are the latents that the forget term started from, if it left them in its state:
    ``identity_latents`` (N, num_ws, w_dim), in the order of the split.
    """
    key = ("latents", subject, repr(inversion))
    known: dict[int, Tensor] = evaluation.cache.setdefault(key, {})
    if subject == "target" and not known:
        # inverting again would find other latents than those that were unlearned
        known |= stored_by_forget_term(evaluation, "identity_latents")
    missing = torch.tensor([item for item in ids.tolist() if item not in known], dtype=torch.int64)
    if len(missing):
        dataset, stream = evaluation.splits["forget"].dataset, Randomness(evaluation.seed, "inversion")
        found = latents_of(evaluation.models[subject], dataset, missing, inversion, stream)
        known |= dict(zip(missing.tolist(), found, strict=True))
    return torch.stack([known[item] for item in ids.tolist()])


def stored_by_forget_term(evaluation: Evaluation[ImageGenerator], name: str) -> dict[int, Tensor]:
    """Return what a forget term stored per item in its state, (num_ws, w_dim) by id; empty if it stored nothing.

    The rows belong to ``identity_ids`` of the same state, as the term may have seen more items than are measured, or,
    without these, to the items of the split.
    """
    target = evaluation.models["target"]
    everybody = evaluation.splits["forget"].ids
    for term, state in evaluation.run.state.items():
        given, ids = state.get(name), state.get("identity_ids", everybody)
        if term.split("/")[0] == "forget" and isinstance(given, Tensor) and len(given) == len(ids):
            rows = given.to(target.w_avg).expand(-1, target.num_ws, -1)
            return dict(zip(ids.tolist(), rows, strict=True))
    return {}


def strangers(evaluation: Evaluation[ImageGenerator], n: int) -> Tensor:
    """Return the target's latents of n strangers that no method was trained on, (n, num_ws, w_dim).

    They are the data's test strangers and, if there are too few, further seeds that no item has.
    """
    seeds: list[int] = []
    taken: set[int] = set()
    dataset = evaluation.splits["forget"].dataset
    if isinstance(dataset, IdentityData):
        taken = {row.content for row in dataset.rows if row.kind == "seed"}
        chosen = torch.nonzero(dataset.having(["strangers"]) & dataset.is_test).flatten()[:n]
        seeds = dataset.batch(chosen)["seed"].tolist() if len(chosen) else []
    seeds += islice((seed for seed in count(FIRST_DRAWN) if seed not in taken), n - len(seeds))
    return latents_of_seeds(evaluation.models["target"], torch.tensor(seeds))


def near_latents(evaluation: Evaluation[ImageGenerator], ids: Tensor, w: Tensor, number: int, step: float) -> Tensor:
    """Return latents close to those of identities, (n * number, num_ws, w_dim), grouped by identity.

    Each lies a share ``step`` of the way from w (n, num_ws, w_dim) to a random latent.
    """
    target = evaluation.models["target"]
    keys = (ids[:, None] * number + torch.arange(number)).flatten().to(w.device)
    drawn = target.mapping(target.latent(keys, Randomness(evaluation.seed, "same person")))
    start = w.repeat_interleave(number, dim=0)
    return start + step * (drawn[:, None] - start)


def other_pictures(evaluation: Evaluation[ImageGenerator], ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids of further pictures of identities, and the position in ``ids`` of each owner, (m,) each."""
    dataset = evaluation.splits["forget"].dataset
    labels, further = dataset.labels, []
    if isinstance(dataset, IdentityData):
        further = torch.nonzero(dataset.having(["same_person"])).flatten().tolist()
    pairs = [(other, k) for k, item in enumerate(ids.tolist()) for other in further if labels[other] == labels[item]]
    found = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    return found[:, 0], found[:, 1]


def drawn(model: ImageGenerator, w: Tensor) -> Tensor:
    """Return the images of latents as they are displayed, in [-1, 1]: rounded to the model's grey levels."""
    return model.images(model.synthesis(w)).float() * (2 / (model.levels - 1)) - 1


def face_panel(title: str, model: ImageGenerator, faces: Tensor, marked: Tensor | None = None) -> Panel:
    """Return a model's images (n, C, H, W) in [-1, 1] as a grid for the report; those ``marked`` (n,) are framed."""
    return Panel(title, model.images(faces).cpu(), model.levels, marked, SIDE)


def embeddings(model: ImageGenerator, w: Tensor, nets: Sequence[Embedder], batch_size: int) -> list[Tensor]:
    """Return the embeddings of the images of latents (N, num_ws, w_dim), (N, D) per net, on the CPU."""
    sizes: list[int] = []  # map_ids returns one tensor: the nets' embeddings are joined in it, then split again

    def look(rows: Tensor) -> Tensor:
        images = drawn(model, w[rows])
        found = [net(images) for net in nets]
        sizes[:] = [part.shape[1] for part in found]
        return torch.cat(found, dim=1)

    found = map_ids(look, torch.arange(len(w), device=w.device), batch_size).cpu()
    return list(found.split(sizes, dim=1))


@dataclass(frozen=True)
class SimilarityScale:
    """Turns a distance of embeddings into a similarity: 1 for the same face, 0 for a stranger.

    Attributes:
        net: measures the distance.
        apart: m, mean distance between unrelated faces of the target.
        ci95: its 95 % interval.
        pairs: number of pairs behind it.
    """

    net: Embedder
    apart: float
    ci95: tuple[float, float] | None
    pairs: int

    @classmethod
    def of(cls, net: Embedder, faces: Tensor) -> SimilarityScale:
        """Return the scale from embeddings (n, D) of unrelated faces, each paired with the next."""
        distances = net.distance(faces, faces.roll(1, 0))
        mean, ci95 = mean_ci95(distances)
        apart = max(mean, torch.finfo(torch.float32).tiny)  # similarities divide by it, and all faces may be equal
        return cls(net, apart, ci95, len(distances))

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Return 1 - d / m of embeddings (n, D), (n,)."""
        return 1 - self.net.distance(a, b) / self.apart

    def nearest(self, a: Tensor, others: Tensor) -> Tensor:
        """Return the largest similarity of each of embeddings (n, D) to any of others (m, D), (n,)."""
        return torch.stack([self.similarity(one.expand_as(others), others).max() for one in a])


def similarity_scales(
    evaluation: Evaluation[ImageGenerator], nets: Sequence[Embedder], n: int, batch_size: int
) -> list[SimilarityScale]:
    """Return each net's scale, from the faces of n strangers that the target draws."""
    faces = embeddings(evaluation.models["target"], strangers(evaluation, n), nets, batch_size)
    return [SimilarityScale.of(*both) for both in zip(nets, faces, strict=True)]
