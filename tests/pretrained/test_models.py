"""Tiny originals with random weights: what they compute is on disk beside them."""

import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clip_jax
from clip_jax import tree
from clip_jax.models.vit import Patches
from clip_jax.pretrained.rules import WeightsError

FOLDERS = sorted((pathlib.Path(__file__).parents[1] / "golden" / "models").iterdir())
FORMATS = {"OpenAI": "openai", "open": "open_clip", "transformers": "huggingface"}


def format_of(folder):
    return FORMATS[folder.name.split("_")[0]]


def load(folder, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has no tokenizer")
        return clip_jax.load(folder, **options)


def save(clip, folder, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no tokenizer is written")
        return clip_jax.save(clip, folder, **options)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def folder(request):
    return request.param


@pytest.fixture(scope="module")
def clip(folder):
    return load(folder)


@pytest.fixture(scope="module")
def answers(folder):
    with np.load(folder / "answers.golden") as file:
        return dict(file)


def encode(clip, answers):
    images = answers["pixels"]
    if "grid" in answers:
        given = Patches(jnp.asarray(images), jnp.asarray(answers["grid"].astype(np.int32)))
    else:
        given = jnp.asarray(images.transpose(0, 2, 3, 1))

    @jax.jit
    def run(params, images, tokens):
        variables = {"params": params}
        image = clip.model.apply(variables, images, method="encode_image")
        text = clip.model.apply(variables, tokens, method="encode_text")
        logits = jnp.exp(params["logit_scale"]) * image @ text.T
        return image, text, logits + params.get("logit_bias", 0.0)

    return run(clip.params, given, jnp.asarray(answers["tokens"].astype(np.int32)))


def test_embeddings_and_logits_are_those_of_the_original(clip, answers):
    for ours, name in zip(encode(clip, answers), ("image", "text", "logits"), strict=True):
        theirs = answers[name].astype(np.float64)
        norms = np.linalg.norm(theirs, axis=1, keepdims=True)
        assert np.max(np.abs(np.asarray(ours) - theirs) / norms) < 1e-5, name


def test_saved_and_loaded_again_it_is_the_same(folder, clip, tmp_path):
    written = save(clip, tmp_path / "out", format=format_of(folder))
    assert all(path.parent == tmp_path / "out" for path in written)
    again = load(tmp_path / "out")
    assert again.model.cfg == clip.model.cfg and again.preprocess == clip.preprocess
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]  # No draft is left.


def test_it_is_placed_on_a_mesh_in_the_type_asked_for(folder, clip):
    from clip_jax.sharding.mesh import MeshConfig, build_mesh
    from clip_jax.sharding.rules import FSDP

    mesh = build_mesh(MeshConfig(), devices=jax.devices()[:4])
    spread = load(folder, sharding=(mesh, FSDP), dtype="bfloat16")
    assert spread.model.cfg.dtype == "bfloat16"
    for path, ours, whole in zip(
        tree.paths(spread.params),
        jax.tree.leaves(spread.params),
        jax.tree.leaves(clip.params),
        strict=True,
    ):
        exact = path.startswith("logit") or path.endswith(("/mean", "/var"))
        kind = jnp.float32 if exact else jnp.bfloat16
        assert ours.dtype == kind
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(whole.astype(kind)))
    kernel = spread.params["text"]["stack"]["blocks"]["mlp"]["up"]["kernel"]
    assert len(kernel.sharding.device_set) == mesh.size
    assert not kernel.sharding.is_fully_replicated


def test_one_sharding_for_all_replicates(folder, clip):
    mesh = jax.make_mesh((8,), ("x",), (jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    found = load(folder, sharding=everywhere)
    assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(found.params))
    jax.tree.map(np.testing.assert_array_equal, found.params, clip.params)


@pytest.fixture
def copied(tmp_path):
    """`copied(name)`: a golden model that a test may spoil."""

    def copy(name):
        golden = FOLDERS[0].parent / name
        shutil.copytree(golden, tmp_path / "copy", ignore=shutil.ignore_patterns("*.golden"))
        return tmp_path / "copy"

    return copy


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_config_for_another_size_has_positions_resampled(copied):
    folder = copied("open_clip_ViT_GELU")

    def larger(data):
        data["model_cfg"]["vision_cfg"]["image_size"] = 48
        data["model_cfg"]["text_cfg"]["context_length"] = 20

    edit(folder / "open_clip_config.json", larger)
    found = load(folder)
    assert found.model.cfg.image.image_size == found.preprocess.size == 48
    assert found.model.cfg.text.context_length == 20
    assert found.params["image"]["positions"]["embedding"].shape == (1 + 36, 24)
    assert found.params["text"]["positions"]["embedding"].shape == (20, 16)
    asked = load(FOLDERS[0].parent / "open_clip_ViT_GELU", image_size=48, context_length=20)
    assert asked.model.cfg == found.model.cfg
    jax.tree.map(np.testing.assert_array_equal, asked.params, found.params)


def test_weights_without_a_config_are_taken_for_the_preset_of_their_shapes(copied, monkeypatch):
    from clip_jax.pretrained import formats

    whole = load(FOLDERS[0].parent / "open_clip_ViT_GELU")
    folder = copied("open_clip_ViT_GELU")
    (folder / "open_clip_config.json").unlink()
    known = {"tiny": whole.model.cfg, "tiny-quickgelu": whole.model.cfg}
    monkeypatch.setattr(formats, "PRESETS", known)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = clip_jax.load(folder)
    text = str(said[0].message)
    assert "taken for tiny by its shapes, which tiny-quickgelu have too; model=NAME" in text
    assert found.model.cfg == whole.model.cfg  # The number of heads too, which shapes do not tell.
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)


def test_a_file_is_as_good_as_its_folder(folder, clip):
    (file,) = [f for f in folder.iterdir() if f.suffix in (".pt", ".safetensors")]
    found = load(file)
    assert found.model.cfg == clip.model.cfg
    jax.tree.map(np.testing.assert_array_equal, found.params, clip.params)


def test_arrays_of_another_architecture_are_all_listed(copied):
    folder = copied("transformers_SigLIP")

    def wider(data):
        data["text_config"]["vocab_size"] = 99
        data["vision_config"]["num_hidden_layers"] = 3

    edit(folder / "config.json", wider)
    with pytest.raises(WeightsError) as found:
        load(folder)
    text = str(found.value)
    assert "token_embedding.weight: shape (50, 24) in the file, (99, 24) in this model" in text
    assert text.count("vision_model.encoder.layers.2.") >= 16  # All of the missing block.


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        (
            "transformers_SigLIP",
            "config.json",
            lambda d: d.update(model_type="bert"),
            "config.json is of a 'bert' model; supported are clip, metaclip_2, siglip, siglip2",
        ),
        (
            "transformers_SigLIP",
            "config.json",
            lambda d: d["text_config"].update(hidden_act="silu"),
            r"text_config.hidden_act 'silu' \(known: quick_gelu",
        ),
        (
            "open_clip_ViT_GELU",
            "open_clip_config.json",
            lambda d: d["model_cfg"]["vision_cfg"].update(attentional_pool=True, qk_norm=True),
            "clip_jax has not: vision_cfg.attentional_pool True; vision_cfg.qk_norm True",
        ),
        (
            "open_clip_ViT_GELU",
            "open_clip_config.json",
            lambda d: d["model_cfg"]["vision_cfg"].update(timm_model_name="vit_tiny"),
            "timm_model_name 'vit_tiny' .known: vit_base_patch32_siglip_256",
        ),
        (
            "open_clip_ViT_GELU",
            "open_clip_config.json",
            lambda d: d["model_cfg"].pop("embed_dim"),
            "open_clip_config.json: needs the field 'embed_dim'",
        ),
        (
            "open_clip_ViT_GELU",
            "open_clip_config.json",
            lambda d: d.update(clip_jax={"image_activation": "swish"}),
            r"clip_jax.image_activation 'swish' \(known: gelu, gelu_tanh, quick_gelu\)",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_says_why(copied, name, file, change, message):
    folder = copied(name)
    edit(folder / file, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_what_a_format_cannot_express_is_listed_and_leaves_nothing(tmp_path):
    models = FOLDERS[0].parent
    wrong = [
        ("open_clip_CLIPA", "huggingface", "transformers has no image pool 'mean'; no CLIPModel"),
        ("open_clip_ModifiedResNet", "huggingface", "transformers has no ModifiedResNet"),
        ("open_clip_ViT_GELU", "openai", "activation 'gelu'; no heads of 4 channels"),
        ("transformers_CLIP_GELU", "big_vision", "big_vision's SigLIP has no image pool 'class'"),
        ("transformers_SigLIP_2_NaFlex", "open_clip", "no positions 'naflex'|no timm model"),
        ("transformers_SigLIP", "open_clip", "no timm model for an image tower with attention"),
    ]
    for name, format, message in wrong:
        with pytest.raises(ValueError, match=message):
            save(load(models / name), tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path):
    clip = load(FOLDERS[0].parent / "open_clip_ViT_GELU")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: choose another"):
        save(clip, tmp_path, format="open_clip")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_save_that_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    from clip_jax.pretrained import save as room

    clip = load(FOLDERS[0].parent / "open_clip_ViT_GELU")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save(clip, tmp_path / "out", format="open_clip")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(FileNotFoundError, match=r"'ViT-B-32/opnai' is no folder.*nearest 'openai'"):
        clip_jax.load("ViT-B-32/opnai")
    with pytest.raises(FileNotFoundError, match=r"\./nowhere does not exist"):
        clip_jax.load("./nowhere")


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no weights; looked for open_clip_model"):
        clip_jax.load(tmp_path)


def test_big_vision_there_and_back(tmp_path):
    clip = load(FOLDERS[0].parent / "transformers_SigLIP")
    naflex = load(FOLDERS[0].parent / "transformers_SigLIP_2_NaFlex")
    for name, model in (("fixed", clip), ("naflex", naflex)):
        save(model, tmp_path / name, format="big_vision")
        again = load(tmp_path / name)
        assert again.model.cfg == model.model.cfg
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_big_vision_files_with_scanned_blocks_are_the_same_model(tmp_path):
    clip = load(FOLDERS[0].parent / "transformers_SigLIP")
    save(clip, tmp_path / "plain", format="big_vision")
    with np.load(tmp_path / "plain" / "model.npz") as file:
        arrays = dict(file)
    scanned = {name: a for name, a in arrays.items() if "encoderblock_" not in name}
    for name in arrays:
        if "encoderblock_0/" in name:
            both = [arrays[name.replace("block_0/", f"block_{i}/")] for i in range(2)]
            scanned[name.replace("block_0/", "block/")] = np.stack(both)
    (tmp_path / "scan").mkdir()
    plain = {name.removeprefix("params/"): array for name, array in scanned.items()}
    np.savez(tmp_path / "scan" / "x.npz", **plain)
    again = load(tmp_path / "scan" / "x.npz")
    assert again.model.cfg == clip.model.cfg
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)


def test_another_formats_config_beside_a_file_changes_nothing(copied):
    folder = copied("OpenAI_ViT")
    alone = load(folder / "model.pt")
    other = {"model_cfg": {}, "preprocess_cfg": {"resize_mode": "squash", "mean": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(other))
    (folder / "config.json").write_text("not JSON at all")
    beside = load(folder / "model.pt")
    assert beside.preprocess == alone.preprocess and beside.model.cfg == alone.model.cfg


def test_the_end_token_2_survives_transformers(copied, tmp_path):
    """CLIPModel reads 2 as "the highest id"; its heir MetaClip2Model does not."""
    folder = copied("open_clip_ViT_GELU")

    def with_end(data):
        data["model_cfg"]["text_cfg"] |= {"pool_type": "eos", "eos_id": 2}

    edit(folder / "open_clip_config.json", with_end)
    clip = load(folder)
    save(clip, tmp_path / "out", format="huggingface")
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert data["model_type"] == "metaclip_2" and data["text_config"]["eos_token_id"] == 2
    assert load(tmp_path / "out").model.cfg == clip.model.cfg
    assert clip.model.cfg.text.eot_id == 2


def test_of_a_tower_told_twice_the_later_wins_and_nulls_count_for_nothing(copied):
    """Old files hold `text_config_dict` too, which transformers lets win."""
    folder = copied("transformers_CLIP_GELU")
    clip = load(folder)

    def twice(data):
        data["text_config_dict"] = dict(data["text_config"])
        data["text_config"] = {"hidden_size": 512, "hidden_act": "quick_gelu"}
        data["vision_config"]["image_size"] = [32, 32]
        data["vision_config"]["hidden_act"] = "gelu"
        data |= {"logit_scale_init_value": None, "vision_config_dict": None}

    edit(folder / "config.json", twice)
    assert load(folder).model.cfg == clip.model.cfg
    edit(folder / "config.json", lambda d: d["text_config_dict"].update(eos_token_id=[2, 7]))
    with pytest.raises(ValueError, match=r"config.json: .*text_config.eos_token_id \[2, 7\]"):
        load(folder)


def test_so400m_at_384_keeps_the_pixels_that_its_patches_leave_out():
    from clip_jax.pretrained import big_vision
    from clip_jax.pretrained.arrays import StoredArray

    def array(*shape):
        return StoredArray(shape, np.dtype(np.float32), lambda: np.zeros(shape, np.float32))

    block = "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    text = block.replace("Transformer", "Encoder_0")
    found = {
        "img/embedding/kernel": array(14, 14, 3, 1152),
        "img/pos_embedding": array(1, 729, 1152),
        "img/MAPHead_0/probe": array(1, 1, 1152),
        f"img/{block}": array(27, 1152, 16, 72),
        "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": array(27, 1152, 4304),
        "txt/Embed_0/embedding": array(32000, 1152),
        "txt/pos_embedding": array(1, 64, 1152),
        f"txt/{text}": array(27, 1152, 16, 72),
        "txt/Encoder_0/encoderblock/MlpBlock_0/Dense_0/kernel": array(27, 1152, 4304),
        "t": array(1),
        "b": array(1),
    }
    image = big_vision.infer(found).image
    assert (image.image_size, image.trim, image.grid) == (384, True, 27)


def test_a_bias_is_there_when_the_weights_have_one(copied):
    from safetensors.numpy import load_file, save_file

    folder = copied("open_clip_ViT_GELU")
    edit(folder / "open_clip_config.json", lambda d: d["model_cfg"].update(init_logit_bias=-10))
    assert load(folder).model.cfg.bias is None
    file = folder / "open_clip_model.safetensors"
    save_file({**load_file(file), "logit_bias": np.float32([-3])}, file)
    edit(folder / "open_clip_config.json", lambda d: d["model_cfg"].pop("init_logit_bias"))
    assert float(load(folder).params["logit_bias"]) == -3


def test_weights_in_torch_shards_are_one_model(copied):
    from safetensors.numpy import load_file

    from clip_jax.pretrained.arrays import write_torch

    folder = copied("transformers_CLIP_GELU")
    clip = load(folder)
    arrays = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(arrays)
    weight_map = {}
    for number, part in enumerate((names[:20], names[20:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        write_torch(folder / file, {name: arrays[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    again = load(folder)
    assert again.model.cfg == clip.model.cfg
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)


def test_a_trained_temperature_is_not_rounded_with_the_rest(folder, clip):
    small = load(folder, dtype="bfloat16")
    assert small.scale == clip.scale


def test_folders_of_other_trainers_are_no_runs(copied):
    folder = copied("open_clip_ViT_GELU")
    (folder / "checkpoints").mkdir()
    (folder / "params").write_text("epochs: 3")
    assert load(folder).model.cfg.embed_dim == 24


def test_big_vision_keeps_another_recipe(tmp_path):
    clip = load(FOLDERS[0].parent / "transformers_SigLIP")
    assert clip.preprocess.interpolation == "bicubic"
    save(clip, tmp_path / "out", format="big_vision")
    assert load(tmp_path / "out").preprocess == clip.preprocess
    (tmp_path / "out" / "preprocessor_config.json").unlink()
    assert load(tmp_path / "out").preprocess.interpolation == "bilinear_plain"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name of a model is empty"),
        ("https://there.org/x.npz", "copy the weights to a local folder"),
        ("openai/clip-vit-base-patch32", "hf-hub:openai/clip-vit-base-patch32 would be"),
    ],
)
def test_a_name_that_cannot_be_loaded_says_what_to_do(name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        clip_jax.load(name)


def test_sizes_that_are_no_sizes_are_refused():
    for size in ({"image_size": 0}, {"context_length": 0}):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            load(FOLDERS[0].parent / "open_clip_ViT_GELU", **size)
    with pytest.raises(ValueError, match="takes images of any size already"):
        load(FOLDERS[0].parent / "transformers_SigLIP_2_NaFlex", image_size=64)


def test_renamed_blocks_are_reported_in_time_with_their_nearest_names(copied):
    from safetensors.numpy import load_file, save_file

    folder = copied("open_clip_ViT_GELU")
    file = folder / "open_clip_model.safetensors"
    arrays = load_file(file)
    save_file({name.replace("resblocks", "blocks"): a for name, a in arrays.items()}, file)
    with pytest.raises(WeightsError) as found:
        load(folder)
    line = "visual.transformer.resblocks.0.ln_1.weight: missing"
    (told,) = [text for text in str(found.value).splitlines() if line in text]
    assert "(nearest: visual.transformer.blocks.0.ln_1.weight)" in told


def test_pictures_of_any_proportions_go_through_naflex_together_and_alone():
    from PIL import Image

    clip = load(FOLDERS[0].parent / "transformers_SigLIP_2_NaFlex", batch=3)
    assert clip.preprocess.patch_size == 4
    rng = np.random.default_rng(0)
    sizes = ((16, 60), (33, 20), (7, 7), (90, 11))
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
    together = clip.encode_image(pictures)
    assert together.shape == (4, clip.model.cfg.embed_dim)
    alone = np.concatenate([clip.encode_image([picture]) for picture in pictures])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert len({tuple(clip.preprocess(picture).grid) for picture in pictures}) == 4
