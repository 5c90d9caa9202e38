"""Images from files, as they are seen: upright, on white, with 256 levels of grey or colour."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unlearn.core.boundary import reading
from unlearn.core.errors import RecipeError

REMEDY = "Replace or remove the file."
WHITE_OF_16_BITS = 65535


def opened(source: Path | BytesIO, file: Path) -> Image.Image:
    """Open an image without reading its pixels. Raises RecipeError if it is not an image, or far too large."""
    with reading(file, REMEDY):  # the readers of rare formats raise other kinds too
        try:
            return Image.open(source)
        except Image.DecompressionBombError as error:
            raise RecipeError(f"{file}: the image is too large ({error}). {REMEDY}") from error
        except UnidentifiedImageError as error:
            raise RecipeError(f"{file}: not an image. {REMEDY}") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise RecipeError(f"{file}: cannot be read ({error}). {REMEDY}") from error


def read_picture(file: Path, channels: int) -> Image.Image:
    """Return an image of 1 or 3 channels: turned upright, transparency on white, 16 bits scaled to 8.

    Raises:
        RecipeError: it cannot be read, or it has 32 bits, whose white level is unknown.
    """
    with opened(file, file) as image, reading(file, REMEDY):
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
                grey = np.asarray(upright).astype(np.float64) * (255 / WHITE_OF_16_BITS)
                upright = Image.fromarray(grey.round().astype(np.uint8))
            if upright.mode in ("I", "F"):
                raise RecipeError(f"{file}: its pixels have 32 bits, and nothing says what is white. Save it with 8.")
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return upright.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RecipeError(f"{file}: the image is damaged ({error}). {REMEDY}") from error
