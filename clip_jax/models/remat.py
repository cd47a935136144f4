"""What a block keeps for its backward pass; all else is computed again there."""

from typing import Any, Literal, get_args

import jax

Kept = Literal["nothing", "attention", "products"]
"""Names of the rows of `KEPT`."""

KEPT: dict[Kept, tuple[str, ...]] = {
    "nothing": (),
    "attention": ("qkv", "mixed"),
    "products": ("qkv", "mixed", "attended", "hidden"),
}
"""Activations, by the names that blocks give them, of which each row keeps more than the last.

In numbers a token: `qkv` 3 W, `mixed` (before the output projection) W, `attended` (after it) W,
`hidden` (before the non-linearity) the MLP's width. Under "products" no projection is computed
twice; the weights of attention, which grow with L, always are.
"""


def policy(kept: Kept, offload: bool) -> Any:
    """For `jax.checkpoint`.

    Args:
      offload: what is kept waits in the host's memory, with the input of each block.

    Raises:
      ValueError: the devices of this process do not reach the host's memory.

    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    if not offload:
        return jax.checkpoint_policies.save_only_these_names(*KEPT[kept])
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if "pinned_host" not in kinds:
        raise ValueError(
            f"offload needs memory of kind 'pinned_host'; {device.device_kind} has {kinds}: "
            f"set offload=False, or a remat that keeps less (of {get_args(Kept)})"
        )
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["input", *KEPT[kept]],
        offload_src="device",
        offload_dst="pinned_host",
    )
