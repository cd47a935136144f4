"""Which shards a root means: folders, files, braces, stars, addresses, several joined by `::`."""

import collections
import itertools
import logging
import pathlib
import re
from collections.abc import Sequence

from clip_jax.data.tar_files import Shard, Url, object_store

log = logging.getLogger(__name__)

_MAX_SHARDS = 1_000_000


def find_shards(root: str, split: str) -> list[Shard]:
    """Shards of a split: one part of the root after the other, each in natural order or as braces
    count.

    Raises:
      FileNotFoundError: no such folder or split, no shard in it, or shards that `nshards.txt`
        counts are missing.
      ValueError: a shard twice; too many; a command; an address that cannot be listed.
    """
    shards = [
        shard
        for part in _parts(root)
        for shard in _part(part.replace("{split}", split), split, root)
    ]
    twice = [str(shard) for shard, times in collections.Counter(shards).items() if times > 1]
    if twice:
        raise ValueError(
            f"{root} names {len(twice)} shards twice, the first {twice[0]}: every sample has one "
            "place in an epoch; a Mixture gives sources weights"
        )
    return shards


def shard_names(shards: Sequence[Shard]) -> list[str]:
    """What tells the shards apart: their names, or where two are alike their paths from the folder
    that all have in common; without `.tar`.
    """
    names = [shard.stem for shard in shards]
    if len(set(names)) == len(names):
        return names
    parts = [str(shard).removesuffix(".tar").split("/") for shard in shards]
    columns = enumerate(zip(*parts, strict=False))
    shared = next((number for number, column in columns if len(set(column)) > 1), 0)
    return ["/".join(part[shared:]) for part in parts]


def expand_braces(pattern: str) -> list[str]:
    """As a shell does: `{a,b}`, `{0..9}`, `{00..10..2}`, `{a..e}`, nested; others stay as they are.

    Raises:
      ValueError: over a million results.
    """
    for start in (match.start() for match in re.finditer(r"{", pattern)):
        choices, end = _choices(pattern, start)
        if choices:
            break
    else:
        return [pattern]
    tails = expand_braces(pattern[end:])
    heads = [text for choice in choices for text in expand_braces(choice)]
    if len(heads) * len(tails) > _MAX_SHARDS:
        raise ValueError(f"{pattern} means over {_MAX_SHARDS:,} shards")
    return [pattern[:start] + head + tail for head, tail in itertools.product(heads, tails)]


def natural(name: str) -> list[tuple[int, str]]:
    """Key to sort names by, with digits by their value: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _choices(pattern: str, start: int) -> tuple[list[str], int]:
    """What stands in the braces that open at `start`, and where the text after them begins."""
    depth, begin, found = 0, start + 1, []
    for at in range(start, len(pattern)):
        sign = pattern[at]
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0 or (sign == "," and depth == 1):
            found.append(pattern[begin:at])
            begin = at + 1
        if depth == 0:
            return (found if len(found) > 1 else _range(found[0])), at + 1
    return [], len(pattern)


def _range(text: str) -> list[str]:
    """`1..3`, with zeros if one end has some, and a step; empty if it is no range."""
    if match := re.fullmatch(r"([a-zA-Z])\.\.([a-zA-Z])", text):
        first, last = ord(match[1]), ord(match[2])
        step = 1 if first <= last else -1
        return [chr(code) for code in range(first, last + step, step)]
    match = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?", text)
    if not match:
        return []
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1) or 1
    if abs(last - first) // step >= _MAX_SHARDS:
        raise ValueError(f"{{{text}}} means over {_MAX_SHARDS:,} shards")
    padded = any(len(end) > 1 and end[0] == "0" for end in match.group(1, 2))
    width = max(len(match[1]), len(match[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def _parts(root: str) -> list[str]:
    """Colons within brackets are those of an IPv6 address."""
    parts = [root] if pathlib.Path(root).exists() else re.split(r"::(?![^\[]*\])", root)
    if not all(parts):
        raise ValueError(f"{root!r} has an empty part; `::` stands between two roots")
    return parts


def _part(part: str, split: str, root: str) -> Sequence[Shard]:
    if part.startswith("pipe:"):
        raise ValueError(f"{part}: commands are not run; give the path or address itself")
    plain = pathlib.Path(part)
    expanded = [part] if "://" not in part and plain.exists() else expand_braces(part)
    pattern = len(expanded) > 1 or "*" in part
    if pattern and split != "train" and "{split}" not in root:
        raise FileNotFoundError(f"{part} has no split {split!r}; it has 'train'")
    shards: list[Shard] = []
    for path in expanded:
        if "://" in path:
            shards += _remote(path, split)
        elif "*" in path and not pathlib.Path(path).exists():
            shards += _glob(path)
        elif pattern and not pathlib.Path(path).is_dir():
            shards.append(pathlib.Path(path))  # Those that are missing are named all at once later.
        else:
            shards += _local(pathlib.Path(path), "train" if "{split}" in root else split)
    return shards


def _glob(pattern: str) -> list[pathlib.Path]:
    """Files that match, in natural order; `[` means nothing but itself."""
    path = pathlib.Path(pattern)
    start = pathlib.Path(path.anchor)
    found = start.glob(str(path.relative_to(path.anchor)).replace("[", "[[]"))
    shards = sorted((p for p in found if p.is_file()), key=lambda path: natural(str(path)))
    if not shards:
        raise FileNotFoundError(f"no file matches {pattern}")
    return shards


def _remote(url: str, split: str) -> list[Url]:
    """One shard, or those in a folder of an object store."""
    if re.match(r"https?://", url):
        if ".tar" not in Url(url).name:
            raise ValueError(
                f"{url}: a web server cannot be asked what it has; name the shards, as in "
                f"{url.rstrip('/')}/{{00000..00099}}.tar"
            )
        return [Url(url)]
    if url.endswith(".tar") and "*" not in url:
        return [Url(url)]
    store, path = object_store(url)
    folder = path.rstrip("/")
    wanted = [path] if "*" in url else [f"{folder}/{split}/*.tar"]
    if "*" not in url and split == "train":
        wanted.append(f"{folder}/*.tar")
    for pattern in wanted:
        if found := sorted(map(str, store.glob(pattern)), key=natural):
            return [Url(store.unstrip_protocol(name)) for name in found]
    raise FileNotFoundError(f"{url}: no shard of the split {split!r} ({' or '.join(wanted)})")


def _local(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Paths of a split's shards in natural order, checked against `nshards.txt`."""
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist; it should hold train/*.tar or *.tar")
    if root.is_file() and split == "train":
        return [root]
    folder = root / split
    if not folder.is_dir():
        if root.is_file() or split != "train":
            raise FileNotFoundError(f"{root} has no split {split!r}; it has {_splits(root)}")
        folder = root
    shards = sorted(folder.glob("*.tar"), key=lambda path: natural(path.name))
    _check_count(folder, shards)
    if not shards:
        has = sorted(path.name for path in folder.iterdir())[:10]
        raise FileNotFoundError(f"no *.tar in {folder}; it holds {has or 'nothing'}")
    return shards


def _splits(root: pathlib.Path) -> str:
    """Splits that could be opened, for a message."""
    found = [] if root.is_file() else sorted({path.parent.name for path in root.glob("*/*.tar")})
    loose = root.is_file() or any(root.glob("*.tar"))
    if loose and "train" not in found:
        found.append("train")
    return ", ".join(repr(name) for name in found) or "none: no *.tar in it or in its folders"


def _check_count(folder: pathlib.Path, shards: list[pathlib.Path]) -> None:
    """Compare the shards with the count that CLIP_benchmark writes beside them."""
    path = folder / "nshards.txt"
    if not path.is_file():
        return
    text = path.read_text("utf-8").strip()
    if not text.isdecimal():
        raise ValueError(f"{path} must hold one number, not {text[:40]!r}")
    if all(shard.stem.isdecimal() for shard in shards):
        width = len(shards[0].stem) if shards else 1
        there = {int(shard.stem) for shard in shards}
        missing = [f"{n:0{width}d}.tar" for n in range(int(text)) if n not in there]
    else:
        missing = [f"{int(text) - len(shards)} of them"] if len(shards) < int(text) else []
    if missing:
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        raise FileNotFoundError(
            f"{path} counts {text} shards; missing: {', '.join(missing[:20])}{more}; copy them "
            "again, or correct the number to train without them"
        )
    if len(shards) > int(text):
        log.warning("%s counts %s shards, but there are %d; all are used", path, text, len(shards))
