"""Both towers on a mesh: how parameters of which each device holds a share come to their use."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from clip_jax import tree
from clip_jax.models.clip import CLIP, ClipConfig, Output, activation_dtype, unit_norm
from clip_jax.models.resnet import STATISTICS
from clip_jax.models.transformer import Fetch
from clip_jax.optim.build import DType
from clip_jax.preprocess.recipe import Recipe, normalize
from clip_jax.sharding.gather import gather, stages
from clip_jax.sharding.place import batch_parts
from clip_jax.sharding.refine import FineMesh, mesh_axes, refine
from clip_jax.sharding.rules import AxisRules


@runtime_checkable
class Forward(Protocol):
    """Embeddings of a batch that is split over the mesh, and what batch norms saw of it.

    Arguments are as those of `CLIP.__call__`, but for images, which are uint8. The second result
    is as `models.resnet.with_statistics` takes it.
    """

    def __call__(
        self, params: Any, images: Any, tokens: Any, rows: Any = None, *, rngs: Any
    ) -> tuple[Output, Any]: ...


def make_forward(
    model: ClipConfig,
    shardings: Any,
    rules: AxisRules,
    mesh: Mesh,
    *,
    recipe: Recipe,
    accumulate: int = 1,
    param_dtype: DType = "float32",
    frozen: Any = None,
) -> Forward:
    """Both towers under a table of rules.

    Where `rules.params` splits the parameters, each device runs the towers on its own share of
    the batch. A layer's matrices are rounded to the activations' type, which halves what is
    sent, gathered before use, and forgotten; under `remat` gathered again in the backward pass.
    Their gradients are reduced and scattered, where the compiler, left to itself, would
    all-reduce them whole. Gradients of what stays whole are summed once, after the backward pass.

    With `accumulate` each device does the same with one part of its share after the other, and
    keeps of each no more than the embeddings: in the backward pass they are computed again.

    Args:
      shardings: of the parameters (`sharding.place.param_shardings`).
      recipe: normalises the images.
      accumulate, param_dtype: as in `TrainConfig`.
      frozen: as for `make_step`, whose part it is to hold these parameters constant.
    """
    embed = partial(_forward, recipe=recipe, param_dtype=param_dtype, frozen=frozen)
    if not rules.params and accumulate == 1:
        return partial(embed, CLIP(model), lambda params: params)
    fine = refine(mesh, rules.params)
    over = fine.names(rules.batch)
    manual = over if rules.params else ()  # Else what a table splits is made whole outside.
    specs = jax.tree.map(lambda sharding: _manual(sharding.spec, manual), shardings)
    share = partial(embed, *_of_shares(model, specs, fine, rules))
    split, one = PartitionSpec(over), PartitionSpec()
    return partial(
        _sharded,
        jax.shard_map(
            partial(_in_parts, share, accumulate),
            mesh=fine.mesh,
            in_specs=(specs, split, split, split, one),
            out_specs=(split, split, one),
            axis_names=set(over),
            check_vma=False,
        ),
    )


def _of_shares(
    model: ClipConfig, specs: Any, fine: FineMesh, rules: AxisRules
) -> tuple[CLIP, Callable[[Any], Any]]:
    """The model, whose blocks fetch their parameters, and what makes all the others whole."""
    whole = partial(_whole, model=model, fine=fine, axes=rules.params)

    def fetch(tower: str) -> Fetch | None:
        if not rules.params or "stack" not in specs[tower]:
            return None
        blocks = specs[tower]["stack"]["blocks"]
        layer = jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), blocks)
        return Fetch(layer=partial(whole, specs=layer), again=rules.regather)

    def outside(params: Any) -> Any:
        return whole(params, {name: specs[name] for name in params}, but="/blocks/")

    return CLIP(model, fetch("image"), fetch("text"), fine.names(rules.batch)), outside


def _sharded(
    embed: Callable[..., tuple[Any, Any, Any]],
    params: Any,
    images: Any,
    tokens: Any,
    rows: Any = None,
    *,
    rngs: Any,
) -> tuple[Output, Any]:
    """As a `Forward`; `embed` gives the embeddings of a batch split over the mesh, and more."""
    if rows is None:
        rows = jnp.arange(len(jax.tree.leaves(images)[0]))
    image, text, seen = embed(params, images, tokens, rows, rngs)
    return Output(image, text, *_scalars(params)), seen


def _forward(
    module: CLIP,
    whole: Callable[[Any], Any],
    params: Any,
    images: Any,
    tokens: Any,
    rows: Any = None,
    *,
    rngs: Any,
    recipe: Recipe,
    param_dtype: DType,
    frozen: Any,
) -> tuple[Output, Any]:
    """As a `Forward`, of parameters that `whole` makes whole, but for those of blocks.

    Images may be their embeddings ("B D"): then the image tower does not run.
    In the backward pass what the text tower kept is gone before the image tower has its turn.
    """
    scalars = _scalars(params)
    params = rounded(params, param_dtype)

    def encode(tower: str, other: str, values: Any) -> Any:
        mine = whole({name: part for name, part in params.items() if name != other})
        apply = partial(module.apply, rngs=rngs, method=f"encode_{tower}", mutable=[STATISTICS])
        return apply({"params": mine}, values, rows)

    if getattr(images, "ndim", 0) == 2:
        image, seen = unit_norm(images), {}
    else:
        image, seen = encode("image", "text", normalize(images, recipe))
    if frozen is None or not all(jax.tree.leaves(frozen["image"])):
        image, params = _after_text(image, params, frozen)
    text, _ = encode("text", "image", tokens)
    return Output(image, text, *scalars), seen.get(STATISTICS, {})


def _in_parts(
    embed: Callable[..., tuple[Output, Any]],
    accumulate: int,
    params: Any,
    images: Any,
    tokens: Any,
    rows: Any,
    rngs: Any,
) -> tuple[Any, Any, Any]:
    """Embeddings of both kinds; parts of the batch take turns, also in the backward pass.

    The third result is what batch norms saw: of parts nothing, as none of them is the batch.
    """
    if accumulate == 1:
        found, statistics = embed(params, images, tokens, rows, rngs=rngs)
        return found.image, found.text, statistics

    def part(inputs: Any) -> tuple[Any, Any]:
        return embed(params, *inputs, rngs=rngs)[0][:2]

    inputs = jax.tree.map(
        lambda x: x.reshape(accumulate, len(x) // accumulate, *x.shape[1:]), (images, tokens, rows)
    )
    found = jax.lax.map(jax.checkpoint(part, prevent_cse=False), inputs)
    image, text = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), found)
    return image, text, {}


def rounded(params: Any, dtype: DType) -> Any:
    """Parameters whose matrices are in `dtype`; their gradients come back in float32.

    Gains, biases and scalars stay as they are, as do tables, in which the gradients of a
    frequent token add up.
    """

    def one(path: str, leaf: Any) -> Any:
        return leaf.astype(dtype) if path.endswith("kernel") else leaf

    return tree.map_with_path(one, params)


def check_accumulate(batch: int, accumulate: int, rules: AxisRules, mesh: Mesh) -> None:
    """Raises ValueError, naming all three, if devices cannot take a batch in so many parts."""
    parts = batch_parts(rules, mesh)
    if batch % (parts * accumulate):
        raise ValueError(
            f"batch {batch} does not split over {parts} devices ({rules.batch}) into "
            f"accumulate {accumulate} equal parts on each"
        )


def _after_text(image: Any, params: Any, frozen: Any) -> tuple[Any, Any]:
    """Both as they are; images' gradients wait for those of all else that is trained.

    What is frozen, or of the image tower, is not handed through: it would get gradients of zero.
    """
    others = {name: part for name, part in params.items() if name != "image"}
    if frozen is not None:
        still = {name: frozen[name] for name in others}
        others = jax.tree.map(lambda leaf, held: None if held else leaf, others, still)
    image, others = _backward_last(image, others)
    others = jax.tree.map(
        lambda leaf, old: old if leaf is None else leaf,
        others,
        {name: params[name] for name in others},
        is_leaf=lambda leaf: leaf is None,
    )
    return image, {**params, **others}


@jax.custom_vjp
def _backward_last(value: Any, others: Any) -> tuple[Any, Any]:
    """Both as they are; the gradient of `value` goes on only when that of all `others` is there."""
    return value, others


_backward_last.defvjp(
    lambda value, others: ((value, others), None),
    lambda _, gradients: jax.lax.optimization_barrier(gradients),
)


def _scalars(params: Any) -> tuple[Any, Any]:
    """Scale and bias of the logits, as `CLIP.__call__` gives them."""
    return jnp.exp(params["logit_scale"]), params.get("logit_bias")


def _whole(
    params: Any,
    specs: Any,
    *,
    model: ClipConfig,
    fine: FineMesh,
    axes: tuple[str, ...],
    but: str | None = None,
) -> Any:
    """Parameters in whole, but for those whose path holds `but`."""
    dtype = activation_dtype(model.dtype)

    def one(path: str, share: Any, spec: PartitionSpec) -> Any:
        plan = stages(spec, fine, axes)
        if not plan or (but and but in path):
            return share
        if share.dtype == jnp.bfloat16:
            return gather(share, plan, "bfloat16")
        resized = getattr(model.image, "positions", None) == "naflex"
        if resized and path == "image/positions/embedding":
            return gather(share, plan, "float32")
        return gather(share, plan, dtype, exact=not path.endswith("kernel"))

    return tree.map_with_path(one, params, specs)


def _manual(spec: PartitionSpec, over: tuple[str, ...]) -> PartitionSpec:
    """What of a spec concerns the axes `over`."""
    kept = [tuple(name for name in mesh_axes(entry) if name in over) for entry in spec]
    return PartitionSpec(*(names or None for names in kept))
