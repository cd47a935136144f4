"""Which format a file or folder holds, and what model is in it: recognised from content."""

import dataclasses
import fnmatch
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from clip_jax import tree
from clip_jax.config import read_json
from clip_jax.models.clip import ClipConfig
from clip_jax.models.presets import PRESETS, preset
from clip_jax.models.resnet import ResNetConfig
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
HUGGINGFACE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
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
    file, config_file = _choose(Path(path))
    weights = arrays.open_weights(file)
    metadata = read_json(config_file) if config_file else {}
    found = dict(weights.arrays)
    kind = _recognise(found, file)
    if kind == "openai" and weights.kind != "torchscript" and "input_resolution" not in found:
        kind = "open_clip"
    if kind == "big_vision":
        found = {name.removeprefix(big_vision.PREFIX): a for name, a in found.items()}
    found = _without(found, _IGNORED[kind])
    try:
        wanted = preset(model) if model else _config(kind, found, metadata, file)
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


def _choose(path: Path) -> tuple[Path, Path | None]:
    """The file of weights, and the config that describes it if there is one."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    folder = path if path.is_dir() else path.parent
    configs = [folder / OPEN_CLIP_CONFIG, folder / "config.json"]
    open_clip_config, config = (file if file.is_file() else None for file in configs)
    if not path.is_dir():
        if path.name in HUGGINGFACE_WEIGHTS:
            return path, config or open_clip_config
        return path, open_clip_config or config
    groups = ((open_clip_config, OPEN_CLIP_WEIGHTS), (config, HUGGINGFACE_WEIGHTS))
    for found, names in groups:
        for name in names:
            if found and (folder / name).is_file():
                return folder / name, found
    files = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0], open_clip_config or config
    wanted = ", ".join((*OPEN_CLIP_WEIGHTS, *HUGGINGFACE_WEIGHTS))
    if files:
        listed = ", ".join(file.name for file in files)
        raise ValueError(f"{folder} has several files of weights, give one of them: {listed}")
    raise FileNotFoundError(
        f"{folder} holds no weights; looked for {wanted}, *{' *'.join(SUFFIXES)}"
    )


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
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
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
        return open_clip.from_config(metadata.get("model_cfg", metadata))
    return _guess(open_clip.infer(found), file)


def _guess(inferred: ClipConfig, file: Path) -> ClipConfig:
    """The preset of these shapes; with several, the first, which is said."""
    fits = [name for name, cfg in PRESETS.items() if _shape_only(cfg) == _shape_only(inferred)]
    if not fits:
        return inferred
    chosen = fits[0]
    others = f", which {', '.join(fits[1:])} have too" if fits[1:] else ""
    warnings.warn(
        f"{file.name} has no {OPEN_CLIP_CONFIG} beside it: taken for {chosen} by its shapes"
        f"{others}; model=NAME says otherwise",
        stacklevel=6,
    )
    return PRESETS[chosen]


def _shape_only(cfg: ClipConfig) -> ClipConfig:
    """All that shapes of arrays do not tell set to one value."""

    def stack(config: Any) -> Any:
        return dataclasses.replace(
            config, heads=1, activation="gelu", norm_eps=1e-5, mlp_width=config.mlp_width
        )

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
