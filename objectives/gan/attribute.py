"""An attribute is forgotten along the normal of the plane that separates latents with it from latents without."""

from dataclasses import dataclass

from unlearn.objectives.gan.directions import Space, Way
from unlearn.objectives.gan.latent_projection import LatentProjection


@dataclass(frozen=True, kw_only=True)
class Attribute(LatentProjection):
    """Draw a latent with the attribute as the target draws it moved across the plane, to where those without lie.

    ``latent_projection`` with a direction of w, found by a linear support vector machine on what a classifier says of
    the target's images: w moves along its normal n, w - (n . w - b) n with b the mean projection of latents without.
    The plane is InterFaceGAN's; that the model is trained to draw what lies on the other side is as in Moon et al.

    Reference:
        Shen et al., Interpreting the Latent Space of GANs for Semantic Face Editing, 2020. arXiv:1907.10786
    """

    space: Space = "w"
    direction: Way = "hyperplane"
    depth: float = 1.0
