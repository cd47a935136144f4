"""Makes tests/golden/models: tiny originals with random weights, and what they compute.

Run in an environment with the `parity` extra: python -m tests.golden.make_models
"""

import pathlib
import shutil

import numpy as np
import torch

from tests.parity.families import FAMILIES

FOLDER = pathlib.Path(__file__).parent / "models"


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, make in FAMILIES.items():
        folder = FOLDER / name.replace(",", "").replace(" ", "_")
        folder.mkdir(parents=True)
        original = make(1)
        if not name.startswith("OpenAI"):  # Those are saved in half precision anyway.
            original.model.half()
        original.save(folder)
        original.model.float()
        with torch.no_grad():
            answers = original.encode(*original.images, original.tokens)
        names = ("pixels", "mask", "grid") if len(original.images) == 3 else ("pixels",)
        arrays = dict(zip(names, original.images, strict=True))
        arrays |= dict(zip(("image", "text", "logits"), answers, strict=True))
        arrays["tokens"] = original.tokens
        plain = {key: value.numpy() for key, value in arrays.items()}
        with (folder / "answers.golden").open("wb") as file:  # Not .npz: that could be weights.
            np.savez_compressed(file, **plain)
        print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
