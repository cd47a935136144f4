"""One table per foreign format, read in both directions.

A rule says under which names and in which layout a format keeps what we keep under one path. A
layout is an einops pattern, whose inverse is the same pattern backwards.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import tree
from clip_jax.pretrained.arrays import StoredArray

LAYER = "{i}"
"""In a foreign name: the number of the block; our array then has a leading axis of blocks."""


class WeightsError(ValueError):
    """Stored arrays are not those of the model; the message lists all that differ."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Some foreign arrays and the parameters that hold the same numbers."""

    theirs: tuple[str, ...]
    """Foreign names; with `LAYER`, as many arrays as there are blocks."""
    ours: tuple[str, ...]
    """Our paths."""
    read: Callable[[Sequence[Any]], Sequence[Any]]
    """From the foreign arrays (of one block) to ours."""
    write: Callable[[Sequence[Any]], Sequence[Any]]
    """Its inverse."""

    @property
    def stacked(self) -> bool:
        """Whether it stands for as many rules as there are blocks."""
        return LAYER in self.theirs[0]


def rule(theirs: str | tuple[str, ...], pattern: str, ours: str, **sizes: int) -> Rule:
    """The rule of one einops pattern from their layout to ours.

    Args:
      theirs: a name, or several whose arrays stand side by side on the pattern's first axis.
      pattern: "their axes -> our axes".
      ours: path of the parameter.
      sizes: of axes that one side has fused.
    """
    names = (theirs,) if isinstance(theirs, str) else theirs
    left, right = (side.strip() for side in pattern.split("->"))
    one = isinstance(theirs, str)

    def read(arrays: Sequence[Any]) -> Sequence[Any]:
        return (einops.rearrange(arrays[0] if one else list(arrays), pattern, **sizes),)

    def write(arrays: Sequence[Any]) -> Sequence[Any]:
        back = einops.rearrange(arrays[0], f"{right} -> {left}", **sizes)
        return (back,) if one else tuple(back[k] for k in range(len(names)))

    return Rule(theirs=names, ours=(ours,), read=read, write=write)


def fused_pool(theirs: str, ours: str, heads: int) -> list[Rule]:
    """Attention pooling whose query, key and value PyTorch keeps as one matrix (3 W, W)."""

    def read_kernel(arrays: Sequence[Any]) -> Sequence[Any]:
        qkv = einops.rearrange(arrays[0], "(s n h) w -> w s n h", s=3, n=heads)
        return qkv[:, 0], qkv[:, 1:]

    def write_kernel(arrays: Sequence[Any]) -> Sequence[Any]:
        query, key_value = arrays
        parts = [query, key_value[:, 0], key_value[:, 1]]
        return (einops.rearrange(parts, "s w n h -> (s n h) w"),)

    def read_bias(arrays: Sequence[Any]) -> Sequence[Any]:
        qkv = einops.rearrange(arrays[0], "(s n h) -> s n h", s=3, n=heads)
        return qkv[0], qkv[1:]

    def write_bias(arrays: Sequence[Any]) -> Sequence[Any]:
        query, key_value = arrays
        return (einops.rearrange([query, key_value[0], key_value[1]], "s n h -> (s n h)"),)

    return [
        Rule(
            theirs=(f"{theirs}.in_proj_{what}",),
            ours=(f"{ours}/query/{leaf}", f"{ours}/key_value/{leaf}"),
            read=reader,
            write=writer,
        )
        for what, leaf, reader, writer in (
            ("weight", "kernel", read_kernel, write_kernel),
            ("bias", "bias", read_bias, write_bias),
        )
    ]


def norm(theirs: str, ours: str) -> list[Rule]:
    """Scale and bias of a LayerNorm, which PyTorch calls weight and bias."""
    return [
        rule(f"{theirs}.weight", "w -> w", f"{ours}/scale"),
        rule(f"{theirs}.bias", "w -> w", f"{ours}/bias"),
    ]


def linear(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """A dense layer, which PyTorch keeps as (out, in)."""
    kernel = rule(f"{theirs}.weight", "o i -> i o", f"{ours}/kernel")
    return [kernel, rule(f"{theirs}.bias", "o -> o", f"{ours}/bias")] if bias else [kernel]


def projection(theirs: str, ours: str, heads: int) -> list[Rule]:
    """A dense layer from the width to heads."""
    return [
        rule(f"{theirs}.weight", "(n h) w -> w n h", f"{ours}/kernel", n=heads),
        rule(f"{theirs}.bias", "(n h) -> n h", f"{ours}/bias", n=heads),
    ]


def output(theirs: str, ours: str, heads: int) -> list[Rule]:
    """A dense layer from heads to the width."""
    return [
        rule(f"{theirs}.weight", "w (n h) -> n h w", f"{ours}/kernel", n=heads),
        rule(f"{theirs}.bias", "w -> w", f"{ours}/bias"),
    ]


def expected(rules: Sequence[Rule], shapes: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array that the format keeps of a model.

    Args:
      shapes: the model's parameters, or their shapes.

    Raises:
      WeightsError: the table does not explain every parameter exactly once.
    """
    ours = _by_path(shapes)
    explained = [path for one in rules for path in one.ours]
    faults = [f"{path}: no rule" for path in ours if path not in explained]
    faults += [f"{path}: not in this model" for path in explained if path not in ours]
    faults += [f"{path}: two rules" for path in set(explained) if explained.count(path) > 1]
    if faults:
        raise WeightsError("the table does not fit the model: " + "; ".join(sorted(faults)))
    found: dict[str, tuple[int, ...]] = {}
    for one in rules:
        leaves = [jax.ShapeDtypeStruct(ours[path].shape, np.float32) for path in one.ours]
        if one.stacked:
            layers = leaves[0].shape[0]
            leaves = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        theirs = [leaf.shape for leaf in jax.eval_shape(one.write, leaves)]
        for number in range(layers) if one.stacked else [None]:
            found |= zip(names(one, number), theirs, strict=True)
    return found


def names(one: Rule, number: int | None) -> list[str]:
    """The foreign names of a rule, of block `number` if it stands for many."""
    return [name.replace(LAYER, str(number)) for name in one.theirs]


def require_same(
    stored: Mapping[str, StoredArray], wanted: Mapping[str, tuple[int, ...]], file: str
) -> None:
    """Check names and shapes before anything is read.

    Raises:
      WeightsError: lists all arrays that are missing, unexpected (each with the nearest name), or
        of another shape (with both).
    """
    faults = [
        f"{name}: shape {stored[name].shape} in the file, {shape} in this model"
        for name, shape in wanted.items()
        if name in stored and not _fits(stored[name].shape, shape)
    ]
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    faults += [f"{name}: missing{_near(name, unexpected or list(stored))}" for name in missing]
    faults += [f"{name}: unexpected{_near(name, missing or list(wanted))}" for name in unexpected]
    if faults:
        raise WeightsError("\n  ".join([f"{file} holds another architecture:", *faults]))


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Scalars are kept with shape () by some versions of a library and with (1,) by others."""
    return stored == wanted or (wanted in ((), (1,)) and stored in ((), (1,)))


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest name, sought only among those of as many parts or with the same end: difflib
    takes a millisecond a pair, and a large model has a thousand names.
    """
    parts = re.split(r"[./]", name)
    alike = [k for k in known if re.split(r"[./]", k)[-2:] == parts[-2:]]
    alike = alike or [k for k in known if len(re.split(r"[./]", k)) == len(parts)][:200]
    near = difflib.get_close_matches(name, alike[:200], n=1, cutoff=0.6)
    return f" (nearest: {near[0]})" if near else ""


def read(
    rules: Sequence[Rule],
    stored: Mapping[str, StoredArray],
    shapes: Any,
    place: Callable[[str, np.ndarray], Any],
    file: str,
) -> Any:
    """A tree like `shapes`, filled from foreign arrays; in host memory one parameter at a time.

    Args:
      shapes: abstract parameters; arrays are converted to their types.
      place: called with each parameter's path and array; what it returns is in the tree.
      file: for messages.

    Raises:
      WeightsError: as `require_same`; an array of another kind than floating point.
    """
    wanted = expected(rules, shapes)
    require_same(stored, wanted, file)
    odd = [n for n in wanted if not jnp.issubdtype(stored[n].dtype, jnp.floating)]
    if odd:
        listed = "; ".join(f"{name}: {stored[name].dtype}" for name in odd)
        raise WeightsError(f"{file} holds arrays that are no floating-point numbers: {listed}")
    ours = _by_path(shapes)

    def load(name: str) -> np.ndarray:
        return stored[name].read().reshape(wanted[name])

    filled: dict[str, Any] = {}
    for one in rules:
        made = [np.empty(ours[path].shape, ours[path].dtype) for path in one.ours]
        for number in range(len(made[0])) if one.stacked else [None]:
            found = one.read([load(name) for name in names(one, number)])
            for target, array in zip(made, found, strict=True):
                target[... if number is None else number] = array
        filled |= {path: place(path, a) for path, a in zip(one.ours, made, strict=True)}
    return tree.map_with_path(lambda path, _: filled[path], shapes)


def write(rules: Sequence[Rule], params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Name and array of all that the format keeps of these parameters, contiguous.

    Raises:
      WeightsError: the table does not explain every parameter exactly once.
    """
    expected(rules, params)
    ours = _by_path(params)
    for one in rules:
        arrays = [np.asarray(ours[path]) for path in one.ours]
        for number in range(len(arrays[0])) if one.stacked else [None]:
            part = arrays if number is None else [array[number] for array in arrays]
            for name, array in zip(names(one, number), one.write(part), strict=True):
                yield name, np.ascontiguousarray(array).reshape(array.shape)


def layers(stored: Mapping[str, Any], pattern: str) -> int:
    """How many blocks there are: one more than the highest number where `pattern` has `LAYER`."""
    found = re.compile(re.escape(pattern).replace(re.escape(LAYER), r"(\d+)"))
    return 1 + max((int(m[1]) for name in stored if (m := found.fullmatch(name))), default=-1)


def _by_path(shapes: Any) -> dict[str, Any]:
    return dict(zip(tree.paths(shapes), jax.tree.leaves(shapes), strict=True))
