"""What every dimension of every parameter means; `sharding/rules` says where it goes."""

from typing import Any

from clip_jax import tree

Axes = tuple[str | None, ...]

AXES: dict[str, Axes] = {
    "*/tokens/embedding": ("vocab", "width"),
    "*/positions/embedding": ("length", "width"),
    "*/class_embedding": ("width",),
    "*/patch/kernel": ("patch", "width"),
    "*/patch/bias": ("width",),
    "*/attend/qkv/kernel": ("width", None, "heads", "head"),
    "*/attend/qkv/bias": (None, "heads", "head"),
    "*/attend/out/kernel": ("heads", "head", "width"),
    "*/attend/out/bias": ("width",),
    "*/mlp/up/kernel": ("width", "mlp"),
    "*/mlp/up/bias": ("mlp",),
    "*/mlp/down/kernel": ("mlp", "width"),
    "*/mlp/down/bias": ("width",),
    "*/blocks/scale_*": ("width",),
    "*/norm*/scale": ("width",),
    "*/norm*/bias": ("width",),
    "*/pool/probe": (None, "width"),
    "*/pool/query/kernel": ("width", "heads", "head"),
    "*/pool/query/bias": ("heads", "head"),
    "*/pool/key_value/kernel": ("width", None, "heads", "head"),
    "*/pool/key_value/bias": (None, "heads", "head"),
    "*/pool/out/kernel": ("heads", "head", "width"),
    "*/pool/out/bias": ("width",),
    "*/conv?/kernel": (None, None, "patch", "width"),
    "*/shortcut/conv/kernel": (None, None, "patch", "width"),
    "*/norm*/mean": ("width",),
    "*/norm*/var": ("width",),
    "*/attend_pool/query/kernel": ("width", "heads", "head"),
    "*/attend_pool/query/bias": ("heads", "head"),
    "*/attend_pool/key/kernel": ("width", "heads", "head"),
    "*/attend_pool/key/bias": ("heads", "head"),
    "*/attend_pool/value/kernel": ("width", "heads", "head"),
    "*/attend_pool/value/bias": ("heads", "head"),
    "*/attend_pool/out/kernel": ("heads", "head", "embed"),
    "*/attend_pool/out/bias": ("embed",),
    "*/head/kernel": ("width", "embed"),
    "*/head/bias": ("embed",),
    "logit_scale": (),
    "logit_bias": (),
}
"""Logical axes by path pattern, the stacked `layers` axis apart."""


def logical_axes(params: Any) -> Any:
    """Logical axes of every parameter, as a tree like `params` (arrays or shapes) of `Axes`.

    Raises:
      ValueError: lists all parameters that no row of the table explains, or that two explain
        differently, or whose number of dimensions differs from the table's.
    """
    faults: list[str] = []

    def lookup(path: str, leaf: Any) -> Axes:
        stacked: Axes = ("layers",) if "/blocks/" in path else ()
        found = {stacked + axes for pattern, axes in AXES.items() if tree.matches(pattern, path)}
        if len(found) != 1 or len(axes := found.pop()) != len(leaf.shape):
            faults.append(f"{path} {leaf.shape}")
            return ()
        return axes

    axes = tree.map_with_path(lookup, params)
    if faults:
        raise ValueError(f"models/axes has no row for {len(faults)} parameters: {faults}")
    return axes
