"""The embedded demonstration: scikit-learn's 1,797 handwritten digits, coloured and captioned."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, Int, UInt8

from clip_jax.config import nearest
from clip_jax.data.sample import Sample

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLORS = {
    "red": (245, 65, 60),
    "green": (70, 215, 90),
    "blue": (85, 140, 255),
    "yellow": (250, 230, 70),
    "cyan": (70, 230, 240),
    "pink": (255, 120, 205),
    "white": (245, 245, 245),
}
"""Of strokes. Each of them is brighter than each of the grounds: where the sign of the contrast
changes from picture to picture, the shape is far harder to learn."""
GROUNDS = {
    "black": (8, 8, 10),
    "gray": (64, 64, 66),
    "navy": (12, 18, 88),
    "maroon": (86, 10, 22),
    "purple": (66, 18, 90),
    "brown": (82, 50, 18),
    "teal": (2, 68, 68),
}
"""No word for a ground is a word for a stroke, so a caption that names one colour is clear."""
HELD_OUT = tuple(((3 * color + 1) % len(DIGITS), color) for color in range(len(COLORS)))
"""(digit, number of the stroke colour) never seen in training. A diagonal: every colour misses
one digit, no digit more than one colour, so each is seen in training in all other company."""
CLASSES = tuple(f"{color} {digit}" for digit in DIGITS for color in COLORS)

_SPLITS = ("train", "test", "unseen_images", "unseen_combinations")
_SIDE = 32
_INK = 16.0
"""Largest value of the 8 x 8 originals."""

# How many captions of each kind a training sample has; the pipeline draws one a visit. Where every
# caption names a colour, colour is the easy way out and the digit is not learned.
_DIGIT_ONLY, _WITH_COLOR, _WITH_GROUND = 4, 3, 3
_DIGIT_TEMPLATES = (
    "a photo of the number {d}",
    "a photo of the digit {d}",
    "the digit {d}",
    "the number {d}",
    "a handwritten {d}",
    "{d}",
)
_COLOR_TEMPLATES = (
    "a {c} {d}",
    "a photo of a {c} {d}",
    "a {c} digit {d}",
    "the number {d} in {c}",
    "a photo of the digit {d} in {c}",
    "a handwritten {d} in {c}",
    "{c} {d}",
)
_GROUND_TEMPLATES = (
    "a photo of the digit {d} in {c} on a {g} background",
    "a {c} {d} on a {g} background",
    "the number {d} in {c} on {g}",
    "a {c} {d} on {g}",
)
_FULL = _GROUND_TEMPLATES[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """Real handwriting in colours: no download, 32 x 32 pixels, a few minutes to learn.

    About a fifth of the original images of each digit are kept for testing, in every split but
    `train`. The splits:

    * `train`: each training image in several colourings, none of them in `HELD_OUT`; ten captions
      each, four of which name the digit alone; label: the digit.
    * `test`: each test image once, not in `HELD_OUT`, with one caption that names digit, colour and
      ground. No two captions are equal, so retrieval can be wholly right. Label: the digit.
    * `unseen_images`: the same pictures without captions; label: one of 10 digits.
    * `unseen_combinations`: test images in their digit's held-out colour, without captions;
      label: one of `CLASSES`, all 70 digits in colours.
    """

    seed: int = 0
    """Of the division into training and test images, and of all colours and places."""
    colourings: int = 20
    """Pictures made of each training image: an epoch is this many times 1,437 samples."""

    def __post_init__(self):
        if self.colourings < 1 or self.seed < 0:
            raise ValueError(
                "Digits.colourings must be at least 1 and Digits.seed at least 0, "
                f"got {self.colourings} and {self.seed}"
            )

    def open(self, split: str) -> "DigitsSource":
        """Pictures are drawn when they are asked for; each is a function of seed and index alone.

        Raises:
          ValueError: no such split.
        """
        _check(split)
        train, test = _divide(self.seed)
        images, looks = test, None
        if split == "train":
            images = np.repeat(train, self.colourings)
        elif split == "unseen_combinations":
            images = test[np.isin(_originals()[1][test], [digit for digit, _ in HELD_OUT])]
            looks = _held_out_looks(images, self.seed)
        else:
            looks = _distinct_looks(images, self.seed)
        return DigitsSource(split=split, seed=self.seed, images=images, looks=looks)

    def class_names(self, split: str) -> tuple[str, ...]:
        """Ten digits, or 70 digits in colours; fit for templates like "a photo of the digit {c}".

        Raises:
          ValueError: no such split.
        """
        _check(split)
        return CLASSES if split == "unseen_combinations" else DIGITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitsSource:
    """One split; see `Digits`."""

    split: str
    seed: int
    images: Int[np.ndarray, " n"]
    """Number of the original image behind each sample."""
    looks: Int[np.ndarray, "n 2"] | None
    """Numbers of stroke colour and ground of each sample; None: drawn for each, as in training."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        original = int(self.images[index])
        inks, digits = _originals()
        digit = int(digits[original])
        rng = np.random.default_rng([self.seed, _SPLITS.index(self.split), index])
        if self.looks is None:
            seen = [c for c in range(len(COLORS)) if (digit, c) not in HELD_OUT]
            color, ground = int(rng.choice(seen)), int(rng.integers(len(GROUNDS)))
        else:
            color, ground = (int(number) for number in self.looks[index])
        image = draw(
            inks[original], tuple(COLORS.values())[color], tuple(GROUNDS.values())[ground], rng
        )
        label = digit * len(COLORS) + color if self.split == "unseen_combinations" else digit
        texts = self._texts(digit, tuple(COLORS)[color], tuple(GROUNDS)[ground], rng)
        return Sample(
            key=f"{self.split}-{index:05d}-image-{original:04d}",
            image=image,
            texts=texts,
            label=label,
        )

    def _texts(
        self, digit: int, color: str, ground: str, rng: np.random.Generator
    ) -> tuple[str, ...]:
        if self.split == "test":
            return (_FULL.format(d=DIGITS[digit], c=color, g=ground),)
        if self.split != "train":
            return ()
        templates = [
            *rng.choice(_DIGIT_TEMPLATES, _DIGIT_ONLY),
            *rng.choice(_COLOR_TEMPLATES, _WITH_COLOR),
            *rng.choice(_GROUND_TEMPLATES, _WITH_GROUND),
        ]
        names = rng.choice([DIGITS[digit], str(digit)], len(templates))
        return tuple(
            str(template).format(d=name, c=color, g=ground)
            for template, name in zip(templates, names, strict=True)
        )


def draw(
    ink: Float[np.ndarray, "8 8"],
    color: tuple[int, int, int],
    ground: tuple[int, int, int],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "32 32 3"]:
    """A stroke of one colour, 30 to 32 pixels large, somewhere on a plain ground.

    Args:
      ink: how much of the stroke covers each of the original's pixels, 0 to 1.
    """
    from PIL import Image

    size = int(rng.integers(30, 33))
    margin = size // 8  # The stroke may touch the edge of its 8 x 8 pixels: one more, empty, round
    wide = size + 2 * margin  # it lets it fade there. On the canvas that margin takes no room.
    smooth = Image.fromarray(np.pad(ink, 1)).resize((wide, wide), Image.Resampling.BICUBIC)
    top, left = rng.integers(0, _SIDE - size + 1, 2)
    cover = np.zeros((_SIDE + 2 * margin, _SIDE + 2 * margin, 1), np.float32)
    cover[top : top + wide, left : left + wide, 0] = np.asarray(smooth).clip(0, 1)
    cover = cover[margin:-margin, margin:-margin]
    stroke, plain = np.array(color, np.float32), np.array(ground, np.float32)
    return (plain + (stroke - plain) * cover + 0.5).astype(np.uint8)


@functools.cache
def _originals() -> tuple[Float[np.ndarray, "n 8 8"], Int[np.ndarray, " n"]]:
    """All images as cover from 0 to 1, and the digits they show; read once a process."""
    from sklearn.datasets import load_digits

    ink, digits = load_digits(return_X_y=True)
    return (ink.reshape(-1, 8, 8) / _INK).astype(np.float32), np.asarray(digits, np.int64)


def _divide(seed: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Numbers of the training and of the test images: of each digit, a fifth is for testing."""
    digits = _originals()[1]
    order = np.random.default_rng(seed).permutation(len(digits))
    rank = np.empty(len(digits), np.int64)
    for digit in range(len(DIGITS)):
        mine = order[digits[order] == digit]
        rank[mine] = np.arange(len(mine)) * 5 // len(mine)
    return order[rank[order] > 0], order[rank[order] == 0]


def _distinct_looks(images: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, "n 2"]:
    """Pairs of stroke colour and ground, none held out, that differ within each digit."""
    digits = _originals()[1][images]
    looks = np.empty((len(images), 2), np.int64)
    for digit in range(len(DIGITS)):
        pairs = [
            (color, ground)
            for color in range(len(COLORS))
            for ground in range(len(GROUNDS))
            if (digit, color) not in HELD_OUT
        ]
        mine = np.flatnonzero(digits == digit)
        chosen = np.random.default_rng([seed, digit]).permutation(len(pairs))[: len(mine)]
        looks[mine] = np.array(pairs)[chosen]
    return looks


def _held_out_looks(images: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, "n 2"]:
    """The held-out colour of each image's digit, on any ground."""
    colors = np.array([dict(HELD_OUT)[digit] for digit in _originals()[1][images].tolist()])
    grounds = np.random.default_rng([seed, len(DIGITS)]).integers(len(GROUNDS), size=len(images))
    return np.stack([colors, grounds], axis=1)


def _check(split: str) -> None:
    if split not in _SPLITS:
        hint = nearest(split, _SPLITS)
        raise ValueError(f"Digits has no split {split!r}{hint}; it has {_SPLITS}")
