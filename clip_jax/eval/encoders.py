"""The two towers of a model as jitted functions of parameters and host batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clip_jax.eval.embed import Embedder
from clip_jax.models.vit import Patches
from clip_jax.preprocess.recipe import RecipeConfig, normalize


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Compiled once per batch size, whatever the parameters are."""

    model: Any
    """A Flax module with methods `encode_image`, `image_features` and `encode_text`, as
    `models.clip.CLIP`."""
    recipe: RecipeConfig
    place: Callable[[Any], Any] = jax.device_put
    """Puts a host batch (an array, or a tuple of arrays) where the parameters expect it."""
    answer: jax.sharding.Sharding | None = None
    """Of the embeddings: whole on every process, where several embed together."""

    @functools.cached_property
    def _image(self) -> Callable[[Any, Any], jax.Array]:
        return self._of_images("encode_image")

    @functools.cached_property
    def _features(self) -> Callable[[Any, Any], jax.Array]:
        return self._of_images("image_features")

    def _of_images(self, method: str) -> Callable[[Any, Any], jax.Array]:
        def encode(params: Any, images: Any) -> jax.Array:
            images = normalize(images, self.recipe)
            if isinstance(images, tuple):
                images = Patches(*images)
            return self.model.apply({"params": params}, images, method=method)

        return jax.jit(encode, out_shardings=self.answer)

    @functools.cached_property
    def _text(self) -> Callable[[Any, Any], jax.Array]:
        def encode(params: Any, tokens: Any) -> jax.Array:
            return self.model.apply({"params": params}, tokens, method="encode_text")

        return jax.jit(encode, out_shardings=self.answer)

    def bind(
        self, params: Any, tokenizer: Callable[[list[str]], np.ndarray], batch: int, **options: Any
    ) -> Embedder:
        """An embedder of these parameters; `options` are further fields of `Embedder`."""
        return Embedder(
            image_fn=lambda images: self._image(params, self.place(images)),
            feature_fn=lambda images: self._features(params, self.place(images)),
            text_fn=lambda tokens: self._text(params, self.place(tokens)),
            tokenizer=tokenizer,
            prepare=self.recipe,
            batch=batch,
            **options,
        )
