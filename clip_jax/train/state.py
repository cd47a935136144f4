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
    ema: Any = None
    """Moving average of the parameters, if the run keeps one."""

    @property
    def used(self) -> Any:
        """Parameters to evaluate and to use: the average where there is one."""
        return self.params if self.ema is None else self.ema
