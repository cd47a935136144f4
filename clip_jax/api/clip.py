"""A trained model with all that its use needs: words and pictures in, embeddings out."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from clip_jax.eval import zero_shot
from clip_jax.eval.embed import Embedder
from clip_jax.eval.encoders import Encoders, apart, usual_batch
from clip_jax.models.clip import CLIP
from clip_jax.preprocess.recipe import RecipeConfig
from clip_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A model, its parameters, its tokenizer and its preprocessing.

    `model.apply({"params": params}, images, tokens)` is a pure function of arrays.
    """

    model: CLIP
    params: Mapping[str, Any]
    tokenizer: Tokenizer
    preprocess: RecipeConfig
    """Called on a path's bytes, a PIL image or an array: uint8 (size, size, 3), or patches."""
    batch: int = dataclasses.field(default_factory=usual_batch)
    """Images, or texts, per call of the model."""

    def encode_image(self, images: Sequence[Any]) -> Float[np.ndarray, "n D"]:
        """Unit-norm float32 embeddings, one row an image.

        Args:
          images: paths, PIL images, encoded bytes, or uint8 arrays (height, width, 3).

        Raises:
          FileNotFoundError, ValueError: naming the image that cannot be read.
        """
        if isinstance(images, (str, bytes)) or not isinstance(images, (Sequence, np.ndarray)):
            raise TypeError("encode_image takes a list of images; put a single one into a list")
        if not len(images):
            return self.embedder.images([])
        embedder = dataclasses.replace(self.embedder, prepare=self._prepare)
        return embedder.images(list(enumerate(images)))

    def _prepare(self, numbered: tuple[int, Any]) -> Any:
        """Pixels of one of the images given; an error names its path or number."""
        number, image = numbered
        try:
            if isinstance(image, (str, os.PathLike)):
                return self.preprocess(epath.Path(image).read_bytes())
            return self.preprocess(image)
        except ValueError as fault:
            name = image if isinstance(image, (str, os.PathLike)) else f"image {number}"
            raise ValueError(f"{name}: {fault}") from fault

    def encode_text(self, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        """Unit-norm float32 embeddings, one row a text."""
        if isinstance(texts, str):
            raise TypeError("encode_text takes a list of texts; put a single one into a list")
        return self.embedder.texts(list(texts))

    def classify(
        self,
        images: Sequence[Any],
        class_names: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
    ) -> Float[np.ndarray, "n K"]:
        """Probability of each class for each image; rows sum to 1.

        Args:
          images: as in `encode_image`.
          class_names: K names.
          templates: prompts with one placeholder, `{}`; their embeddings are averaged.
        """
        weights = zero_shot.classifier(self.encode_text, class_names, templates)
        return zero_shot.classify(self.encode_image(images), weights, scale=self.scale)

    @property
    def scale(self) -> float:
        """One over the temperature."""
        return float(np.exp(np.asarray(self.params["logit_scale"], np.float64)))

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The same model as an evaluator sees it."""
        encoders = Encoders(self.model, self.preprocess)
        return encoders.bind(apart(self.params), self.tokenizer, self.batch)
