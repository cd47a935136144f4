"""Configs are frozen dataclasses, kept as JSON; `overrides` has those that a user gives."""

import dataclasses
import difflib
import fnmatch
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

PLAIN = (bool, int, float, str, type(None))
ABSENT = object()


def to_data(value: Any, where: str = "config") -> Any:
    """A config as JSON data: dataclasses become dicts that name their class under 'type'.

    Raises:
      ValueError: lists all values that JSON cannot hold (functions, arrays, nan, ...).
    """
    faults: list[str] = []
    data = _write(value, where, faults)
    if faults:
        raise ValueError("\n".join(faults))
    return data


def _write(value: Any, where: str, faults: list[str]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value) if f.init]
        fields = {n: _write(getattr(value, n), f"{where}.{n}", faults) for n in names}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        faults += [f"{where}: key {key!r} is not a text" for key in value if type(key) is not str]
        return {key: _write(item, f"{where}.{key}", faults) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_write(item, f"{where}.{i}", faults) for i, item in enumerate(value)]
    if type(value) not in PLAIN or (isinstance(value, float) and not math.isfinite(value)):
        faults.append(f"{where}: {value!r} cannot be kept as JSON")
    return value


def from_data(kind: Any, data: Any, where: str = "config") -> Any:
    """Inverse of `to_data`.

    Only classes named by the type hints, starting at `kind`, are ever made: a class name in the
    data chooses among the members of a union and nothing else.

    Args:
      kind: a dataclass, or any type hint made of dataclasses, unions, Literal, dict, tuple,
        list and plain types.
      data: as from JSON. Integers are taken for floats; nothing else is converted.
      where: path of `data`, for messages.

    Raises:
      ValueError: lists all unknown and missing fields, wrong types and refused values, a line
        each, with their paths and the nearest known field.
    """
    faults: list[str] = []
    value = _read(kind, data, where, faults)
    if faults:
        raise ValueError("\n".join(faults))
    return value


def _read(kind: Any, data: Any, where: str, faults: list[str]) -> Any:
    """The value, or anything at all after adding to `faults`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin is Annotated:
        return _read(args[0], data, where, faults)
    if origin in (types.UnionType, Union):
        return _read_union(args, data, where, faults)
    if origin is Literal:
        if any(data == choice and type(data) is type(choice) for choice in args):
            return data
        near = nearest(data, args) if isinstance(data, str) else ""
        faults.append(f"{where}: {data!r} is none of {list(args)}{near}")
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where, faults)
    elif (origin or kind) in (dict, Mapping) and isinstance(data, dict):
        key_kind, item_kind = args or (Any, Any)
        return {
            _read(key_kind, key, f"{where}.{key}", faults): _read(
                item_kind, item, f"{where}.{key}", faults
            )
            for key, item in data.items()
        }
    elif (origin or kind) in (tuple, list, Sequence) and isinstance(data, list):
        return _read_items(origin or kind, args, data, where, faults)
    elif kind is float and type(data) is int:
        return float(data)
    elif kind not in PLAIN or type(data) is not kind:
        faults.append(f"{where}: {short(data)} is not {_kind_name(kind)}")
    return data


def _read_dataclass(kind: type, data: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(data, dict) or data.get("type", kind.__name__) != kind.__name__:
        faults.append(f"{where}: {short(data)} is not {kind.__name__}")
        return None
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    given = {name: item for name, item in data.items() if name in fields}
    own = [
        f"{where}: {kind.__name__} has no field {name!r}{nearest(name, fields)};"
        f" it has {', '.join(fields) or 'none'}"
        for name in data
        if name not in fields and name != "type"
    ]
    own += [
        f"{where}: {kind.__name__} needs the field {name!r}"
        for name, field in fields.items()
        if name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    values = {name: _read(hints[name], v, f"{where}.{name}", own) for name, v in given.items()}
    if not own:
        try:
            return kind(**values)
        except ValueError as error:  # The class's own checks, in __post_init__.
            own.append(f"{where}: {error}")
    faults += own
    return None


def _read_union(members: Sequence[Any], data: Any, where: str, faults: list[str]) -> Any:
    classes = [m for m in members if isinstance(m, type) and dataclasses.is_dataclass(m)]
    others = [m for m in members if m not in classes]
    if classes and isinstance(data, dict):
        name = data.get("type")
        named = [c for c in classes if c.__name__ == name] if "type" in data else classes
        if len(named) == 1:
            return _read_dataclass(named[0], data, where, faults)
        if len(named) > 1 and "type" in data:
            faults.append(f"{where}: several classes are called {name!r}")
            return None
        if not any((typing.get_origin(m) or m) in (dict, Mapping) for m in others):
            names = [c.__name__ for c in classes]
            hint = nearest(name, names) if isinstance(name, str) else ""
            faults.append(f"{where}: 'type' is {name!r}, not one of {', '.join(names)}{hint}")
            return None
    telling: list[list[str]] = []
    for member in sorted(others, key=lambda m: m is not type(data)):  # An exact type goes first.
        value = _read(member, data, where, trial := [])
        if not trial:
            return value
        if trial != [f"{where}: {short(data)} is not {_kind_name(member)}"]:
            telling.append(trial)
    if len(telling) == 1:  # One member has the right form; what is wrong lies inside.
        faults += telling[0]
    else:
        kinds = " | ".join(_kind_name(m) for m in members)
        faults.append(f"{where}: {short(data)} is not {kinds}")
    return None


def _read_items(
    made: Any, args: tuple[Any, ...], data: list[Any], where: str, faults: list[str]
) -> Any:
    kinds = args or (Any, ...)
    if made is not tuple or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        faults.append(f"{where}: length {len(data)}, not {len(kinds)}")
    pairs = zip(kinds, data, strict=False)
    items = [_read(kind, item, f"{where}.{i}", faults) for i, (kind, item) in enumerate(pairs)]
    return items if made is list else tuple(items)


def nearest(name: str, known: Iterable[Any]) -> str:
    """The end of a message about an unknown name: the known text that is most like it, if any."""
    near = difflib.get_close_matches(name, [k for k in known if isinstance(k, str)], 1, 0.0)
    return f" (nearest: {near[0]!r})" if near else ""


def _kind_name(kind: Any) -> str:
    if kind is type(None):
        return "None"
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def short(data: Any) -> str:
    """What a message shows of a value."""
    if isinstance(data, dict) and "type" in data:
        return f"a {data['type']}"
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


def require(config: Any, *conditions: tuple[str, bool, str]) -> None:
    """Check a config's own fields, from its `__post_init__`.

    Args:
      conditions: name of a field, whether it is right, and what it must be.

    Raises:
      ValueError: lists all fields that are wrong, with their values.
    """
    faults = [
        f"{type(config).__name__}.{name} must be {wanted}, got {getattr(config, name)!r}"
        for name, right, wanted in conditions
        if not right
    ]
    if faults:
        raise ValueError("; ".join(faults))


def differences(a: Any, b: Any, ignore: Sequence[str] = ()) -> list[str]:
    """Fields in which two configs differ, e.g. `optim.learning_rate: 0.001 -> 0.0003`.

    Args:
      a, b: plain data (`to_data`); items of a list are counted from 0, `sources.0.root`.
      ignore: shell patterns of paths to pass over; `*` also crosses dots (`checkpoint.*`).
    """
    return [
        f"{path}: {_side(old)} -> {_side(new)}"
        for path, old, new in _differing(a, b, "")
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in ignore)
    ]


def _differing(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Path and both values of each differing leaf; `ABSENT` where one side has none."""
    sides = [dict(enumerate(s)) if isinstance(s, list) else s for s in (a, b)]
    branches = [s for s in sides if isinstance(s, dict)]
    if len(branches) == 2 or (ABSENT in (a, b) and any(branches)):
        old, new = (s if isinstance(s, dict) else {} for s in sides)
        for key in {**old, **new}:
            below = f"{path}.{key}" if path else str(key)
            yield from _differing(old.get(key, ABSENT), new.get(key, ABSENT), below)
    elif a != b:
        yield path, a, b


def _side(value: Any) -> str:
    return "absent" if value is ABSENT else repr(value)


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write JSON whole or not at all: an interrupted write leaves the old file as it was.

    Raises:
      OSError: the file cannot be written (no such folder, a full disk); names it.
    """
    from etils import epath

    path = epath.Path(path)
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    try:
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not JSON; names it and the line.
    """
    from etils import epath

    try:
        return json.loads(epath.Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
