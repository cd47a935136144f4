"""Not a test: trains a config (pickled in a file) and kills itself with SIGKILL on the way.

    python killed.py CONFIG STEP writing|written

At STEP, after the hooks: at once, while the checkpoint of this step is still being written,
or when the newest checkpoint is complete.
"""

import gc
import os
import pathlib
import pickle
import signal
import sys
import time

import jax
from rich.console import Console

from clip_jax.train import experiment, hooks

jax.config.update("jax_cpu_enable_async_dispatch", False)  # As in conftest.py.
gc.freeze()
gc.set_threshold(20_000, 20, 20)  # As there, too.
path, step, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
config = pickle.loads(pathlib.Path(path).read_bytes())
save = hooks.SaveHook.__call__
fit = experiment.fit


class Kill:
    """The last hook."""

    def due(self, done):
        return True

    def __call__(self, done, state, metrics):
        if done != step:
            return
        while when == "written" and not (pathlib.Path(config.run) / "checkpoints" / "5").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def fit_and_die(*args, hooks, **kwargs):
    return fit(*args, hooks=[*hooks, Kill()], **kwargs)


experiment.fit = fit_and_die
experiment.train(config, Console(file=sys.stdout))
