"""Published weights by name: where they lie, and how their model wants its input."""

import csv
import dataclasses
import difflib
import functools
import importlib.resources
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from clip_jax.models.flops import flops, parameters
from clip_jax.models.presets import PRESETS
from clip_jax.preprocess.naflex import NaflexRecipe
from clip_jax.preprocess.recipe import Recipe, RecipeConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """A tokenizer that is not CLIP's own."""

    hub: str
    """The Hugging Face repository that has its files."""
    clean: Literal["whitespace", "lower", "canonicalize"] = "whitespace"
    """OpenCLIP's name for what is done to a text first."""
    strip_separator: bool = False
    """BERT's separator, which ends every text, becomes padding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """One set of published weights."""

    model: str
    """The architecture as the name says it."""
    tag: str
    """What it was trained on, in OpenCLIP's words."""
    preset: str
    """The architecture that computes what these weights were trained for: `model`, or that with
    OpenAI's activation. OpenCLIP leaves this choice to the user."""
    hub: str
    """The Hugging Face repository that has the weights."""
    recipe: RecipeConfig
    """What the model was evaluated with."""
    tokenizer: TokenizerSource | None
    """None: CLIP's byte-pair encoding."""

    @property
    def name(self) -> str:
        """`model/tag`."""
        return f"{self.model}/{self.tag}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRow:
    """A known architecture and what it costs."""

    name: str
    parameters: int
    image_gflops: float
    """Billions of operations for one image; a multiply-add is two."""
    text_gflops: float
    """For one text."""
    image_size: int
    """Side of the square image, in pixels."""
    embed_dim: int
    context_length: int
    """Tokens a text."""
    tags: tuple[str, ...]
    """Of known weights: each is loaded as `name/tag`."""


_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_RECIPES: dict[str, Recipe] = {
    "clip": Recipe(),
    "clip_half": Recipe(**_HALF),
    "clip_squash": Recipe(resize="squash"),
    "clipa": Recipe(resize="squash", interpolation="bilinear", **_IMAGENET),
    "siglip": Recipe(resize="squash", **_HALF),
}
_TOKENIZERS = {
    "clip": None,
    "c4": TokenizerSource(hub="timm/ViT-B-16-SigLIP", clean="canonicalize"),
    "mc4": TokenizerSource(hub="timm/ViT-B-16-SigLIP-i18n-256", clean="canonicalize"),
    "bert": TokenizerSource(hub="bert-base-uncased", strip_separator=True),
    "xlm_v": TokenizerSource(hub="facebook/xlm-v-base"),
    "mt5": TokenizerSource(hub="google/mt5-base", clean="canonicalize"),
    # SigLIP 2's lies beside the weights.
    "gemma": TokenizerSource(hub="", clean="canonicalize"),
    "gemma_lower": TokenizerSource(hub="", clean="lower"),
}


@functools.cache
def published() -> Mapping[str, Published]:
    """All known weights by `model/tag`.

    Weights trained with OpenAI's activation are listed under both names of their architecture,
    `ViT-B-32/openai` and `ViT-B-32-quickgelu/openai`, and have the latter's preset under both.

    Source: OpenCLIP's table of pretrained weights, as far as they are on the Hugging Face hub and
    of an architecture in `PRESETS`; NaFlex from its authors. The table has the same repository for
    both epochs of ViT-B-16-plus-240; here the second has its own.
    """
    table = importlib.resources.files("clip_jax.pretrained") / "assets" / "published.csv"
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    found = [_published(row) for row in rows]
    aliases = [dataclasses.replace(p, model=p.preset) for p in found if p.model != p.preset]
    return MappingProxyType({p.name: p for p in (*found, *aliases)})


def _published(row: Mapping[str, str]) -> Published:
    image, hub = PRESETS[row["preset"]].image, row["hub"]
    if row["recipe"] == "naflex":
        recipe = NaflexRecipe(max_patches=image.grid**2)
    else:
        recipe = dataclasses.replace(_RECIPES[row["recipe"]], size=image.image_size)
    tokenizer = _TOKENIZERS[row["tokenizer"]]
    if tokenizer is not None and not tokenizer.hub:
        tokenizer = dataclasses.replace(tokenizer, hub=hub)
    return Published(
        model=row["model"],
        tag=row["tag"],
        preset=row["preset"],
        hub=hub,
        recipe=recipe,
        tokenizer=tokenizer,
    )


def find(name: str) -> Published:
    """Known weights by `model/tag`; the start of a tag is enough where no other begins with it.

    The tag may be in capitals and have hyphens, and is left out where a model has only one.

    Raises:
      ValueError: nothing is meant, or several; says which are near, or which they are.
    """
    model, _, tag = name.partition("/")
    tag = tag.lower().replace("-", "_")
    known = published()
    if f"{model}/{tag}" in known:
        return known[f"{model}/{tag}"]
    tags = [p.tag for p in known.values() if p.model == model]
    meant = [known_tag for known_tag in tags if known_tag.startswith(tag)]
    if len(meant) == 1:
        return known[f"{model}/{meant[0]}"]
    if meant:
        raise ValueError(f"{name!r} may mean any of {', '.join(f'{model}/{t}' for t in meant)}")
    if tags:
        near = difflib.get_close_matches(tag, tags, n=1, cutoff=0.0)[0]
        raise ValueError(f"no known weights {name!r}; nearest {near!r} of {model}: {tags}")
    if model in PRESETS:
        raise ValueError(f"{model!r} is an architecture without known weights")
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    raise ValueError(
        f"no known weights {name!r}; nearest {', '.join(near)} (`clip-jax models` lists all)"
    )


def list_models() -> list[ModelRow]:
    """All known architectures, computed from their configurations; no parameters are made."""
    tags: dict[str, list[str]] = {name: [] for name in PRESETS}
    for weights in published().values():
        tags[weights.model].append(weights.tag)
    rows = []
    for name, config in PRESETS.items():
        cost = flops(config)
        row = ModelRow(
            name=name,
            parameters=parameters(config).model,
            image_gflops=cost.image / 1e9,
            text_gflops=cost.text / 1e9,
            image_size=config.image.image_size,
            embed_dim=config.embed_dim,
            context_length=config.text.context_length,
            tags=tuple(tags[name]),
        )
        rows.append(row)
    return rows
