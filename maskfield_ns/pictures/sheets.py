"""Pictures of results for people: colours, heat maps, overlays, legends, contact sheets, PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from maskfield_ns.files import atomic_path, explained
from maskfield_ns.pictures.colors import UNLABELLED_COLOUR, colour_table

Picture = UInt8[np.ndarray, "H W 3"]


_BACKGROUND, _INK, _MARGIN = (255, 255, 255), (20, 20, 20), 8
_MAX_CAPTION = 1000
"""Characters of a caption that are looked at."""


def label_picture(
    ids: Int[np.ndarray, "H W"], nothing: int = 0, colours: UInt8[np.ndarray, "N 3"] | None = None
) -> Picture:
    """Colour per pixel for a map of instance ids or class indices; ``nothing`` and negative values are dark grey.

    Args:
        ids: id or index per pixel; id i has colour i of the table (repeating past its end).
        nothing: the value that means no label.
        colours: :func:`colour_table` by default.
    """
    table = colour_table(256) if colours is None else colours
    picture = table[np.maximum(ids, 0).astype(np.int64) % len(table)]
    picture[(ids == nothing) | (ids < 0)] = UNLABELLED_COLOUR
    return picture


def class_picture(class_map: Int[np.ndarray, "H W"], names: Sequence[str]) -> Picture:
    """A class map in colours, with a legend of all classes below.

    A small map is enlarged by a whole factor until the legend can be read beside it.

    Raises:
        ValueError: the map has an index without a name.
    """
    if class_map.size and class_map.max() >= len(names):
        raise ValueError(f"class {class_map.max()} has no name; there are {len(names)}")
    factor = max(1, -(-320 // max(1, class_map.shape[1])))
    picture = label_picture(class_map, nothing=-1).repeat(factor, axis=0).repeat(factor, axis=1)
    return np.concatenate([picture, _legend(names, picture.shape[1])], axis=0)


def heat_map(values: Float[np.ndarray, "H W"]) -> Picture:
    """Values in 0..1 as the turbo colour map (blue, green, red); clipped outside, mid grey where NaN."""
    import matplotlib

    table = np.round(matplotlib.colormaps["turbo"](np.arange(256))[:, :3] * 255).astype(np.uint8)
    known = ~np.isnan(values)
    picture = table[np.round(np.clip(np.where(known, values, 0.0), 0.0, 1.0) * 255).astype(np.int64)]
    picture[~known] = 128
    return picture


def overlay(
    rgb: Picture,
    mask: Bool[np.ndarray, "H W"],
    colour: Sequence[int] = (255, 0, 200),
    outline: bool = True,
    strength: float = 0.45,
) -> Picture:
    """A picture with a mask tinted and outlined.

    The outline is a line of the colour inside the mask and a dark one just outside, so that it shows on any ground.

    Args:
        rgb: the picture; it is not changed.
        mask: same size.
        colour: sRGB, 0 to 255.
        outline: draw the outline.
        strength: of the tint, in [0, 1].

    Raises:
        ValueError: sizes differ.
    """
    if rgb.shape[:2] != mask.shape:
        raise ValueError(f"the picture is {rgb.shape[:2]}, the mask {mask.shape}")
    result = rgb.copy()
    paint = np.asarray(colour, np.float32)
    result[mask] = np.round((1 - strength) * rgb[mask] + strength * paint).astype(np.uint8)
    if outline:
        width = max(1, round(min(mask.shape) / 250))
        result[_grown(mask, width) & ~mask] = (20, 20, 20)
        # The complement grows from its own pixels only, so a mask cut by the picture's edge stays open there.
        result[_grown(~mask, width) & mask] = paint.astype(np.uint8)
    return result


@dataclass(frozen=True)
class PcaBasis:
    """How D features become three colour channels; keep one to give several views the same colours."""

    mean: Float[np.ndarray, " D"]
    axes: Float[np.ndarray, "D 3"]
    """A column of zeros where the features do not vary any more."""
    low: Float[np.ndarray, " 3"]
    high: Float[np.ndarray, " 3"]


def pca_basis(features: Float[np.ndarray, "*batch D"]) -> PcaBasis:
    """The three directions of largest variance, with the 1st and 99th percentile along each as black and full.

    Defined for any input: rows that are not finite are left out, and directions without variance beyond rounding
    (all-zero features, equal channels, fewer than three channels) get no axis.
    """
    # Not reshape(-1, D): numpy cannot infer the -1 when D is 0.
    rows = features.reshape(int(np.prod(features.shape[:-1])), features.shape[-1]).astype(np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    dim = rows.shape[1]
    axes, low, high = np.zeros((dim, 3)), np.zeros(3), np.zeros(3)
    if not len(rows):
        return PcaBasis(np.zeros(dim), axes, low, high)
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    # Rounding noise must not be stretched to full contrast: compare with the features' size and the first axis.
    deviations = np.sqrt(np.maximum(variances, 0.0))[::-1]
    floor = max(1e-6 * np.abs(rows).max(initial=0.0), 1e-5 * deviations.max(initial=0.0))
    for channel in range(min(3, dim)):
        if deviations[channel] <= floor:
            break
        axis = vectors[:, -1 - channel]
        axes[:, channel] = axis * np.sign(axis[np.abs(axis).argmax()])  # an eigenvector's sign is arbitrary
        low[channel], high[channel] = np.percentile(centred @ axes[:, channel], (1, 99))
    return PcaBasis(mean, axes, low, high)


def pca_picture(features: Float[np.ndarray, "H W D"], basis: PcaBasis | None = None) -> Float[np.ndarray, "H W 3"]:
    """Features as float colours in 0..1; safe to show for any input.

    Args:
        features: any values; pixels that are not finite become black.
        basis: of :func:`pca_basis`; computed from ``features`` if None.

    Returns:
        float32. A channel in which the features do not vary is 0.5 everywhere.
    """
    basis = pca_basis(features) if basis is None else basis
    known = np.all(np.isfinite(features), axis=-1)
    centred = np.where(known[..., None], features, 0.0).astype(np.float64) - basis.mean
    span = basis.high - basis.low
    scaled = (centred @ basis.axes - basis.low) / np.where(span > 0, span, 1.0)
    picture = np.where(span > 0, np.clip(scaled, 0.0, 1.0), 0.5)
    picture[~known] = 0.0
    return picture.astype(np.float32)


def contact_sheet(rows: Sequence[Sequence[tuple[str, Picture]]], path: Path | str, tile_width: int = 320) -> None:
    """Write captioned pictures as one PNG, row by row.

    Args:
        rows: (caption, picture) per tile; rows may differ in length, pictures in size and shape.
        path: of the PNG; replaced at once, never half written.
        tile_width: pixels every picture is scaled to; enlarged without smoothing.

    Raises:
        ValueError: there is no picture, or one without pixels.
        MaskfieldError: the file cannot be written.
    """
    if not any(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one picture")
    font = _font(15)
    caption_height = _line_height(font) + 4
    tiles = [
        [(_fitted(caption, font, tile_width), _tile(picture, tile_width)) for caption, picture in row] for row in rows
    ]
    heights = [max((tile.height for _, tile in row), default=0) for row in tiles]
    columns = max(len(row) for row in tiles)
    sheet = Image.new(
        "RGB",
        (_MARGIN + columns * (tile_width + _MARGIN), _MARGIN + sum(h + caption_height + _MARGIN for h in heights)),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(tiles, heights, strict=True):
        for column, (caption, tile) in enumerate(row):
            left = _MARGIN + column * (tile_width + _MARGIN)
            draw.text((left, top), caption, fill=_INK, font=font)
            sheet.paste(tile, (left, top + caption_height))
        top += height + caption_height + _MARGIN
    save_png(path, np.asarray(sheet))


def save_png(path: Path | str, array: np.ndarray) -> None:
    """Write a PNG that is either complete or not there; missing folders are made.

    Args:
        path: of the file; replaced if it exists.
        array: [H, W] or [H, W, 3 or 4]; uint8, bool (black and white) or float in 0..1 (clipped).

    Raises:
        ValueError: not a picture.
        MaskfieldError: the file cannot be written.
    """
    path = Path(path)
    picture = Image.fromarray(to_uint8(array))
    with explained(path), atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def to_uint8(array: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
    """A picture as uint8: bool becomes 0 and 255, floats in 0..1 (clipped; NaN is 0) are scaled, uint8 stays.

    Raises:
        ValueError: another type or shape, or no pixel.
    """
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"a picture is [H, W] or [H, W, 3 or 4], not {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        return np.round(np.clip(np.nan_to_num(array, nan=0.0), 0.0, 1.0) * 255).astype(np.uint8)
    raise ValueError(f"a picture is uint8, bool or float, not {array.dtype}")


def _grown(mask: Bool[np.ndarray, "H W"], steps: int) -> Bool[np.ndarray, "H W"]:
    """Dilation by 4-neighbours; nothing comes in from outside the picture."""
    for _ in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def _legend(names: Sequence[str], width: int) -> Picture:
    """Swatches with names, in as many lines as needed."""
    font, swatch, gap = _font(14), 12, 6
    line = _line_height(font) + 4
    places, left, top = [], gap, gap
    for name in names:
        text = _fitted(name, font, width - swatch - 3 * gap)
        advance = swatch + gap + int(np.ceil(font.getlength(text)))
        if left > gap and left + advance + gap > width:
            left, top = gap, top + line
        places.append((text, left, top))
        left += advance + 2 * gap
    height = top + line + gap if places else 0
    legend = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for (text, x, y), colour in zip(places, colour_table(len(names)), strict=True):
        draw.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=tuple(int(c) for c in colour), outline=_INK)
        draw.text((x + swatch + gap, y), text, fill=_INK, font=font)
    return np.asarray(legend).reshape(height, width, 3)


def _tile(picture: Picture, width: int) -> Image.Image:
    array = to_uint8(picture)
    if array.ndim == 2:
        array = array[..., None].repeat(3, axis=2)
    image = Image.fromarray(array[..., :3])
    if image.width == width:
        return image
    height = max(1, round(image.height * width / image.width))
    smooth = Image.Resampling.LANCZOS if image.width > width else Image.Resampling.NEAREST
    return image.resize((width, height), smooth)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    # Ascenders and descenders of all lines alike, so that baselines agree.
    return int(np.ceil(font.getbbox("Ågjpq|")[3]))


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """One line of text, shortened with an ellipsis until it fits."""
    text = " ".join(text[:_MAX_CAPTION].split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, min(len(text), width)  # no character is narrower than a pixel, except some that show nothing
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low].rstrip() + "…"
