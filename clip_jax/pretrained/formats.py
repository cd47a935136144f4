"""Which format a file or folder holds, and what model is in it: recognised from content."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from clip_jax import tree
from clip_jax.config import read_json
from clip_jax.models.clip import ClipConfig
from clip_jax.models.presets import PRESETS, preset
from clip_jax.models.resnet import ResNetConfig
from clip_jax.models.transformer import ACTIVATIONS
from clip_jax.pretrained import arrays, big_vision, huggingface, open_clip, openai
from clip_jax.pretrained import rules as r

Format = Literal["openai", "open_clip", "huggingface", "big_vision"]
FORMATS = get_args(Format)

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
)
HUGGINGFACE_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OWN_NOTES = "clip_jax"
"""Under this key of open_clip's config lies what it has no field for."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A published checkpoint, opened but not read."""

    format: Format
    file: Path
    config: ClipConfig
    """Of the arrays as they are stored."""
    wanted: ClipConfig
    """The same for the image size and context length that the configs beside the weights name."""
    rules: Sequence[r.Rule]
    arrays: Mapping[str, arrays.StoredArray]
    """Those that hold weights."""
    metadata: Mapping[str, Any]
    """The JSON that describes the model: open_clip's or transformers' config, or nothing."""


def open_stored(path: str | Path, model: str | None = None) -> Stored:
    """Open a file, or a folder with a file of weights and perhaps its configs.

    Args:
      path: of the file or folder.
      model: a preset's name, in place of what the configs beside the weights say; needed only
        where there are none and the shapes do not tell enough.

    Raises:
      FileNotFoundError: there is nothing to load; says what was looked for.
      ValueError: no known format, damaged or refused content, a config that clip_jax cannot
        express; names the file.
    """
    file = _choose(Path(path))
    weights = arrays.open_weights(file)
    found = dict(weights.arrays)
    kind = _recognise(found, file)
    told = {*found, *weights.extras}
    if kind == "openai" and not any(name.endswith("input_resolution") for name in told):
        kind = "open_clip"  # The same names; but only OpenAI's files tell this size.
    config_file = _config_file(kind, file)
    metadata = _read_object(config_file) if config_file else {}
    if kind == "big_vision":
        found = {name.removeprefix(big_vision.PREFIX): a for name, a in found.items()}
    found = _without(found, _IGNORED[kind])
    try:
        wanted = preset(model) if model else _config(kind, found, metadata, file)
        if kind == "open_clip":
            wanted = _with_bias(wanted, "logit_bias" in found)
        config = _as_stored(wanted, _rules(kind, wanted, found), found)
    except (ValueError, KeyError, TypeError) as fault:
        raise ValueError(f"{config_file or file}: {_reason(fault)}") from fault
    return Stored(
        format=kind,
        file=file,
        config=config,
        wanted=wanted,
        rules=_rules(kind, config, found),
        arrays=found,
        metadata=metadata,
    )


_IGNORED: dict[str, tuple[str, ...]] = {
    "openai": openai.IGNORED,
    "open_clip": open_clip.IGNORED,
    "huggingface": huggingface.IGNORED,
    "big_vision": big_vision.IGNORED,
}


def _reason(fault: Exception) -> str:
    return f"needs the field {fault}" if isinstance(fault, KeyError) else str(fault)


def _choose(path: Path) -> Path:
    """The file of weights."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_dir():
        return path
    groups = ((OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS), ("config.json", HUGGINGFACE_WEIGHTS))
    for config, names in groups:
        for name in names:
            if (path / config).is_file() and (path / name).is_file():
                return path / name
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    if files:
        listed = ", ".join(file.name for file in files)
        raise ValueError(f"{path} has several files of weights, give one of them: {listed}")
    wanted, suffixes = ", ".join((*OPEN_CLIP_WEIGHTS, *HUGGINGFACE_WEIGHTS)), " *".join(SUFFIXES)
    raise FileNotFoundError(f"{path} holds no weights; looked for {wanted}, *{suffixes}")


def _config_file(kind: Format, file: Path) -> Path | None:
    """The config beside weights of that format; others there tell of other files."""
    names = {"open_clip": OPEN_CLIP_CONFIG, "huggingface": "config.json"}
    path = file.parent / names[kind] if kind in names else None
    return path if path is not None and path.is_file() else None


def _read_object(path: Path) -> Mapping[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {type(data).__name__}, not the fields of a config")
    return data


def _with_bias(config: ClipConfig, has_bias: bool) -> ClipConfig:
    """The weights decide whether there is a bias: open_clip starts a missing one at zero."""
    if has_bias == (config.bias is not None):
        return config
    return dataclasses.replace(config, bias=-10.0 if has_bias else None)


def _recognise(found: Mapping[str, Any], file: Path) -> Format:
    """'openai' also stands for open_clip here: their names are the same."""
    marks: tuple[tuple[str, Format], ...] = (
        ("visual.*", "openai"),
        ("vision_model.*", "huggingface"),
        ("img/*", "big_vision"),
        (f"{big_vision.PREFIX}img/*", "big_vision"),
    )
    for mark, kind in marks:
        if any(tree.matches(mark, name) for name in found):
            return kind
    shown = ", ".join(sorted(found)[:5]) or "none"
    raise ValueError(
        f"{file} is no CLIP checkpoint of a known format ({', '.join(FORMATS)}); its first arrays: "
        f"{shown}"
    )


def _without(found: Mapping[str, Any], ignored: Sequence[str]) -> dict[str, Any]:
    return {
        name: array
        for name, array in found.items()
        if not any(tree.matches(pattern, name) for pattern in ignored)
    }


def _config(
    kind: Format, found: Mapping[str, Any], metadata: Mapping[str, Any], file: Path
) -> ClipConfig:
    if kind == "big_vision":
        return big_vision.infer(found)
    if kind == "openai":
        return openai.infer(found)
    if kind == "huggingface":
        if "model_type" not in metadata:
            raise ValueError(
                f"{file.name} has transformers' names, but no config.json beside it says what "
                "model it is: put it there, or give model=NAME (`clip-jax models` lists them)"
            )
        return huggingface.from_config(metadata)
    if "vision_cfg" in metadata.get("model_cfg", metadata):
        return _as_saved(open_clip.from_config(metadata.get("model_cfg", metadata)), metadata)
    return _guess(open_clip.infer(found), file)


def _as_saved(config: ClipConfig, metadata: Mapping[str, Any]) -> ClipConfig:
    """With the activation that `save` noted where open_clip's config cannot tell it."""
    noted = metadata.get(OWN_NOTES, {}).get("image_activation")
    if noted is None or isinstance(config.image, ResNetConfig):
        return config
    if noted not in ACTIVATIONS:
        raise ValueError(
            f"{OWN_NOTES}.image_activation {noted!r} (known: {', '.join(ACTIVATIONS)})"
        )
    stack = dataclasses.replace(config.image.stack, activation=noted)
    return dataclasses.replace(config, image=dataclasses.replace(config.image, stack=stack))


def _guess(inferred: ClipConfig, file: Path) -> ClipConfig:
    """The preset of these shapes; of several, the first, and it says so."""
    fits = [name for name, cfg in PRESETS.items() if _shape_only(cfg) == _shape_only(inferred)]
    if not fits:
        return inferred
    if fits[1:]:
        warnings.warn(
            f"{file.name} has no {OPEN_CLIP_CONFIG} beside it: taken for {fits[0]} by its shapes, "
            f"which {', '.join(fits[1:])} have too; model=NAME says otherwise",
            stacklevel=6,
        )
    return PRESETS[fits[0]]


def _shape_only(cfg: ClipConfig) -> ClipConfig:
    """All that shapes of arrays do not tell set to one value."""

    def stack(config: Any) -> Any:
        return dataclasses.replace(config, heads=1, activation="gelu", norm_eps=1e-5)

    text = dataclasses.replace(
        cfg.text, pool="eot", eot_id=None, causal=True, stack=stack(cfg.text.stack)
    )
    image = cfg.image
    if isinstance(image, ResNetConfig):
        image = dataclasses.replace(image, heads=1)
    elif image.pool == "map":
        image = dataclasses.replace(
            image, stack=stack(image.stack), image_size=image.grid * image.patch_size, trim=False
        )
    else:
        image = dataclasses.replace(
            image,
            stack=stack(image.stack),
            pool="class",
            class_token=None,
            norm_after_pool=False,
        )
    return ClipConfig(image=image, text=text, embed_dim=cfg.embed_dim)


def _rules(kind: Format, cfg: ClipConfig, found: Mapping[str, Any]) -> Sequence[r.Rule]:
    if kind == "huggingface":
        return huggingface.rules(cfg)
    if kind == "big_vision":
        towers = ("img/Transformer", "txt/Encoder_0")
        image, text = (big_vision.is_scanned(found, tower) for tower in towers)
        return big_vision.rules(cfg, scanned=(image, text))
    prefix = "text." if "text.token_embedding.weight" in found else ""
    return open_clip.rules(cfg, text=prefix)


def _as_stored(cfg: ClipConfig, rules: Sequence[r.Rule], found: Mapping[str, Any]) -> ClipConfig:
    """The config with the image size and context length of the stored position tables.

    Tables of another size than the config's are common: whoever changed a config's image size
    expects them to be resampled.
    """
    lengths = {
        path: found[one.theirs[0]].shape
        for one in rules
        for path in one.ours
        if path.endswith("positions/embedding") and one.theirs[0] in found
    }
    image, text = cfg.image, cfg.text
    for path, shape in lengths.items():
        length = shape[-2] if len(shape) > 1 else 0
        if path.startswith("text/"):
            if length > 0 and length != text.context_length:
                text = dataclasses.replace(text, context_length=length)
            continue
        prefix = 1 if isinstance(image, ResNetConfig) or image.has_class_token else 0
        cells = shape[0] * shape[1] if len(shape) == 3 and shape[0] != 1 else length - prefix
        grid = round(max(cells, 0) ** 0.5)
        if grid and grid * grid == cells and grid != image.grid:
            if isinstance(image, ResNetConfig):
                image = dataclasses.replace(image, image_size=grid * 32)
            else:
                image = dataclasses.replace(image, image_size=grid * image.patch_size, trim=False)
    return dataclasses.replace(cfg, image=image, text=text)
