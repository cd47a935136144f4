"""What must be equal on all processes of a run, in a form that can be compared and shown."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from clip_jax.data.sample import BadSampleError, Source


def fingerprints(
    config: Any, sources: Mapping[str, Source], local: Sequence[str]
) -> dict[str, str]:
    """Of config, data and machine, by the names that an error gives them.

    Args:
      config: plain data (`config.to_data`).
      sources: by name; their sizes and a few of their keys are compared.
      local: shell patterns of fields that may be another on each machine.
    """
    devices = jax.local_devices()
    found = {"devices": f"{len(devices)} of {devices[0].device_kind}"}
    found |= {
        path: repr(value)
        for path, value in _leaves(config, "")
        if not any(fnmatch.fnmatchcase(path, pattern) for pattern in local)
    }
    return found | {name: _samples(source) for name, source in sources.items()}


def _leaves(data: Any, path: str) -> Iterator[tuple[str, Any]]:
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for name, value in items:
        inner = f"{path}.{name}" if path else str(name)
        if isinstance(value, (dict, list)) and value:
            yield from _leaves(value, inner)
        else:
            yield inner, value


def _samples(source: Source) -> str:
    count = len(source)
    few = sorted({0, count // 2, count - 1}) if count else []
    return f"{count} samples ({', '.join(_key(source, index) for index in few)})"


def _key(source: Source, index: int) -> str:
    try:
        return repr(source[index].key)
    except BadSampleError:
        return "a bad one"
