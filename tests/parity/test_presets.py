"""Every architecture: as many parameters as the original's, and of the same make."""

import pytest

torch = pytest.importorskip("torch", reason="make parity installs it")

from clip_jax.models.flops import parameters
from clip_jax.models.presets import PRESETS
from clip_jax.models.resnet import ResNetConfig
from tests.parity import peers

NAFLEX = ["ViT-B-16-SigLIP2-NaFlex", "ViT-SO400M-16-SigLIP2-NaFlex"]


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def activation(layer):
    """Our name of the function that a module computes."""
    if type(layer).__name__ == "QuickGELU":
        return "quick_gelu"
    assert isinstance(layer, torch.nn.GELU) or type(layer).__name__ == "GELUTanh"
    tanh = type(layer).__name__ == "GELUTanh" or layer.approximate == "tanh"
    return "gelu_tanh" if tanh else "gelu"


def their_stack(blocks):
    """Width, layers, heads, hidden channels, epsilon and activation of open_clip's or timm's."""
    block = blocks[0]
    timm = hasattr(block, "norm1")
    norm, mlp = (block.norm1, block.mlp) if timm else (block.ln_1, block.mlp)
    up, act = (mlp.fc1, mlp.act) if timm else (mlp.c_fc, mlp.gelu)
    heads = block.attn.num_heads
    return [up.in_features, len(blocks), heads, up.out_features, norm.eps], activation(act)


def our_stack(cfg):
    hidden = cfg.mlp_width or 4 * cfg.width
    return [cfg.width, cfg.layers, cfg.heads, hidden, cfg.norm_eps], cfg.activation


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in NAFLEX])
def test_it_is_what_open_clip_builds(name):
    cfg, siglip = PRESETS[name], "SigLIP" in name
    with torch.device("meta"):
        model = peers.open_clip().create_model(name, load_weights=False, device="meta")
    image, text = model.visual, model.text if hasattr(model, "text") else model
    ours = parameters(cfg)
    assert ours.image == size(image)
    assert ours.model == size(model)

    shape, act = their_stack(text.transformer.resblocks)
    assert our_stack(cfg.text.stack)[0] == shape
    # OpenCLIP computes some of SigLIP with another GELU than its authors.
    assert siglip or cfg.text.stack.activation == act
    assert cfg.text.context_length == model.context_length
    assert cfg.text.causal == (text.attn_mask is not None)
    pool = text.pool_type if siglip else model.text_pool_type
    eos = {"argmax": None, "last": None, "eos": getattr(model, "text_eos_id", None)}[pool]
    assert (cfg.text.pool == "last", cfg.text.eot_id) == (pool == "last", eos)

    if isinstance(cfg.image, ResNetConfig):
        assert cfg.image.image_size == image.image_size
        assert cfg.image.heads == image.attnpool.num_heads
        return
    assert (cfg.image.image_size,) * 2 == tuple(image.image_size)
    if siglip:
        shape, _ = their_stack(image.trunk.blocks)
        assert cfg.image.stack.activation == "gelu_tanh"
        assert model.logit_bias is not None and cfg.bias == -10
    else:
        shape, act = their_stack(image.transformer.resblocks)
        assert cfg.image.stack.activation == act
        assert cfg.image.pre_norm == isinstance(image.ln_pre, torch.nn.LayerNorm)
        assert (cfg.image.pool, cfg.image.norm_after_pool) == (
            ("mean", True) if image.pool_type == "avg" else ("class", False)
        )
        assert image.final_ln_after_pool == cfg.image.norm_after_pool
    assert our_stack(cfg.image.stack)[0] == shape


@pytest.mark.parametrize("name", NAFLEX)
def test_naflex_is_what_transformers_builds(name):
    transformers = peers.transformers()
    cfg = PRESETS[name]
    towers = {}
    for what, tower in (("vision_config", cfg.image), ("text_config", cfg.text)):
        width, layers, heads, hidden, eps = our_stack(tower.stack)[0]
        towers[what] = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": hidden,
        }
        assert eps == 1e-6
    towers["text_config"]["vocab_size"] = cfg.text.vocab_size
    config = transformers.Siglip2Config(**towers)
    assert config.vision_config.num_patches == cfg.image.grid**2
    assert config.text_config.max_position_embeddings == cfg.text.context_length
    with torch.device("meta"):
        model = transformers.Siglip2Model(config)
    ours = parameters(cfg)
    assert (ours.image, ours.text) == (size(model.vision_model), size(model.text_model))
    assert ours.model == size(model)
