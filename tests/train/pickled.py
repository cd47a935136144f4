"""Not a test: a config file for train.py, whose config is the pickle that PICKLED names.

With PAUSE_S set, each step takes that many seconds more. With STRIKE="STEP SIGNAL" each process
sends itself that signal after the hooks of that step, when a save may still be under way.
"""

import gc
import os
import pathlib
import pickle
import time

from clip_jax.train import experiment

gc.freeze()  # What is imported stays; what is traced is collected as in conftest.py.
gc.set_threshold(20_000, 20, 20)
fit, pause_s = experiment.fit, float(os.environ.get("PAUSE_S", "0"))


def get_config():
    return pickle.loads(pathlib.Path(os.environ["PICKLED"]).read_bytes())


def fit_slowly(state, batches, step, **rest):
    def slow(state, batch):
        time.sleep(pause_s)
        return step(state, batch)

    return fit(state, batches, slow, **rest)


def fit_and_strike(*args, hooks, **rest):
    return fit(*args, hooks=[*hooks, Strike()], **rest)


class Strike:
    """The last hook."""

    def due(self, done):
        return True

    def __call__(self, done, state, metrics):
        step, number = map(int, os.environ["STRIKE"].split())
        if done == step:
            os.kill(os.getpid(), number)
            time.sleep(5.0)  # jax looks once a second whether there was a SIGTERM.


if "STRIKE" in os.environ:
    experiment.fit = fit_and_strike
if pause_s:
    experiment.fit = fit_slowly
