"""What a GAN recalls of an image: the nearest one that a search among its latents finds."""

from unlearn.core.randomness import Randomness
from unlearn.data.base import Batch
from unlearn.models.capabilities import ImageGenerator
from unlearn.models.gan.inversion import Inversion
from unlearn.models.gan.latents import invert
from unlearn.models.recalled import Recalled

SEARCH = Inversion(steps=100)


def recall(model: ImageGenerator, batch: Batch, randomness: Randomness) -> Recalled:
    """Return the images of the latents found for items, and their mean squared distance to them."""
    images = model.pixels(batch)
    found = model.synthesis(invert(model, images, batch["id"], SEARCH, randomness))
    error = (found - images).square().flatten(1).mean(dim=1)
    return Recalled(model.images(found)[None], error, (f"found in {SEARCH.steps} steps",))
