"""Everything that a training run changes."""

from typing import Any

import optax
from flax import struct


@struct.dataclass
class State:
    """What is saved and restored; random numbers follow from the seed and `step` alone.

    Its fields hold arrays, or in their place shapes or shardings.
    """

    step: Any
    """Updates applied so far, an int32 scalar."""
    params: Any
    opt: optax.OptState
