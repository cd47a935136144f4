"""Pictures and captions made up on the spot, to measure everything but the reading of files."""

import dataclasses
import functools

import numpy as np
from jaxtyping import UInt8

from clip_jax.config import require
from clip_jax.data.sample import Sample

_SPLITS = ("train", "test")
_WORDS = (
    "a an the photo of with near on under old new small large red green blue bright dark "
    "dog cat horse boat house street mountain river tree table window garden market bridge"
)
_PATCHES = 16
"""Colours across a picture, blended: a 640 x 480 JPEG of it has the size of a photograph's."""
_GRAIN = 24
"""Noise added to each channel lies below this, of 255."""
_CAPTION, _PICTURE = range(2)
"""What random numbers are drawn for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic:
    """For benchmarks: what a sample holds is a function of seed, split and index.

    Splits: `train` and `test`, of different pictures and captions.
    """

    samples: int = 1_000_000
    """An epoch's length."""
    width: int = 640
    """In pixels, of every picture."""
    height: int = 480
    encoded: bool = True
    """As JPEG files, of quality 90, to be decoded in training; or as pixels."""
    pictures: int = 64
    """Different ones; sample i has picture i mod this. They are made when first asked for, then
    kept: making pictures is slower than decoding them, and is not what one measures."""
    words: tuple[int, int] = (5, 20)
    """Fewest and most words of a caption."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            ("samples", self.samples > 0, "above 0"),
            ("width", self.width > 0, "above 0"),
            ("height", self.height > 0, "above 0"),
            ("pictures", self.pictures > 0, "above 0"),
            ("words", 0 < self.words[0] <= self.words[1], "two numbers above 0, in order"),
            ("seed", self.seed >= 0, "0 or more"),
        )

    def open(self, split: str) -> "SyntheticSource":
        """Nothing is made yet.

        Raises:
          ValueError: no such split.
        """
        if split not in _SPLITS:
            raise ValueError(f"Synthetic has no split {split!r}; it has {', '.join(_SPLITS)}")
        return SyntheticSource(self, split)

    def class_names(self, split: str) -> tuple[str, ...]:
        """None: there are no labels."""
        return ()


class SyntheticSource:
    """One split; see `Synthetic`."""

    def __init__(self, config: Synthetic, split: str):
        self.config = config
        self.split = split
        self._picture = functools.lru_cache(maxsize=config.pictures)(self._make)

    def __reduce__(self):
        return SyntheticSource, (self.config, self.split)

    def __len__(self) -> int:
        return self.config.samples

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        rng = self._rng(_CAPTION, index)
        fewest, most = self.config.words
        text = " ".join(rng.choice(_WORDS.split(), size=rng.integers(fewest, most + 1)))
        return Sample(
            key=f"{self.split}-{index:09d}",
            image=self._picture(index % self.config.pictures),
            texts=(text,),
        )

    def _make(self, number: int) -> bytes | UInt8[np.ndarray, "height width 3"]:
        import simplejpeg

        from clip_jax.preprocess import geometry

        config, rng = self.config, self._rng(_PICTURE, number)
        patches = rng.integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8)
        blended = geometry.resize(patches, config.width, config.height)
        grain = rng.integers(0, _GRAIN, blended.shape, dtype=np.uint8)
        pixels = np.minimum(blended, 255 - grain) + grain
        if config.encoded:
            return simplejpeg.encode_jpeg(pixels, quality=90)
        pixels.flags.writeable = False  # Samples share it.
        return pixels

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, _SPLITS.index(self.split), purpose, number])
