"""Real processes on this machine that train one run."""

import os
import pathlib
import pickle
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = pathlib.Path(__file__).with_name("pickled.py")


@pytest.fixture(scope="module")
def launch(ports, tmp_path_factory):
    """`launch(config, flags of each process, devices=1, **env)`: the processes, started."""
    started = []

    def start(config, *flags, devices=1, **env):
        folder = tmp_path_factory.mktemp("launch")
        (folder / "config").write_bytes(pickle.dumps(config))
        port, count = ports(), len(flags)
        for number, own in enumerate(flags):
            flags_of_line = ("--coordinator", f"127.0.0.1:{port}")
            place = [*flags_of_line, "--processes", str(count), "--process", str(number)]
            with (folder / f"{number}").open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, ROOT / "train.py", CONFIG, *place, *own],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={
                        **os.environ,
                        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8 ", f"={devices} "),
                        "PICKLED": str(folder / "config"),
                        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # No second start.
                        "CLIP_JAX_START_S": "100",
                        "CLIP_JAX_SILENCE_S": "60",
                        **env,
                    },
                )
            process.output = folder / f"{number}"
            started.append(process)
        return started[-count:]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="session")
def ended():
    """`ended(processes, within_s=400)`: exit status and output of each."""

    def end(processes, within_s=400):
        codes = [process.wait(timeout=within_s) for process in processes]
        return codes, [process.output.read_text() for process in processes]

    return end
