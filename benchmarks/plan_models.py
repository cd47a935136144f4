"""What training steps cost on pods, by the TPU compiler: the tables of docs/planning.md.

    JAX_PLATFORMS=cpu python benchmarks/plan_models.py plans.json [WORD ...]

Compiles those rows whose name holds a WORD, or all, and prints the tables; minutes a row. What
the file holds already is not compiled again. No TPU is needed.
"""

import dataclasses
import json
import os
import pathlib
import sys

from clip_jax.config import write_json
from clip_jax.data import TarShards
from clip_jax.losses import Sigmoid, Softmax
from clip_jax.models.presets import preset
from clip_jax.optim.build import Adafactor, AdamW, OptimConfig
from clip_jax.plan.advice import with_remat
from clip_jax.plan.report import to_json
from clip_jax.plan.run import rehearse
from clip_jax.plan.topology import parse
from clip_jax.preprocess.recipe import Recipe
from clip_jax.sharding.rules import DATA_PARALLEL, FSDP
from clip_jax.tokenizers import ClipBpe
from clip_jax.train.config import TrainConfig

BATCH = 32_768
RULES = {
    "replicated": DATA_PARALLEL,
    "replicated, Adafactor": DATA_PARALLEL,
    "FSDP": FSDP,
    "FSDP, gathered once": dataclasses.replace(FSDP, regather=False),
}
MODELS = ("ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-SO400M-14-SigLIP", "ViT-bigG-14")
PEER = ("ViT-B-16-SigLIP", "ViT-L-16-SigLIP-256", "ViT-SO400M-14-SigLIP")
"""Models whose step in big_vision was compiled for v5e:16x16, too."""
ROWS = dict.fromkeys(
    [(model, "v5e-256", rules) for model in PEER for rules in ("FSDP", "replicated")]
    + [(model, "v5e-256", "replicated, Adafactor") for model in PEER]
    + [("ViT-SO400M-14-SigLIP", "v5e-256", "FSDP, gathered once")]
    + [(model, slice_, "FSDP") for slice_ in ("v5e-256", "v5p-128") for model in MODELS]
)


def config(model: str, rules: str) -> TrainConfig:
    """First moment in bfloat16, the loss in tiles, blocks computed again."""
    made = preset(model)
    factored = rules.endswith("Adafactor")
    method = Adafactor(moment_dtype="bfloat16") if factored else AdamW(moment_dtype="bfloat16")
    return with_remat(
        TrainConfig(
            run="unused",
            steps=100_000,
            batch=BATCH,
            data=TarShards(root="unused"),
            recipe=Recipe(size=made.image.image_size),
            tokenizer=ClipBpe(context_length=made.text.context_length),
            model=made,
            loss=Softmax(tile=1024) if made.bias is None else Sigmoid(tile=1024),
            optim=OptimConfig(method=method, learning_rate=1e-3),
            rules=RULES[rules],
        ),
        "nothing",
    )


def table(found: dict[str, dict]) -> None:
    head = "model, chips, table|in use at most, GiB|in all, GiB|gathered and all-reduced, MiB"
    head += "|scattered|permuted|compute, ms|memory, ms|links, ms|images/s|MFU"
    print("|" + head + "|\n" + "|---" * (head.count("|") + 1) + "|")
    for name, plan in found.items():
        if not plan["fits"]:
            print(f"|{name}|needs {plan['needed'] / 2**30:.1f}||||||||||")
            continue
        memory, sent, time = plan["memory"], plan["collectives_total"], plan["estimate"]
        whole = sent.get("all-gather", 0) + sent.get("all-reduce", 0)
        sizes = (whole, sent.get("reduce-scatter", 0), sent.get("collective-permute", 0))
        cells = [name, f"{memory['peak'] / 2**30:.2f}", f"{memory['total'] / 2**30:.2f}"]
        cells += [f"{size / 2**20:,.0f}" for size in sizes]
        cells += [f"{time[part] * 1e3:.0f}" for part in ("compute_s", "memory_s", "links_s")]
        cells += [f"{time['images_per_s']:,.0f}", f"{time['utilisation']:.0%}"]
        print("|" + "|".join(cells) + "|")


def main() -> None:
    path, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
    found = json.loads(path.read_text()) if path.exists() else {}
    for row in ROWS:
        name = ", ".join(row)
        if name in found or (words and not any(word in name for word in words)):
            continue
        print(f"{name} ...", file=sys.stderr)
        model, chips, rules = row
        made = to_json(rehearse(config(model, rules), parse(chips)))
        found[name] = made
        write_json(path, found)
    table({name: found[name] for name in map(", ".join, ROWS) if name in found})


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
