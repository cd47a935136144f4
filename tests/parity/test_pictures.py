"""From a picture and a text to embeddings, as a user of either library would do it."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="make parity installs it")

import clip_jax
from clip_jax.tokenizers import sentencepiece
from tests.parity import families, peers

SIZES = ((61, 47), (40, 90), (32, 32))
TEXTS = ["a red fox", "", "two dogs, one hat & a very very long tale that goes on and on and on"]


@pytest.fixture(scope="module")
def pictures():
    """Smooth ones: photographs, not noise, whose resizing is well conditioned."""
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (5, 7, 3), np.uint8) for _ in SIZES]
    pairs = zip(small, SIZES, strict=True)
    return [
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC) for pixels, size in pairs
    ]


def assert_same(ours, theirs):
    theirs = theirs.detach().numpy()
    norms = np.linalg.norm(theirs, axis=1, keepdims=True)
    assert np.max(np.abs(ours - theirs / norms)) < 1e-5


@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clip(resize_mode, interpolation, pictures, tmp_path):
    library = peers.open_clip()
    config = families.open_clip_configs(1)["ViT, QuickGELU"]
    config["text_cfg"] |= {"vocab_size": 49408, "context_length": 12}
    cfg = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    cfg |= {"interpolation": interpolation, "resize_mode": resize_mode, "fill_color": 7}
    families.open_clip(config, preprocess=cfg).save(tmp_path)
    place = f"local-dir:{tmp_path}"
    model, _, transform = library.create_model_and_transforms(place)
    tokens = library.get_tokenizer(place)(TEXTS)
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([transform(p) for p in pictures]))
        text = model.encode_text(tokens)
    clip = clip_jax.load(tmp_path, batch=2)
    np.testing.assert_array_equal(clip.tokenizer(TEXTS), tokens.numpy())
    assert_same(clip.encode_image(pictures), image)
    assert_same(clip.encode_text(TEXTS), text)

    clip_jax.save(clip, tmp_path / "back", format="open_clip")
    back, _, transform = library.create_model_and_transforms(f"local-dir:{tmp_path / 'back'}")
    again = library.get_tokenizer(f"local-dir:{tmp_path / 'back'}")
    with torch.no_grad():
        same = back.eval().encode_image(torch.stack([transform(p) for p in pictures]))
    torch.testing.assert_close(same, image, rtol=0, atol=0)
    np.testing.assert_array_equal(again(TEXTS).numpy(), tokens.numpy())


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A SentencePiece model under the name that transformers gives SigLIP's."""
    folder = tmp_path_factory.mktemp("vocabulary")
    words = ["a red fox and two dogs", "one hat", "a very long tale that goes on", "the fox"]
    sentencepiece.train(words * 5, folder / "spiece.model", vocab_size=27)
    return folder / "spiece.model"


@pytest.mark.parametrize("kind", ["siglip", "naflex"])
def test_transformers(kind, pictures, vocabulary, tmp_path):
    transformers = peers.transformers()
    if kind == "siglip":
        original = families.huggingface_siglip(1)
        processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    else:
        original = families.huggingface_naflex(1)
        processor = transformers.Siglip2ImageProcessorPil(patch_size=4, max_num_patches=24)
    original.save(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "spiece.model").write_bytes(vocabulary.read_bytes())
    clip = clip_jax.load(tmp_path, batch=2)
    given = processor(images=pictures, return_tensors="pt")
    tokens = torch.from_numpy(np.tile(clip.tokenizer(TEXTS), (1, 1)).astype(np.int64))
    with torch.no_grad():
        found = original.model(input_ids=tokens, **given)
    assert_same(clip.encode_image(pictures), found.image_embeds)
    assert_same(clip.encode_text(TEXTS), found.text_embeds)

    clip_jax.save(clip, tmp_path / "back", format="huggingface")
    saved = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"].startswith("Siglip")
    again = type(processor).from_pretrained(tmp_path / "back")
    for name, array in again(images=pictures, return_tensors="pt").items():
        torch.testing.assert_close(array, given[name], rtol=0, atol=0)


def test_transformers_clip(pictures, tmp_path):
    transformers = peers.transformers()
    original = families.huggingface_clip(1)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    original.save(tmp_path)
    processor.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        clip = clip_jax.load(tmp_path, batch=2)
    given = processor(images=pictures, return_tensors="pt")
    with torch.no_grad():
        found = original.model(input_ids=original.tokens[:3], **given)
    assert_same(clip.encode_image(pictures), found.image_embeds)
