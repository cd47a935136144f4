"""The tokenizer of a folder of files, in both directions."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from clip_jax.config import from_data
from clip_jax.tokenizers import (
    ClipBpe,
    HubTokenizer,
    SentencePiece,
    TokenizerConfig,
    clip_bpe,
    export,
)
from clip_jax.tokenizers.clean import Clean, OpenClipClean
from clip_jax.tokenizers.storage import write_whole

MODELS: dict[str, tuple[Clean, int | None]] = {
    "spiece.model": ("siglip", None),
    "tokenizer.model": ("lower", 0),
    "sentencepiece.model": ("lower_ascii", None),
    "gemma_tokenizer.model": ("lower_ascii", 0),
}
"""SentencePiece files by the names that they were published under, and how they are used (clean,
pad_id): SigLIP and SigLIP 2 of transformers, SigLIP and SigLIP 2 of big_vision."""
LOOKED_FOR = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", *MODELS)
_GEMMA = ("GemmaTokenizer", "Siglip2Tokenizer")
_OPEN_CLIP: dict[str, OpenClipClean] = {
    "whitespace": "open_clip_whitespace",
    "lower": "open_clip_lower",
    "canonicalize": "open_clip_canonicalize",
}
_OWN_NAME = "this-repository"
_OWN_FILE = {"HubTokenizer": ("file", "tokenizer.json"), "SentencePiece": ("model", "spiece.model")}
_SETTINGS = ("special_tokens_map.json", export.SETTINGS)
_USUAL = {"padding_side": "right", "strip_accents": None, "tokenize_chinese_chars": True}
_USUAL_PADDING = ("<pad>", "[PAD]", "<|endoftext|>")


def find(
    folder: epath.PathLike,
    *,
    context_length: int,
    vocab_size: int,
    open_clip: Mapping[str, Any] | None = None,
) -> TokenizerConfig:
    """The tokenizer whose files a folder has, set up as the library that wrote them does.

    CLIP's vocabulary is known by its merges, whatever file they are in, and becomes `ClipBpe`. It
    is also the answer where no file is, if the model has its 49,408 tokens.

    SigLIP 2 is lower case as in its training, also in fixed-size models, for which transformers
    itself leaves that to the user.

    Args:
      folder: holds `tokenizer.json` and the like, with `tokenizer_config.json`.
      context_length: of the model; L.
      vocab_size: rows of the model's token table; the tokenizer may have fewer ids.
      open_clip: `text_cfg` of an `open_clip_config.json`: then OpenCLIP's rules hold, which repair
        and clean texts. None or empty: those of transformers, or of the vocabulary's authors.

    Raises:
      FileNotFoundError: lists the files that were looked for.
      ValueError: a damaged file; a setting that is not supported; more ids than the model has.
    """
    folder = epath.Path(folder).expanduser()
    if (recorded := _recorded(folder, context_length)) is not None:
        found = recorded
    elif open_clip:
        found = _of_open_clip(folder, context_length, vocab_size, open_clip)
    else:
        found = _of_folder(folder, context_length, vocab_size)
    if found.vocab_size > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {found.vocab_size:,} ids, but the model only "
            f"{vocab_size:,}: these files belong to another model"
        )
    return found


def write(tokenizer: TokenizerConfig, folder: epath.PathLike) -> None:
    """Write the files from which transformers (`AutoTokenizer`) and OpenCLIP make the same ids.

    What they cannot express: transformers repairs no mojibake and no HTML entities, and OpenCLIP
    always does; `ClipBpe` is padded with its end token there, and the token's name is found in the
    middle of a word, too; of a SentencePiece unigram model (not for `clean="siglip"`), the names of
    control and byte pieces are read as these pieces, and accents that compose with nothing, and
    which of two equally good ways to cut a word is taken, may differ. `find` reads all of it back.

    Raises:
      FileNotFoundError, ValueError: the tokenizer's own file is missing or no usable one.
      OSError: a file cannot be written; names it.
    """
    if isinstance(tokenizer, ClipBpe):
        files = export.clip_files(tokenizer)
    elif isinstance(tokenizer, HubTokenizer):
        files = export.hub_files(tokenizer)
    else:
        files = export.sentencepiece_files(tokenizer)
    for name, data in files.items():
        write_whole(epath.Path(folder) / name, data)


def open_clip_fields(tokenizer: TokenizerConfig) -> dict[str, Any]:
    """What `text_cfg` of an `open_clip_config.json` says of a tokenizer that `write` wrote.

    `hf_tokenizer_name` counts only in a repository of the hub, whose name it must then be.
    """
    clean = tokenizer.clean.removeprefix("open_clip_")
    if isinstance(tokenizer, ClipBpe):
        return {} if clean == "lower" else {"tokenizer_kwargs": {"clean": clean}}
    kwargs: dict[str, Any] = {"clean": clean if clean != tokenizer.clean else "whitespace"}
    if isinstance(tokenizer, HubTokenizer) and tokenizer.blank_id is not None:
        kwargs["strip_sep_token"] = True
    return {"hf_tokenizer_name": _OWN_NAME, "tokenizer_kwargs": kwargs}


def _recorded(folder: epath.Path, length: int) -> TokenizerConfig | None:
    """The tokenizer that `write` wrote into a folder."""
    record = _settings(folder).get(export.RECORD)
    if not isinstance(record, Mapping):
        return None
    field, name = _OWN_FILE.get(str(record.get("type")), ("", ""))
    if name and not (folder / name).exists():
        return None  # The folder was saved again by transformers, in its own way.
    data = {**record, "context_length": length} | ({field: str(folder / name)} if name else {})
    return from_data(TokenizerConfig, data, f"{folder / export.SETTINGS}: {export.RECORD}")


def _of_open_clip(
    folder: epath.Path, length: int, vocab_size: int, text: Mapping[str, Any]
) -> TokenizerConfig:
    kwargs = dict(text.get("tokenizer_kwargs") or {})
    named = text.get("hf_tokenizer_name")
    short = kwargs.pop("clean", "whitespace" if named else "lower")
    strip = kwargs.pop("strip_sep_token", False)
    faults = [f"tokenizer_kwargs.{name} is not supported" for name in kwargs]
    if short not in _OPEN_CLIP:
        faults.append(f"tokenizer_kwargs.clean {short!r} is none of {', '.join(_OPEN_CLIP)}")
    if text.get("tokenizer_mode"):
        faults.append(f"tokenizer_mode {text['tokenizer_mode']!r} is not supported")
    if not named and vocab_size != clip_bpe.VOCAB_SIZE:
        faults.append(f"no hf_tokenizer_name, and vocab_size {vocab_size:,} is not CLIP's 49,408")
    if faults:
        raise ValueError(f"open_clip's text_cfg: {'; '.join(faults)}")
    clean = _OPEN_CLIP[short]
    if not named:
        return ClipBpe(context_length=length, spelling="open_clip", clean=clean)
    settings, has = _settings(folder), _files_in(folder)
    siglip = _kind(settings) == "SiglipTokenizer" and "spiece.model" in has
    if siglip and short != "canonicalize":
        raise ValueError(f"{folder}: SiglipTokenizer with clean={short!r} is not supported")
    if has & {"tokenizer.json", "vocab.txt"} and not siglip:
        return _hub(folder, settings, length, clean, strip=strip)
    for name in MODELS:
        if name in has:
            return _sentencepiece(folder / name, settings, length, clean)
    raise FileNotFoundError(f"{_nothing(folder)}; open_clip would take those of {named!r}")


def _of_folder(folder: epath.Path, length: int, vocab_size: int) -> TokenizerConfig:
    settings, has = _settings(folder), _files_in(folder)
    kind = _kind(settings)
    if kind == "SiglipTokenizer" or "tokenizer.json" not in has:
        for name in MODELS:
            if name in has:
                return _sentencepiece(folder / name, settings, length)
    lower = kind in _GEMMA  # A vocabulary too large to be parsed for nothing.
    if (not lower and _is_clip(folder, has)) or (not has and vocab_size == clip_bpe.VOCAB_SIZE):
        return ClipBpe(context_length=length)
    if has & {"tokenizer.json", "vocab.txt"}:
        clean = "siglip" if kind == "SiglipTokenizer" else "none"
        return _hub(folder, settings, length, clean, lower=lower)
    if has:
        raise ValueError(
            f"{folder} has {', '.join(sorted(has))}, which are not CLIP's: another vocabulary is "
            "read from tokenizer.json (transformers writes it with a tokenizer's save_pretrained)"
        )
    raise FileNotFoundError(_nothing(folder))


def _sentencepiece(
    model: epath.Path, settings: Mapping[str, Any], length: int, clean: Clean | None = None
) -> SentencePiece:
    usual, pad_id = MODELS[model.name]
    kind = _kind(settings)
    if kind == "SiglipTokenizer" and settings.get("do_lower_case", True) is not True:
        raise ValueError(f"{model.parent}: SiglipTokenizer without lower case is not supported")
    if clean is None:
        clean = usual if kind in ("", "SiglipTokenizer", *_GEMMA) else "none"
    made = SentencePiece(model=str(model), context_length=length, clean=clean, pad_id=pad_id)
    if pad := _token(settings, "pad_token"):
        made = dataclasses.replace(made, pad_id=made.id_of(pad))
    return made if made.pad_id != made.end_id else dataclasses.replace(made, pad_id=None)


def _hub(
    folder: epath.Path,
    settings: Mapping[str, Any],
    length: int,
    clean: Clean,
    *,
    lower: bool = False,
    strip: bool = False,
) -> HubTokenizer:
    file = folder / "tokenizer.json"
    if not file.exists():
        file, lower = folder / "vocab.txt", settings.get("do_lower_case", True)
    faults = [
        f"{name} {settings[name]!r} is not supported"
        for name, usual in _USUAL.items()
        if settings.get(name, usual) != usual and (name == "padding_side" or file.suffix == ".txt")
    ]
    if faults:
        raise ValueError(f"{folder / export.SETTINGS}: {'; '.join(faults)}")
    around = None
    if settings.keys() & {"add_bos_token", "add_eos_token"}:
        # transformers obeys these rather than the file.
        start = _token(settings, "bos_token") if settings.get("add_bos_token") else ""
        end = _token(settings, "eos_token") if settings.get("add_eos_token") else ""
        around = (start, end)
    made = HubTokenizer(
        file=str(file),
        context_length=length,
        clean=clean,
        lower=lower,
        around=around,
        names=not settings.get("split_special_tokens", False),
    )
    table = made.rules()
    given = _token(settings, "pad_token")
    pads = [table.token_to_id(token) for token in ([given] if given else _USUAL_PADDING)]
    pads = [token for token in pads if token is not None]
    blank = table.token_to_id(_token(settings, "sep_token") or "[SEP]") if strip else None
    if not pads or (strip and blank is None):
        what = "separator" if pads else f"padding token {given or ' or '.join(_USUAL_PADDING)}"
        raise ValueError(f"{file} has no {what}")
    return dataclasses.replace(made, pad_id=pads[0], blank_id=blank)


def _is_clip(folder: epath.Path, has: set[str]) -> bool:
    """Whether the vocabulary and its merges are CLIP's, token by token."""
    if {"vocab.json", "merges.txt"} <= has:
        vocabulary = _json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
    elif "tokenizer.json" in has:
        model = _json(folder / "tokenizer.json").get("model")
        model = model if isinstance(model, dict) else {}
        vocabulary, merges = model.get("vocab"), model.get("merges")
    else:
        return False
    if not isinstance(vocabulary, dict):
        return False
    ours, special = clip_bpe.read_merges(), (clip_bpe.START_ID, clip_bpe.END_ID)
    # Older files have "a b", newer ones ["a", "b"].
    same = merges in ([f"{left} {right}" for left, right in ours], [list(pair) for pair in ours])
    words = {token: i for token, i in vocabulary.items() if i not in special}
    return same and words == clip_bpe.vocabulary(ours, ())


def _settings(folder: epath.Path) -> dict[str, Any]:
    """What the files of settings say, the last one first."""
    made: dict[str, Any] = {}
    for name in _SETTINGS:
        if (folder / name).exists():
            made |= {k: v for k, v in _json(folder / name).items() if v is not None}
    return made


def _json(file: epath.Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON, or is damaged: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds {type(data).__name__}, not an object")
    return data


def _kind(settings: Mapping[str, Any]) -> str:
    return str(settings.get("tokenizer_class", "")).removesuffix("Fast")


def _token(settings: Mapping[str, Any], name: str) -> str:
    given = settings.get(name, "")
    return str(given.get("content", "") if isinstance(given, Mapping) else given)


def _files_in(folder: epath.Path) -> set[str]:
    return {name for name in LOOKED_FOR if (folder / name).exists()}


def _nothing(folder: epath.Path) -> str:
    return f"no tokenizer in {folder}: none of {', '.join(LOOKED_FOR)}"
