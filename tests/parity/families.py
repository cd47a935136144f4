"""Original models with random weights, saved as their own libraries save them."""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Callable

import numpy as np
import torch

from tests.parity import peers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Original:
    """A model of another library, ready to be compared."""

    model: torch.nn.Module
    save: Callable[[pathlib.Path], None]
    """Writes what `clip_jax.load` is to read."""
    encode: Callable
    """(images or patches, tokens) -> image embeddings, text embeddings, logits per image."""
    images: tuple
    """Inputs of the image tower: NCHW pixels, or (patches, mask, grid)."""
    tokens: torch.Tensor


def randomise(model, seed=0):
    """Weights of ordinary size everywhere, so that no layer is nearly the identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape):
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("logit_scale"):
                p.fill_(2.5)
            elif name.endswith("logit_bias"):
                p.fill_(-3.0)
            elif p.ndim >= 2 and "embedding" in name:
                p.copy_(0.5 * normal(p.shape))
            elif p.ndim >= 2:
                fan_in = p.shape[0] if name.endswith(("proj", "projection")) else p[0].numel()
                p.copy_(normal(p.shape) * fan_in**-0.5)
            else:
                one = 1.0 if name.endswith("weight") else 0.0
                p.copy_(one + 0.2 * normal(p.shape))
        for name, b in model.named_buffers():
            if name.endswith("running_mean"):
                b.copy_(0.2 * normal(b.shape))
            if name.endswith("running_var"):
                b.copy_(0.5 + torch.rand(b.shape, generator=generator))
    return model.float().eval()


def pixels(size, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((batch, 3, size, size), generator=generator),)


def clip_tokens(length, vocab, batch=4, seed=2):
    """Rows that end with the highest id, and zeros after it."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, vocab - 2, (batch, length))
    for row, end in enumerate(rng.integers(2, length, batch)):
        tokens[row, end] = vocab - 1
        tokens[row, end + 1 :] = 0
    tokens[-1, -1] = vocab - 1  # One that fills the context.
    tokens[-1, :-1] = np.minimum(tokens[-1, :-1], vocab - 2)
    return torch.from_numpy(tokens)


def any_tokens(length, vocab, batch=4, seed=3):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, vocab, (batch, length)))


def openai_vit(factor, *, image_size=32, vocab=80):
    width = 64 * factor
    towers = (image_size, factor, width, 8), (20, vocab, 64, 1, factor)
    model = peers.openai().model.CLIP(24, *towers[0], *towers[1])
    return _openai(randomise(model), image_size, vocab)


def openai_resnet(factor, *, image_size=64, vocab=80):
    blocks, width = (2, 1, factor, 1), 2 * factor
    towers = (image_size, blocks, width, None), (20, vocab, 64, 1, factor)
    model = peers.openai().model.CLIP(24, *towers[0], *towers[1])
    return _openai(randomise(model), image_size, vocab)


def _openai(model, image_size, vocab):
    def save(folder):
        # As published: half precision but for norms and embeddings, in a TorchScript archive.
        peers.openai().model.convert_weights(model)
        model.register_buffer("input_resolution", torch.tensor(image_size))  # As theirs have.
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch no longer likes its own tracing.
            traced = torch.jit.trace_module(
                model,
                {"encode_image": torch.zeros(1, 3, image_size, image_size, dtype=torch.half)},
                check_trace=False,
            )
            traced.save(folder / "model.pt")
        del model.input_resolution
        model.float()  # The same numbers as in the file.

    def encode(images, tokens):
        image, text = model.encode_image(images), model.encode_text(tokens)
        image, text = (x / x.norm(dim=-1, keepdim=True) for x in (image, text))
        return image, text, model.logit_scale.exp() * image @ text.T

    tokens = clip_tokens(20, vocab)
    return Original(model=model, save=save, encode=encode, images=pixels(image_size), tokens=tokens)


def open_clip_configs(factor):
    """A `model_cfg` for each of its own kinds of tower."""
    vit = {"image_size": 32, "layers": 1 + factor, "width": 24 * factor, "head_width": 8 * factor}
    vit["patch_size"] = 8
    words = {"context_length": 16, "vocab_size": 60, "width": 16 * factor, "heads": 4, "layers": 2}
    resnet = {"image_size": 64, "layers": [1, factor, 1, 1], "width": 2 * factor}
    odd = {"ls_init_value": 0.1, "mlp_ratio": 3.7362, "norm_kwargs": {"eps": 1e-6}}
    tanh = {"pool_type": "eos", "eos_id": 7, "act_kwargs": {"approximate": "tanh"}}
    clipa = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
    towers = {
        "ViT, GELU": (vit, words, {}),
        "ViT, QuickGELU": (vit, words, {"quick_gelu": True}),
        "ViT, LayerScale, tanh GELU": ({**vit, **odd}, {**words, **tanh}, {}),
        "ModifiedResNet": ({**resnet, "patch_size": None}, words, {}),
        "CLIPA": ({**vit, **clipa}, {**words, "pool_type": "last", "no_causal_mask": True}, {}),
        "mean of normed tokens, biases": (
            {**vit, "pool_type": "avg"},
            {**words, "proj_bias": True},
            {"init_logit_bias": -10},
        ),
    }
    return {
        name: {"embed_dim": 24, "vision_cfg": image, "text_cfg": text, **more}
        for name, (image, text, more) in towers.items()
    }


SIGLIP_TEXT = {
    **{"context_length": 16, "vocab_size": 60, "width": 768, "heads": 12, "layers": 1},
    **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    "norm_kwargs": {"eps": 1e-6},
}
SIGLIP = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        **{"image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224"},
        **{"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"},
    },
    "text_cfg": SIGLIP_TEXT,
}
"""open_clip knows this image tower in its full size only."""


def open_clip(config, *, preprocess=None, seed=0):
    """A model of open_clip, as its hub folders are: a config and safetensors."""
    library = peers.open_clip()
    fields = {key: value for key, value in config.items() if key != "custom_text"}
    kind = library.CustomTextCLIP if config.get("custom_text") else library.CLIP
    model = randomise(kind(**fields), seed)
    words, size = config["text_cfg"], config["vision_cfg"]["image_size"]

    def save(folder):
        from safetensors.torch import save_file

        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        data = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
        (folder / "open_clip_config.json").write_text(json.dumps(data))

    def encode(images, tokens):
        image = model.encode_image(images, normalize=True)
        text = model.encode_text(tokens, normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
        return image, text, logits if model.logit_bias is None else logits + model.logit_bias

    tokens = clip_tokens(words["context_length"], words["vocab_size"])
    if words.get("pool_type") == "eos":
        tokens[:, 5] = words["eos_id"]
    if words.get("no_causal_mask"):
        tokens = any_tokens(words["context_length"], words["vocab_size"])
    return Original(model=model, save=save, encode=encode, images=pixels(size), tokens=tokens)


def _towers(factor):
    """Fields that transformers' image and text towers share, and the text tower's others."""
    tower = {"hidden_size": 24 * factor, "intermediate_size": 40 * factor}
    tower |= {"num_attention_heads": 3, "num_hidden_layers": 1 + factor}
    return tower, {**tower, "vocab_size": 50, "max_position_embeddings": 12}


def huggingface_clip(factor, *, activation="quick_gelu", eos=2):
    transformers = peers.transformers()
    tower, words = _towers(factor)
    words |= {"hidden_size": 12 * factor, "eos_token_id": eos, "bos_token_id": 1}
    config = transformers.CLIPConfig(
        text_config={**words, "hidden_act": activation},
        vision_config={**tower, "image_size": 32, "patch_size": 8, "hidden_act": activation},
        projection_dim=24,
    )
    tokens = clip_tokens(12, 50)
    if eos != 2:
        tokens[:, 4] = eos
    return _huggingface(transformers.CLIPModel(config), pixels(32), tokens)


def huggingface_siglip(factor):
    transformers = peers.transformers()
    tower, words = _towers(factor)
    config = transformers.SiglipConfig(
        text_config=words, vision_config={**tower, "image_size": 32, "patch_size": 8}
    )
    return _huggingface(transformers.SiglipModel(config), pixels(32), any_tokens(12, 50))


def huggingface_naflex(factor, *, grids=((3, 5), (4, 4), (7, 2)), length=20):
    """Pictures of different proportions in one batch, with rubbish in the padding."""
    transformers = peers.transformers()
    tower, words = _towers(factor)
    config = transformers.Siglip2Config(
        text_config=words, vision_config={**tower, "num_patches": 16, "patch_size": 4}
    )
    generator = torch.Generator().manual_seed(5)
    patches = torch.randn((len(grids), length, 48), generator=generator)
    mask = torch.zeros((len(grids), length), dtype=torch.long)
    for row, (height, width) in enumerate(grids):
        mask[row, : height * width] = 1
    images = (patches, mask, torch.tensor(grids))
    return _huggingface(transformers.Siglip2Model(config), images, any_tokens(12, 50, batch=3))


def _huggingface(model, images, tokens):
    model = randomise(model)

    def encode(*given):
        *image, tokens = given
        names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
        found = model(input_ids=tokens, **dict(zip(names, image, strict=False)))
        return found.image_embeds, found.text_embeds, found.logits_per_image

    def save(folder):
        model.save_pretrained(folder)

    return Original(model=model, save=save, encode=encode, images=images, tokens=tokens)


FAMILIES = {
    "OpenAI ViT": openai_vit,
    "OpenAI ModifiedResNet": openai_resnet,
    **{
        f"open_clip {name}": (lambda factor, name=name: open_clip(open_clip_configs(factor)[name]))
        for name in open_clip_configs(1)
    },
    "transformers CLIP, QuickGELU": huggingface_clip,
    "transformers CLIP, GELU": lambda factor: huggingface_clip(factor, activation="gelu", eos=40),
    "transformers SigLIP": huggingface_siglip,
    "transformers SigLIP 2 NaFlex": huggingface_naflex,
}
"""Called with a factor: 1 is as small as can be, for files to keep; 3 has several of everything."""
