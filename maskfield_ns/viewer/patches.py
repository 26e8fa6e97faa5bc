"""Pictures that people hand to the viewer."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8

from maskfield_ns.errors import MaskfieldError

MAX_PATCH_PIXELS = 40_000_000


def read_picture(content: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of an image file somebody uploaded.

    Raises:
        MaskfieldError: no image, or a gigantic one.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP", "BMP")) as picture:
            if picture.width * picture.height > MAX_PATCH_PIXELS:
                raise MaskfieldError(f"the picture has more than {MAX_PATCH_PIXELS // 10**6} million pixels")
            picture.draft("RGB", (1024, 1024))
            upright = ImageOps.exif_transpose(picture) or picture
            upright = upright.convert("RGB")
            upright.thumbnail((1024, 1024))
            return np.array(upright)
    except MaskfieldError:
        raise
    except Exception as error:  # whatever a decoder makes of bytes from outside
        raise MaskfieldError("this file cannot be read as a picture (PNG, JPEG, WebP and BMP can)") from error
