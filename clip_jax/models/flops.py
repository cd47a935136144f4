"""What a model costs: parameters and arithmetic, counted from its configuration alone."""

from typing import NamedTuple

from clip_jax.models.clip import ClipConfig
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.text import TextConfig
from clip_jax.models.transformer import StackConfig
from clip_jax.models.vit import ViTConfig


class Flops(NamedTuple):
    """Floating-point operations of one forward pass; a training step takes three times as many."""

    image: float
    """Per image."""
    text: float
    """Per text, padding included."""


class Parameters(NamedTuple):
    """Numbers that are learned; the running mean and variance of a ResNet's norms are not."""

    image: int
    text: int
    model: int
    """Both towers, the temperature, and the bias if there is one."""


class _Cost(NamedTuple):
    """Of a part: multiply-adds for one image or text, and learned numbers."""

    multiplies: int | float
    weights: int


def flops(cfg: ClipConfig, *, train: bool = False, packed: float = 1.0) -> Flops:
    """Two operations a multiply-add, counted for matrix products and convolutions alone.

    Both products of attention count in full, also where a mask hides half of them. A NaFlex tower
    is counted with as many patches as its table of positions has.

    Args:
      train: only what training computes: `patch_dropout` and `train_length` leave tokens out, and
        the last block of a tower that pools one token has no more than keys and values of others.
      packed: texts in a sequence, with `train`; `text` is then per sequence.
    """
    image, text = _image(cfg, train), _text(cfg.text, cfg.embed_dim, train, packed)
    return Flops(2.0 * image.multiplies, 2.0 * text.multiplies)


def parameters(cfg: ClipConfig) -> Parameters:
    """As many as `init_params` makes, without tracing it."""
    image, text = _image(cfg).weights, _text(cfg.text, cfg.embed_dim).weights
    return Parameters(image, text, image + text + 1 + (cfg.bias is not None))


def _image(cfg: ClipConfig, train: bool = False) -> _Cost:
    if isinstance(cfg.image, ResNetConfig):
        return _resnet(cfg.image, cfg.embed_dim)
    return _vit(cfg.image, cfg.embed_dim, train)


def _total(*parts: _Cost) -> _Cost:
    return _Cost(sum(part.multiplies for part in parts), sum(part.weights for part in parts))


def _table(size: int) -> _Cost:
    """Learned numbers that take part in no product: embeddings, positions, scales and shifts."""
    return _Cost(0, size)


def _dense(rows: int | float, inputs: int, outputs: int, bias: bool = True) -> _Cost:
    return _Cost(rows * inputs * outputs, (inputs + bias) * outputs)


def _conv(cells: int, kernel: int, inputs: int, outputs: int) -> _Cost:
    """A convolution without bias, as a matrix product per cell of its output, and its BatchNorm."""
    return _total(_dense(cells, kernel**2 * inputs, outputs, bias=False), _table(2 * outputs))


def _attention(queries: int | float, keys: int, width: int, outputs: int | None = None) -> _Cost:
    """Projections of the queries, keys, values and result, and the two products between."""
    rows = (queries, keys, keys)
    projections = [_dense(count, width, width) for count in rows]
    projections.append(_dense(queries, width, outputs or width))
    return _total(*projections, _Cost(2 * queries * keys * width, 0))


def _mlp(rows: int | float, cfg: StackConfig) -> _Cost:
    hidden = cfg.mlp_width or 4 * cfg.width
    return _total(_dense(rows, cfg.width, hidden), _dense(rows, hidden, cfg.width))


def _stack(tokens: int, cfg: StackConfig, pooled: int | float | None = None) -> _Cost:
    """All blocks, the last one for `pooled` tokens or all, and the norm at the end."""
    blocks = [_block(tokens, tokens, cfg)] * (cfg.layers - 1)
    last = _block(tokens if pooled is None else pooled, tokens, cfg)
    return _total(*blocks, last, _table(2 * cfg.width))


def _block(queries: int | float, tokens: int, cfg: StackConfig) -> _Cost:
    norm = _table(2 * cfg.width)
    block = _total(norm, _attention(queries, tokens, cfg.width), norm, _mlp(queries, cfg))
    return block if cfg.layer_scale is None else _total(block, norm)


def _vit(cfg: ViTConfig, embed_dim: int, train: bool) -> _Cost:
    width, patches = cfg.stack.width, cfg.kept_patches if train else cfg.grid**2
    tokens = patches + cfg.has_class_token
    parts = [
        _dense(patches, 3 * cfg.patch_size**2, width, cfg.patch_bias),
        _stack(tokens, cfg.stack, 1 if train and cfg.pool == "class" else None),
    ]
    if cfg.has_class_token:
        parts.append(_table(width))
    if cfg.positions != "sincos":
        parts.append(_table((cfg.grid**2 + cfg.has_class_token) * width))
    if cfg.pre_norm:
        parts.append(_table(2 * width))
    if cfg.pool == "map":
        probe, norm = _table(width), _table(2 * width)
        parts += [probe, _attention(1, tokens, width), norm, _mlp(1, cfg.stack)]
    if cfg.project:
        parts.append(_dense(1, width, embed_dim, bias=False))
    return _total(*parts)


def _text(cfg: TextConfig, embed_dim: int, train: bool = False, packed: float = 1.0) -> _Cost:
    width, length = cfg.stack.width, cfg.context_length
    tokens = cfg.train_length if train and cfg.train_length else length
    stack = _stack(tokens, cfg.stack, packed if train else None)
    parts = [_table((cfg.vocab_size + length) * width), stack]
    if cfg.project:
        parts.append(_dense(packed, width, embed_dim, cfg.head_bias))
    return _total(*parts)


def _resnet(cfg: ResNetConfig, embed_dim: int) -> _Cost:
    """Strides are poolings: a convolution before one still works on the finer grid.

    The attention pooling is counted with every token as a query, as published tables do, although
    the first one suffices (5% less for RN50).
    """
    side, width = cfg.image_size // 2, cfg.width
    half = width // 2
    stem = [(3, half), (half, half), (half, width)]
    parts = [_conv(side**2, 3, inputs, outputs) for inputs, outputs in stem]
    side, inputs = side // 2, width
    for stage, blocks in enumerate(cfg.layers):
        width = cfg.width * 2**stage
        for block in range(blocks):
            coarse = side // 2 if stage and not block else side
            parts.append(_conv(side**2, 1, inputs, width))
            parts.append(_conv(side**2, 3, width, width))
            parts.append(_conv(coarse**2, 1, width, 4 * width))
            if not block:
                parts.append(_conv(coarse**2, 1, inputs, 4 * width))
            side, inputs = coarse, 4 * width
    tokens = side**2 + 1
    positions = _table(tokens * inputs)
    attention = _attention(tokens, tokens, inputs, embed_dim)
    return _total(*parts, positions, attention)
