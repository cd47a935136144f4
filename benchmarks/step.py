"""One full training step of ours against the same model in open_clip (PyTorch), on one device.

    python benchmarks/step.py --case ViT-B-32 [--rounds 7]
    python benchmarks/step.py --case flickr8k [--data.root PATH]

    (beside clip_jax: torch, torchvision and open_clip_torch; from the root of this repository)

A step is both towers forward and backward, the contrastive loss over the batch, gradients clipped
by their norm, and AdamW. Both get the same batch, which lies on the device beforehand, and both
compute in float32 on a CPU, with float32 parameters and bfloat16 products on a GPU.

Ours is what `train.assemble.assemble_run` makes of a config, with its defaults and in a process
set up like that of train.py; the output says what of it open_clip has not. Theirs is open_clip's
own module and loss with scaled_dot_product_attention and fused AdamW, its pixels normalised
beforehand. It runs as the fastest of several: eager, eager with images in channels_last, compiled.

Each has a process of its own, so that their threads do not disturb each other: one works, the other
sleeps. Before they are timed they must show that they are the same: as many parameters, and from
the same weights the same loss on the same batch, before and after each of two updates.

Prints medians and minima and, as the last line, one JSON object: the ratio of our time to theirs
(the median of the rounds' own ratios; each round runs both, in changing order). TFLOP/s count
each one's own rows of captions, packed or padded, and whole last blocks; on a GPU the share of the
chip's peak is told, too.
The lines for GPUs are written, but have not been run on one yet.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np

from clip_jax.cli.process import use_huge_pages

CPU_CASES = {"ViT-B-32": 64, "flickr8k": 256}
GPU_CASES = {"ViT-B-32": 1024, "ViT-B-16": 512, "ViT-L-14": 256, "ViT-SO400M-14-SigLIP": 256}
"""Model and batch; flickr8k is the model of configs/flickr8k.py."""
WAYS = ("eager", "eager, channels_last", "compiled")
TOLERANCE = {"cpu": 1e-4, "gpu": 3e-2}
"""Allowed between the losses, each about 4."""
RATE = 1e-5
PAUSE = 0.3
"""Seconds before each turn, in which the other's threads stop looking for work."""


def configured(case: str, batch: int, root: str | None):
    """The run whose step is timed; its rate is small and constant."""
    from clip_jax.data import TarShards
    from clip_jax.models.presets import preset
    from clip_jax.optim.schedule import Constant
    from clip_jax.overrides import load_config
    from clip_jax.pretrained import open_clip
    from clip_jax.train import recipes

    data = TarShards(root=root or "none", caption_key="captions")
    scale = {"samples_seen": 1000 * batch, "batch": batch, "warmup": 1}
    if case == "flickr8k":
        config = dataclasses.replace(load_config("configs/flickr8k.py"), batch=batch, data=data)
    elif "SigLIP" in case:
        config = recipes.sigmoid("runs/step", data, model=case, **scale)
        same = open_clip.from_config(open_clip.to_config(preset(case)))  # Its GELU is the exact.
        config = dataclasses.replace(config, model=same)
    else:
        config = recipes.contrastive("runs/step", data, model=case, **scale)
    optim = dataclasses.replace(config.optim, learning_rate=RATE, schedule=Constant(warmup=0))
    return dataclasses.replace(config, optim=optim, evals={})


def real_batch(config):
    """The first pictures and captions of a data set."""
    source = config.data.open("train")
    samples = [source[i] for i in range(config.batch)]
    images = np.stack([config.recipe(sample.image) for sample in samples])
    return images, config.tokenizer([sample.texts[0] for sample in samples])


def synthetic_batch(config):
    """Noise, and captions as long as people's: 12 tokens in the middle, now and then many."""
    rng, text = np.random.default_rng(0), config.model.text
    shape = (config.batch, config.recipe.size, config.recipe.size, 3)
    images = rng.integers(0, 256, shape, np.uint8)
    lengths = np.clip(rng.lognormal(np.log(12), 0.4, config.batch), 4, text.context_length)
    end = text.vocab_size - 1  # The highest id, as in CLIP's vocabulary.
    tokens = rng.integers(1, end - 1, (config.batch, text.context_length)).astype(np.int32)
    places = np.arange(text.context_length)
    last = lengths.astype(int)[:, None] - 1
    tokens[:, 0] = end - 1
    tokens = np.where(places == last, end, np.where(places > last, 0, tokens))
    return images, tokens.astype(np.int32)


@dataclasses.dataclass
class Contestant:
    """One of the two in its process."""

    step: Callable[[str], Callable[[], float]]
    """Starts an update, in one of several ways; what it returns waits for it and gives the loss."""
    ways: tuple[str, ...]
    parameters: int
    peak: float | None = None
    """Operations a second of the device, if they are known."""

    def losses(self, count: int) -> list[float]:
        """Before each of so many updates."""
        return [self.step(self.ways[0])() for _ in range(count)]

    def seconds(self, way: str, steps: int) -> float:
        """Of one of several updates that follow each other.

        One goes before them, not timed: a system may have put a sleeper's memory aside.
        """
        self.step(way)()
        start = time.perf_counter()
        for _ in range(steps):
            wait = self.step(way)
        wait()
        return (time.perf_counter() - start) / steps


def our_step(config, images, tokens, weights):
    """A step from the weights in a file, and the number of parameters."""
    import jax

    from clip_jax import tree
    from clip_jax.pretrained import open_clip, rules
    from clip_jax.pretrained.arrays import open_weights
    from clip_jax.sharding.chips import peak_flops
    from clip_jax.sharding.mesh import build_mesh
    from clip_jax.sharding.place import batch_parts, place_batch
    from clip_jax.train.assemble import assemble_run

    mesh = build_mesh(config.mesh, jax.devices()[:1])
    parts, model = assemble_run(config, mesh), config.model
    table = open_clip.rules(model, text=open_clip.text_prefix(model))
    stored = dict(open_weights(weights).arrays)
    stored = {name: array for name, array in stored.items() if name not in open_clip.IGNORED}
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = parts.init()
    params = rules.read(
        table, stored, state.params, lambda _, array: jax.device_put(array, place), weights
    )
    state = dataclasses.replace(state, params=params)
    batch = {"images": images, "tokens": tokens}
    if config.packing:
        batch = config.packing(batch, batch_parts(config.rules, mesh))
    batch = place_batch(batch, parts.batch_sharding)

    def step(way):
        nonlocal state
        state, metrics = parts.step(state, batch)
        return lambda: float(jax.block_until_ready((state, metrics))[1]["loss"])

    return Contestant(step, ("jitted",), tree.count(params), peak_flops(mesh.devices.flat))


def their_model(config):
    """open_clip's module of the same model, and its loss."""
    import torch

    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
    from clip_jax.pretrained.open_clip import to_config
    from tests.parity import peers

    open_clip = peers.open_clip()
    torch.manual_seed(0)
    data = to_config(config.model)
    custom = data.pop("custom_text", False)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**data)
    loss = open_clip.ClipLoss() if config.model.bias is None else open_clip.SigLipLoss()
    return model, loss


def their_step(config, images, tokens, weights):
    """Makes the weights, writes them to a file, and gives as `our_step`; tries several ways."""
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    model, loss = their_model(config)
    save_file({name: a.contiguous() for name, a in model.state_dict().items()}, weights)
    model = model.to(device).train()
    method, top = config.optim.method, float(np.log(config.model.max_scale))
    groups = {True: [], False: []}  # open_clip lets matrices decay.
    for parameter in model.parameters():
        groups[parameter.ndim > 1].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": method.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=RATE,
        betas=(method.b1, method.b2),
        eps=method.eps,
        fused=True,
    )
    mean, std = (torch.tensor(v, device=device) for v in (config.recipe.mean, config.recipe.std))
    pixels = (torch.from_numpy(images).to(device).float() / 255 - mean) / std
    last = pixels.permute(0, 3, 1, 2)  # In memory the channels are innermost: channels_last.
    words = torch.from_numpy(tokens).long().to(device)
    runs = (model, last.contiguous()), (model, last), (torch.compile(model), last.contiguous())
    ways = dict(zip(WAYS, runs, strict=True))

    def step(way):
        module, pixels = ways[way]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss(*module(pixels, words))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=top)
        return value.item

    count = sum(parameter.numel() for parameter in model.parameters())
    return Contestant(step, tuple(ways), count)


def serve(name, args, weights, line):
    """What a process does: it is told a method of its contestant, and answers."""
    warnings.simplefilter("ignore")
    config = configured(args.case, args.batch, args.root)
    images, tokens = real_batch(config) if args.root else synthetic_batch(config)
    made = {"ours": our_step, "theirs": their_step}[name](config, images, tokens, weights)
    line.send({"parameters": made.parameters, "ways": made.ways, "peak": made.peak})
    while request := line.recv():
        method, *given = request
        line.send(getattr(made, method)(*given))


class Line:
    """To a process that serves one side."""

    def __init__(self, name, args, weights):
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._end, other = context.Pipe()
        self._process = context.Process(target=serve, args=(name, args, weights, other))
        self._process.start()
        other.close()
        self.facts = self._end.recv()

    def __call__(self, *request):
        """Its answer; it waits until then, and sleeps ever after."""
        time.sleep(PAUSE)
        self._end.send(request)
        return self._end.recv()

    def close(self):
        """End the process."""
        self._end.send(())
        self._process.join()


def check_same(ours, theirs, tolerance):
    """Both have as many parameters and the same losses while they learn, or it is an error."""
    counts = [line.facts["parameters"] for line in (ours, theirs)]
    print(f"parameters: {counts[0]:,} ours, {counts[1]:,} theirs")
    losses = [line("losses", 3) for line in (ours, theirs)]
    for name, values in zip(("ours", "theirs"), losses, strict=True):
        print(f"losses of three updates, {name}: {', '.join(f'{v:.6f}' for v in values)}")
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    if counts[0] != counts[1] or apart > tolerance:
        raise SystemExit(f"not the same: losses {apart:.1e} apart, {tolerance:.1e} is allowed")


def fastest(line, steps, only=None):
    """The way that takes least of two turns, after one that compiles it and warms up."""
    times: dict[str, float] = {}
    for way in line.facts["ways"] if only is None else (only,):
        start = line("seconds", way, 1)
        times[way] = min(line("seconds", way, steps) for _ in range(2))
        print(f"{line.name}, {way}: {times[way]:.3f} s, the first {start:.1f} s", flush=True)
    return min(times, key=lambda way: times[way])


def main() -> None:
    """Time both in turn."""
    on_gpu = shutil.which("nvidia-smi") is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = GPU_CASES if on_gpu else CPU_CASES
    parser.add_argument("--case", default="ViT-B-32", choices=cases, help="(%(default)s)")
    parser.add_argument("--batch", type=int, help="pairs in a step; the case's own if not given")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (%(default)s)")
    parser.add_argument("--data.root", dest="root", help="flickr8k: a folder of its shards")
    parser.add_argument("--peer", choices=WAYS, help="run theirs so; all are tried if not given")
    args = parser.parse_args()
    args.batch = args.batch or cases[args.case]
    steps = 10 if on_gpu else 1
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")  # The rest is theirs.
    with tempfile.TemporaryDirectory() as folder:
        weights = str(pathlib.Path(folder) / "model.safetensors")
        theirs = Line("theirs", args, weights)
        ours = Line("ours", args, weights)
        try:
            check_same(ours, theirs, TOLERANCE["gpu" if on_gpu else "cpu"])
            lines = {"ours": ours, "theirs": theirs}
            ways = {"ours": fastest(ours, steps), "theirs": fastest(theirs, steps, args.peer)}
            seconds = {name: [] for name in lines}
            for number in range(args.rounds):
                for name in sorted(lines, reverse=number % 2 == 1):
                    seconds[name].append(lines[name]("seconds", ways[name], steps))
        finally:
            ours.close()
            theirs.close()
    report(args, seconds, ways, ours.facts["peak"])


def report(args, seconds, ways, peak):
    """Print what was found."""
    from clip_jax.train.cost import step_cost

    config = configured(args.case, args.batch, args.root)
    packed = f"captions packed ({config.packing})" if config.packing else "captions not packed"
    print(f"ours alone: {packed}; of what is not pooled, last blocks compute keys and values only")
    print("both: transparent huge pages, as train.py asks for")
    work = {
        "ours": step_cost(config).total,
        "theirs": step_cost(dataclasses.replace(config, packing=None)).total,
    }
    for name, times in seconds.items():
        middle, least = statistics.median(times), min(times)
        done = work[name] / middle
        share = f", MFU {done / peak:.1%}" if peak else ""
        print(
            f"{name} ({ways[name]}): median {middle:.3f} s, least {least:.3f} s of {len(times)}, "
            f"{args.batch / middle:.1f} images/s, {done / 1e12:.3f} TFLOP/s{share}"
        )
    own, other = seconds["ours"], seconds["theirs"]
    result = {
        "name": f"step/{args.case}",
        "ratio": round(statistics.median(a / b for a, b in zip(own, other, strict=True)), 3),
        "better": "lower",
        "ratio_of_least": round(min(own) / min(other), 3),
        "seconds": round(statistics.median(own), 4),
        "peer_seconds": round(statistics.median(other), 4),
        "images_per_s": round(args.batch / statistics.median(own), 1),
        "peer_images_per_s": round(args.batch / statistics.median(other), 1),
        "peer": ways["theirs"],
        "batch": args.batch,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    use_huge_pages()
    main()
