"""What is done to a text before it is cut into tokens: the originals' ways, by name."""

import html
import string
from collections.abc import Callable
from typing import Literal

OpenClipClean = Literal["open_clip_whitespace", "open_clip_lower", "open_clip_canonicalize"]
Clean = Literal["none", "lower", "lower_ascii", "canonicalize", "siglip", OpenClipClean]
"""How to clean a text:

* "none": not at all.
* "lower": lower case, each letter on its own, so a Greek capital sigma becomes no final one.
  SigLIP 2 in transformers (`Siglip2Tokenizer`).
* "lower_ascii": A to Z alone. SigLIP and SigLIP 2 in big_vision (`tf.strings.lower`), and so in
  their training.
* "canonicalize": underscores to spaces, other ASCII punctuation removed, lower case, white space
  collapsed. The class names and prompts of big_vision's zero-shot evaluator.
* "siglip": the same, but underscores are removed, too, and "▁" is a space. SigLIP in transformers
  (`SiglipTokenizer`).
* "open_clip_...": mojibake (ftfy) and HTML entities repaired, white space collapsed, and then
  nothing more, lower case, or "canonicalize". What OpenCLIP calls "whitespace" (its other models'
  default), "lower" (CLIP's own) and "canonicalize" (SigLIP and SigLIP 2).
"""

_REMOVED = str.maketrans("", "", string.punctuation)
_SPACED = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def clean_text(text: str, how: Clean) -> str:
    """A text as its vocabulary should see it; half surrogate pairs become U+FFFD."""
    # Where mojibake is repaired, ftfy sees to half pairs at its own time.
    if not (text.isascii() or how.startswith("open_clip")):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _WAYS[how](text)


def _collapse(text: str) -> str:
    return " ".join(text.split())


def _lower_each(text: str) -> str:
    return text.lower() if text.isascii() else "".join(map(str.lower, text))


def _canonicalize(text: str) -> str:
    return _collapse(text.translate(_SPACED).lower())


def _siglip(text: str) -> str:
    return _collapse(text.replace("▁", " ").lower().translate(_REMOVED))


def _repair(text: str) -> str:
    # Printable ASCII without '&' holds nothing to repair, and most captions are just that.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        # Twice: "&amp;lt;" is common in text taken from web pages.
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _collapse(text)


_WAYS: dict[str, Callable[[str], str]] = {
    "none": str,
    "lower": _lower_each,
    "lower_ascii": lambda text: text.translate(_ASCII_LOWER),
    "canonicalize": _canonicalize,
    "siglip": _siglip,
    "open_clip_whitespace": _repair,
    "open_clip_lower": lambda text: _repair(text).lower(),
    "open_clip_canonicalize": lambda text: _canonicalize(_repair(text)),
}
