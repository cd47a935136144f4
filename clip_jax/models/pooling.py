"""From one vector per token to one vector per image, by attention."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from clip_jax.models.attention import Dense, attend, heads_first
from clip_jax.models.transformer import Mlp, StackConfig, layer_norm


class MapPool(nn.Module):
    """Multi-head attention pooling (MAP): one learned query looks at all tokens.

    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.2; as used by SigLIP.
    """

    cfg: StackConfig
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L W"], mask: Bool[Array, "B 1 1 L"] | None = None
    ) -> Float[Array, "B W"]:
        """`mask` is True for tokens that count; None: all."""
        cfg, width = self.cfg, x.shape[-1]
        xavier = nn.initializers.xavier_uniform()
        per_head = (cfg.heads, width // cfg.heads)
        in_init = nn.initializers.normal(width**-0.5)
        probe = self.param("probe", xavier, (1, width), jnp.float32)
        query = Dense(per_head, self.dtype, kernel_init=in_init, name="query")(probe)
        query = jnp.broadcast_to(query[None, 0, :, None], (len(x), cfg.heads, 1, per_head[1]))
        kv = Dense((2, *per_head), self.dtype, kernel_init=in_init, name="key_value")(x)
        key, value = heads_first(kv)
        mixed = attend(query, key, value, mask)[:, :, 0]
        pooled = Dense(width, self.dtype, inputs=2, kernel_init=in_init, name="out")(mixed)
        hidden = cfg.mlp_width or 4 * width
        mlp = Mlp(hidden, cfg.activation, self.dtype, width**-0.5, name="mlp")
        return pooled + mlp(layer_norm(cfg.norm_eps, self.dtype, "norm")(pooled))
