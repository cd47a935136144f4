"""The two towers of a model as jitted functions of parameters and host batches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from clip_jax.eval.embed import Embedder
from clip_jax.models.text import PackedTokens
from clip_jax.models.transformer import unstacked
from clip_jax.models.vit import Patches
from clip_jax.preprocess.recipe import RecipeConfig, normalize

SHORT = (16, 32)
"""Tokens that most prompts, and most captions, have room in; few, as each is compiled once."""


def usual_batch() -> int:
    """Images, or texts, of a call where nobody says how many.

    A CPU gains nothing from more than a few: what one layer hands to the next then leaves its
    caches, and a last batch that is not full costs what a full one does.
    """
    return 16 if jax.default_backend() == "cpu" else 64


def apart(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same parameters; on a lone CPU device those of each block are arrays of their own.

    A loop over blocks copies each one's share of the stacked arrays for every batch, which takes a
    CPU 10% of the time with 16 images of ViT-B-32. Here a share is an array at the same place in
    memory, which `Stack` takes as well. On other devices the longer compilation would cost more.

    As the memory is shared, the parameters given must not be donated while these are in use.
    """
    if (device := _lone_cpu(params)) is None:
        return params

    def cut(leaf: Any) -> list[jax.Array]:
        return [jax.device_put(share, device, may_alias=True) for share in np.asarray(leaf)]

    def tower(params: Any) -> Any:
        if not isinstance(params, Mapping) or "stack" not in params:
            return params
        blocks = unstacked(params["stack"]["blocks"], cut)
        return {**params, "stack": {**params["stack"], "blocks": blocks}}

    return {name: tower(part) for name, part in params.items()}


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
            if tokens.shape[1] < self.model.cfg.text.context_length:
                tokens = _one_a_row(tokens)
            return self.model.apply({"params": params}, tokens, method="encode_text")

        return jax.jit(encode, out_shardings=self.answer)

    def bind(
        self, params: Any, tokenizer: Callable[[list[str]], np.ndarray], batch: int, **options: Any
    ) -> Embedder:
        """An embedder of these parameters; `options` are further fields of `Embedder`.

        Where padding after the end changes nothing, texts are computed without most of it.
        """
        return Embedder(
            image_fn=lambda images: self._image(params, self.place(images)),
            feature_fn=lambda images: self._features(params, self.place(images)),
            text_fn=lambda tokens: self._text(params, self.place(tokens)),
            # Here, and not in `text_fn`, which may see only the rows of one process.
            tokenizer=lambda texts: self._shortened(tokenizer(texts)),
            prepare=self.recipe,
            batch=batch,
            scale=inverse_temperature(params) if _tells_scale(params) else None,
            at_once=1 if _lone_cpu(params) is None else 2,
            **options,
        )

    def _shortened(self, tokens: Int[np.ndarray, "n L"]) -> Int[np.ndarray, "n S"]:
        """The first of `SHORT` tokens that hold all of these texts, or all, as the tower needs."""
        text = self.model.cfg.text
        if not text.causal or text.pool != "eot" or text.eot_id is not None:
            return tokens
        needed = tokens.argmax(axis=1).max() + 1
        return tokens[:, : min((n for n in SHORT if n >= needed), default=tokens.shape[1])]


def _lone_cpu(params: Any) -> Any | None:
    """The device on which all parameters lie, if it is a CPU."""
    arrays = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    devices = {device for array in arrays for device in array.devices()}
    return next((d for d in devices if d.platform == "cpu"), None) if len(devices) == 1 else None


def inverse_temperature(params: Mapping[str, Any]) -> float:
    """What a model's logits are scaled by; it lies whole on every process."""
    return float(np.exp(np.asarray(params["logit_scale"], np.float64)))


def _tells_scale(params: Any) -> bool:
    return isinstance(params, Mapping) and "logit_scale" in params


def _one_a_row(tokens: Int[Array, "B S"]) -> PackedTokens:
    """Texts shorter than the context, as a causal tower takes them."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    ends = jnp.argmax(tokens, axis=1)
    parts = (tokens, places, jnp.ones_like(tokens), ends)
    return PackedTokens._make(part[:, None] for part in parts)
