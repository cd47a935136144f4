"""The config that a user gives: a file, and fields of it replaced on the command line."""

import dataclasses
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from clip_jax.config import from_data, nearest, short, to_data

Config = TypeVar("Config")


def load_config(path: str) -> Any:
    """Run a config file, and return what its `get_config()` makes: a dataclass instance.

    The file is the user's own Python: it is run, so it must be trusted.

    Raises:
      FileNotFoundError: no such file; gives the nearest and all config files beside it.
      ValueError: the file defines no `get_config`, or it returns no dataclass.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(_missing(file))
    # Registered like an imported module, because dataclasses look up their hints there, but
    # compiled here: Python's cache of compiled files misses edits made within a second.
    module = types.ModuleType(f"config {file.resolve()}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module
    exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        known = [name for name in vars(module) if not name.startswith("__")]
        raise ValueError(f"{file} defines no function get_config{nearest('get_config', known)}")
    config = get_config()
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise ValueError(f"{file}: get_config() returned {short(config)}, not a dataclass")
    return config


def _missing(file: pathlib.Path) -> str:
    folder = file if file.is_dir() else file.parent
    if not folder.is_dir():
        return f"no config file {file}: there is no folder {folder}"
    names = sorted(p.name for p in folder.glob("*.py"))
    what = f"{file} is a folder, not a config file" if file.is_dir() else f"no config file {file}"
    return f"{what}{nearest(file.name, names)}; in {folder}: {', '.join(names) or 'none'}"


def override(config: Config, argv: Sequence[str], prog: str) -> Config:
    """A config with fields replaced from the command line: `--optim.learning-rate 3e-4`.

    Every field is a flag named by its path, hyphens and underscores alike; items of dicts and
    tuples that the config holds too (`--evals.test.split x`, `--sources.0.root x`). A union
    keeps the class it has in `config`; an object that may be absent is left out by `--packing
    None`. `--help` lists all flags with their documentation.

    Args:
      config: dataclass instance, whose values are the defaults.
      argv: without the program's name.
      prog: how messages and help call the program.

    Raises:
      SystemExit: 0 after `--help`; 2 after a message about an unknown field (which names the
        nearest one), a value of the wrong type, or one that the config refuses.
    """
    import tyro

    try:
        config, argv = _leave_out(config, argv)
    except ValueError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    changed, unknown = tyro.cli(
        type(config),
        default=config,
        args=list(argv),
        prog=prog,
        return_unknown_args=True,
        config=(tyro.conf.AvoidSubcommands,),
    )
    if unknown:
        flags = sorted(_flags(config, "-"))
        wrong = [arg.partition("=")[0] for arg in unknown if arg.startswith("--")]
        lines = [f"no field {flag}{nearest(flag.replace('_', '-'), flags)}" for flag in wrong]
        if not wrong:
            lines = [f"{' '.join(unknown)!r} belongs to no field; a switch is --name or --no-name"]
        print("\n".join(f"{prog}: {line}" for line in lines), file=sys.stderr)
        print(f"{prog} --help lists all fields", file=sys.stderr)
        raise SystemExit(2)
    return changed


def _leave_out(config: Any, argv: Sequence[str]) -> tuple[Any, list[str]]:
    """The config without the objects that `--path None` (or `--path=None`) names, and the other
    arguments. Raises ValueError if one must be there, or the rest is refused without it.
    """
    rest, data = [*argv], None
    for at in reversed(range(len(rest))):
        flag, *value = rest[at].split("=", 1)
        if flag.startswith("--") and (value or rest[at + 1 : at + 2]) == ["None"]:
            data = to_data(config) if data is None else data
            if _set_none(data, flag[2:].replace("-", "_").split(".")):
                del rest[at : at + 2 - len(value)]
    return (config if data is None else from_data(type(config), data)), rest


def _set_none(data: Any, path: Sequence[str]) -> bool:
    """Whether there was an object, or nothing, at a path of `to_data`; now there is nothing."""
    keys = range(len(data)) if isinstance(data, list) else data if isinstance(data, dict) else ()
    key = next((key for key in keys if str(key).replace("-", "_") == path[0]), None)
    if key is not None and path[1:]:
        return _set_none(data[key], path[1:])
    if key is None or not (data[key] is None or (type(data[key]) is dict and "type" in data[key])):
        return False
    data[key] = None
    return True


def _flags(value: Any, path: str) -> Iterator[str]:
    """The flag of every field that holds no further ones; `path` begins with one hyphen."""
    items: dict[Any, Any] = {}
    if dataclasses.is_dataclass(value):
        items = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        items = dict(value)
    elif isinstance(value, (tuple, list)) and any(map(dataclasses.is_dataclass, value)):
        items = dict(enumerate(value))
    for key, item in items.items():
        yield from _flags(item, f"{path}.{key}")
    if not items:
        yield "--" + path.removeprefix("-.").replace("_", "-")
