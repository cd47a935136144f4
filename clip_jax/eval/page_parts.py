"""Pieces of a self-contained web page: tags that escape what they hold, tables, bars, pictures."""

import base64
import html
import io
import os
import pathlib
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clip_jax.eval.page_style import STYLE
from clip_jax.eval.report import readable, signed

SMALL = 64
"""Pixels of a side, up to which pictures are enlarged without smoothing."""
NONE = "\N{EN DASH}"
"""Where there is no figure."""
VOID, SHAPES = ("img", "meta", "br", "wbr"), ("line", "rect", "circle", "polyline")


class Html(str):
    """Markup; any other string is text, and is escaped when it enters a tag."""

    __slots__ = ()


def clean(text: str) -> str:
    """Text that a page can hold: control characters and halves of characters become "�"."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"
        else c
        for c in text
    )


def tag(name: str, /, *children: str, **attributes: str | int | float | None) -> Html:
    """An element; what is not `Html` is escaped, in attributes everything is.

    Attributes whose value is None are left out. An underscore in a name stands for a hyphen, and
    one at its end for nothing: `class_`, `aria_label`.
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(clean(str(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID or name in SHAPES:
        return Html(f"<{name}{told}{'/' if name in SHAPES else ''}>")
    return Html(f"<{name}{told}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Html:
    """Children one after the other, text escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(clean(c)) for c in children))


def name(text: str) -> Html:
    """A foreign word inside a sentence; letters that run from right to left stay within it."""
    return tag("bdi", text)


def breakable(text: str) -> Html:
    """A metric's name, which may go on in the next line after each of its words."""
    parts = re.split(r"(?<=[_:])", text)
    return Html(tag("wbr").join(join([part]) for part in parts))


def number(metric: str, value: float | None) -> Html:
    """A figure as people read it, with the exact one as its machine-readable value."""
    if value is None or not np.isfinite(value):
        return tag("span", NONE, class_="none")
    return tag("data", readable(metric, value), value=repr(float(value)))


def change(metric: str, value: float) -> Html:
    """A difference of a metric, of shares in percentage points."""
    return tag("data", signed(metric, value), value=repr(float(value)))


def table(
    label: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: bool = True,
    words: Collection[int] = (),
    style: str | None = None,
) -> Html:
    """A table in a box of its own that scrolls where it is wider than the page.

    Args:
      label: what it shows.
      head: names of the columns.
      rows: cells; the first of each is the row's name.
      caption: whether the label stands above it; it is always there for screen readers.
      words: columns that hold text, not figures.
      style: its class.
    """

    def kind(column: int) -> str | None:
        return "words" if column in words else None

    top = [tag("th", h, scope="col", class_=kind(i)) for i, h in enumerate(head)]
    lines = [
        tag(
            "tr",
            tag("th", row[0], scope="row", dir="auto"),
            *(
                tag("td", c, class_=kind(i), dir="auto" if i in words else None)
                for i, c in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    parts = [tag("caption", tag("span", label))] if caption else []
    parts += [tag("thead", tag("tr", *top)), tag("tbody", *lines)]
    return scrolling(tag("table", *parts, class_=style), label)


def scrolling(content: Html, label: str) -> Html:
    """Something wide; the keyboard can reach and scroll it."""
    return tag("div", content, class_="wide", tabindex=0, role="region", aria_label=label)


def bar(share: float) -> Html:
    """A bar of a share's length; the figure itself stands beside it."""
    return tag(
        "span", tag("span", style=f"width:{100 * share:.2f}%"), class_="bar", aria_hidden="true"
    )


def picture(pixels: UInt8[np.ndarray, "S S 3"], alt: str) -> Html:
    """A picture inside the page; a small one without loss, which is little larger."""
    buffer, side = io.BytesIO(), len(pixels)
    kind = "png" if side <= SMALL else "jpeg"
    Image.fromarray(pixels).save(buffer, format=kind, **({} if kind == "png" else {"quality": 88}))
    address = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return tag("img", src=address, alt=alt, width=side, height=side)


def document(title: str, *body: Html) -> str:
    """The whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', tag('main', *body)), lang='en')}\n"


def write(path: str | os.PathLike[str], page: str) -> pathlib.Path:
    """Write a page whole or not at all.

    Raises:
      OSError: the file cannot be written; names it.
    """
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as fault:
        part.unlink(missing_ok=True)
        raise OSError(fault.errno, f"cannot write {path}: {fault.strerror or fault}") from fault
    return path
