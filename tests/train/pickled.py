"""Not a test: a config file for train.py, whose config is the pickle that PICKLED names.

With PAUSE_S set, each step takes that many seconds more.
"""

import os
import pathlib
import pickle
import time

from clip_jax.train import experiment

fit, pause_s = experiment.fit, float(os.environ.get("PAUSE_S", "0"))


def get_config():
    return pickle.loads(pathlib.Path(os.environ["PICKLED"]).read_bytes())


def fit_slowly(state, batches, step, **rest):
    def slow(state, batch):
        time.sleep(pause_s)
        return step(state, batch)

    return fit(state, batches, slow, **rest)


if pause_s:
    experiment.fit = fit_slowly
