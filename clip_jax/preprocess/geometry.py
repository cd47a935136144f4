"""Pixels and nothing else: decode to RGB, resize, crop. Exact as Pillow, which CLIP was made with.

EXIF orientation is ignored, as by the pipelines that the published models were trained and
measured with.
"""

import io
import math
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

MAX_PIXELS = 89_478_485
"""Larger pictures are refused: a few kilobytes of PNG can unfold to gigabytes (Pillow's limit)."""

_SAME_AS_PILLOW = ("YCbCr", "Gray", "RGB")  # Of CMYK, the two make different RGB.

RGB = UInt8[np.ndarray, "height width 3"]
Interpolation = Literal["bicubic", "bilinear", "bilinear_plain", "opencv"]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def decode(data: bytes, *, min_side: int = 0) -> RGB:
    """An encoded picture (anything Pillow reads; its first frame) as RGB.

    Transparency is dropped, 16-bit grey keeps its upper 8 bits.

    Args:
      data: the file's bytes.
      min_side: 0 gives exactly Pillow's pixels. Otherwise a JPEG may come out smaller, by one of
        libjpeg's own factors, so long as both sides keep at least this many pixels: much faster.

    Raises:
      ValueError: the bytes are no picture, are damaged or cut off, or unfold to more than
        `MAX_PIXELS`; the message says which.
    """
    if not data:
        raise ValueError("the image file is empty")
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if int(height) * int(width) <= MAX_PIXELS and colours in _SAME_AS_PILLOW:
                return simplejpeg.decode_jpeg(data, min_height=min_side, min_width=min_side)
        except ValueError:
            pass  # Pillow forgives some faults, and names others better.
    return np.array(_open(data))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that a JPEG's header tells; None of other files, and of faulty headers."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return int(height), int(width)


def min_side_for(height: int, width: int, part: int, size: int) -> int:
    """What to give `decode` so that `part` pixels of the whole picture keep nearly `size`.

    Of libjpeg's eighths only 1, 2, 4 and 8 are vectorised: 5 takes longer than the whole picture.
    A sixteenth less than `size` is let pass: bicubic shrinking blurs more than that away.
    """
    for eighths in (1, 2, 4):
        if part * eighths / 8 >= size * 15 / 16:
            return math.ceil(min(height, width) * eighths / 8)
    return 0


def _open(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_size(*image.size)
            return to_rgb(image)
    except Exception as fault:  # Damaged bytes end in many kinds of error, inside each decoder.
        reason = " ".join(str(fault).split()) or type(fault).__name__
        if isinstance(fault, Image.UnidentifiedImageError):
            reason = f"not a picture that can be read ({len(data)} bytes, first {data[:8]!r})"
        raise ValueError(f"cannot decode the image: {reason}") from fault


def check_size(width: int, height: int) -> None:
    """Refuse a picture before memory is taken for it.

    Raises:
      ValueError: more than `MAX_PIXELS`, or a side of 0.
    """
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; allowed are 1 to {MAX_PIXELS:,} in all")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as 8-bit RGB; transparency is dropped, not blended."""
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8, so nearly all to white.
        grey = np.clip(np.asarray(image), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def as_rgb(picture: bytes | Image.Image | np.ndarray, *, min_side: int = 0) -> RGB:
    """Whatever a caller has, as uint8 (height, width, 3).

    Args:
      picture: an encoded file, a Pillow image of any mode, or uint8 (H, W, 3) or (H, W).
      min_side: as in `decode`.

    Raises:
      ValueError: undecodable bytes; an array of another shape or type.
    """
    if isinstance(picture, bytes):
        return decode(picture, min_side=min_side)
    if isinstance(picture, Image.Image):
        check_size(*picture.size)
        return np.array(to_rgb(picture))
    picture = np.asarray(picture)
    grey = picture.ndim == 2
    if picture.dtype != np.uint8 or not (grey or (picture.ndim == 3 and picture.shape[2] == 3)):
        raise ValueError(
            "an image array must be uint8 of shape (height, width, 3) or (height, width), "
            f"got {picture.dtype} {picture.shape}"
        )
    check_size(picture.shape[1], picture.shape[0])
    return np.repeat(picture[..., None], 3, axis=2) if grey else picture


def resize(
    image: UInt8[np.ndarray, "_ _ 3"],
    width: int,
    height: int,
    *,
    box: tuple[float, float, float, float] | tuple[int, int, int, int] | None = None,
    interpolation: Interpolation = "bicubic",
    out: UInt8[np.ndarray, "{height} {width} 3"] | None = None,
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Pillow's antialiased resize, of the part inside `box` (left, top, right, bottom) if given.

    "bilinear_plain" is TensorFlow's instead, which does not antialias; see `Recipe`. "opencv" is
    for training; see `Augment`. These two move the box to whole pixels.

    Args:
      out: contiguous; is filled and returned, in place of a new array.

    Raises:
      ModuleNotFoundError: "opencv" without OpenCV.
    """
    box = box or (0, 0, image.shape[1], image.shape[0])
    left, top, right, bottom = edges = tuple(map(round, box))
    if right - left == width and bottom - top == height and edges == box:
        made = image[top:bottom, left:right]
    elif interpolation == "opencv":
        part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
        return _opencv(part, width, height, out)
    elif interpolation == "bilinear_plain":
        made = _plain(image[top:bottom, left:right], width, height)
    else:
        filled = Image.fromarray(np.ascontiguousarray(image))
        made = filled.resize((width, height), _FILTERS[interpolation], box=box)
    if out is None:
        return np.array(made)
    out[...] = made
    return out


def _opencv(
    image: UInt8[np.ndarray, "_ _ 3"], width: int, height: int, out: RGB | None = None
) -> RGB:
    """Means of whole blocks as far as they go, then OpenCV's bicubic, which does not antialias.

    What the blocks leave over at the edges, up to half a pixel of the result a side, is lost.
    """
    try:
        import cv2  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as fault:
        raise ModuleNotFoundError(
            'the interpolation "opencv" needs OpenCV: pip install opencv-python-headless, or '
            'choose "bicubic"'
        ) from fault
    down, across = max(1, image.shape[0] // height), max(1, image.shape[1] // width)
    if down > 1 or across > 1:
        rows, columns = image.shape[0] // down, image.shape[1] // across
        top, left = image.shape[0] % down // 2, image.shape[1] % across // 2
        image = image[top : top + rows * down, left : left + columns * across]
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, (width, height), out, interpolation=cv2.INTER_CUBIC)


def _plain(image: UInt8[np.ndarray, "_ _ 3"], width: int, height: int) -> RGB:
    """Each new pixel from the four around its centre, cut down to whole values."""

    def neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centres = (np.arange(new, dtype=np.float32) + 0.5) * np.float32(old / new) - 0.5
        below = np.floor(centres)
        low, high = (np.clip(side, 0, old - 1).astype(int) for side in (below, below + 1))
        return low, high, (centres - below).astype(np.float32)

    top, bottom, down = neighbours(image.shape[0], height)
    left, right, across = neighbours(image.shape[1], width)
    pixels = image.astype(np.float32)
    rows = pixels[:, left] + (pixels[:, right] - pixels[:, left]) * across[None, :, None]
    mixed = rows[top] + (rows[bottom] - rows[top]) * down[:, None, None]
    return np.clip(mixed, 0, 255).astype(np.uint8)


def shortest_side(
    image: UInt8[np.ndarray, "_ _ 3"], size: int, interpolation: Interpolation = "bicubic"
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resized so that the shorter side has `size` pixels; then the `size` x `size` in the middle.

    The same integers as torchvision's `Resize(size)` and `CenterCrop(size)`: the longer side is
    rounded down, the crop's corner to the nearest even.

    Raises:
      ValueError: the shape is so long that the resized picture has over `MAX_PIXELS`.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    width, height = width * size // short, height * size // short
    check_size(width, height)
    image = resize(image, width, height, interpolation=interpolation)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image[top : top + size, left : left + size].copy()


def longest_side(
    image: UInt8[np.ndarray, "_ _ 3"],
    size: int,
    interpolation: Interpolation = "bicubic",
    fill: int = 0,
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resized so that the longer side has `size` pixels, in the middle of a square of `fill`.

    The same integers as open_clip's resize_mode "longest": the shorter side is rounded, the half
    pixel of padding goes to the right and the bottom. A sliver keeps one pixel, where open_clip
    fails.
    """
    # Dividing twice, as open_clip does, decides the same way where a half is rounded.
    ratio = max(image.shape[:2]) / size
    height, width = (max(1, round(side / ratio)) for side in image.shape[:2])
    left, top = (size - width) // 2, (size - height) // 2
    square = np.full((size, size, 3), fill, np.uint8)
    square[top : top + height, left : left + width] = resize(
        image, width, height, interpolation=interpolation
    )
    return square


def squash(
    image: UInt8[np.ndarray, "_ _ 3"], size: int, interpolation: Interpolation = "bicubic"
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resized to `size` x `size`, whatever the proportions."""
    return resize(image, size, size, interpolation=interpolation)
