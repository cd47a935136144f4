"""The original libraries, for comparison with clip_jax."""

import sys
import types

_kept = []


def _operators():
    """Let torchvision be imported where its compiled operators do not fit the installed torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # Its fake kernels need the names of operators that nothing here calls.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        _kept.append(library)  # The names go when it does.


def open_clip():
    """The module `open_clip`."""
    _operators()
    import open_clip

    return open_clip


def transformers():
    """The module `transformers`."""
    _operators()
    import transformers

    return transformers


def openai():
    """OpenAI's module `clip` (its package is called openai-clip)."""
    _operators()
    if "pkg_resources" not in sys.modules:  # It wants a part of setuptools that is gone.
        import packaging.version

        sys.modules["pkg_resources"] = types.SimpleNamespace(packaging=packaging)
    import clip
    import clip.model

    return clip
