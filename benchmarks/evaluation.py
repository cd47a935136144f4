"""Zero-shot classification, from tar files to figures, against the usual way in PyTorch.

    python benchmarks/evaluation.py --data.root DIR [--dtype bfloat16] [--rounds N] [--workers N]

(beside clip_jax: torch, torchvision, open_clip_torch, clip-benchmark==1.6.2, webdataset,
scikit-learn)

DIR is a data set in the layout of CLIP_benchmark, such as the test pictures of CIFAR-10. Both use
the same ViT-B-32, whose weights open_clip draws from a fixed seed; time does not depend on them.
Ours is what `eval.py MODEL --suite NAME --root DIR` does once the model is loaded: it reads the
tars, decodes, resizes, embeds pictures and prompts, and writes all figures; no embedding is kept.
Theirs is CLIP_benchmark's own loader, classifier and figures on open_clip's model and transform,
eager, batches of 64 as in its command line. (Its `accuracy` fails on NumPy 2.4, which makes no
number of an array of one; the same top-k is taken here.) On a single shard only one worker process
has anything to do, so `--workers` 1 serves it as well as its four.

Both compute in float32, or with `--dtype bfloat16` both in that: theirs through autocast, as its
command line does unless told `--no_amp`.

Each turn is a process of its own, so that neither library's threads disturb the other's; they take
turns in changing order. A process measures twice. The first time is what a user waits for: it
includes our compilation, which is not kept anywhere. The second is warm. The last line has the
ratio of our first to theirs, of medians; `warm_ratio` of the second times, and `cpu_ratio` of the
seconds that all cores were busy the first time, which other programs disturb less.

Both must give the same acc1. Where a picture's best two classes are closer than such numbers can
tell, they may differ: each such picture is printed with the distance, and any other ends the run.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

MODEL, SEED, BATCH = "ViT-B-32", 0, 64
CLOSE = {"float32": 1e-5, "bfloat16": 1e-3}
"""Cosines that differ by less may change places."""

_kept = []
"""The names of operators go when their library does."""


def peers():
    """open_clip, where torchvision's compiled operators need not fit the installed torch."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # It needs the names of operators that nothing here calls.
        _kept.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _kept[0].define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
    import open_clip

    return open_clip


def write_weights(given):
    """Weights as open_clip draws them, for both."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(SEED)
    state = peers().create_model(MODEL).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, given.weights)


def timed(function):
    """What it returns, the seconds it took, and those that cores were busy for it."""

    def busy():
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    start, before = time.perf_counter(), busy()
    found = function()
    return found, time.perf_counter() - start, busy() - before


def ours(given):
    """A function that runs the suite anew; it gives acc1 and the class of each picture."""
    from clip_jax.cli.suites import suite_model
    from clip_jax.eval.cache import Cache
    from clip_jax.eval.example_sets import open_folder
    from clip_jax.eval.folders import unlisted
    from clip_jax.eval.run_suite import run_suite
    from clip_jax.eval.tasks import TASKS

    model = suite_model(given.weights, given.batch, given.dtype)
    root, key = given.root.parent, given.root.name
    task = TASKS.get(key) or unlisted(key, root)

    def run():
        with tempfile.TemporaryDirectory() as name:
            out = pathlib.Path(name)
            cache = Cache(folder=out / "cache", limit=0)
            report = run_suite(
                (key,), lambda _: open_folder(task, given.root, print), model, out, cache, print
            )
        found = report.outcomes[key]
        return found.figures["acc1"], found.arrays["top"][:, 0].tolist(), None

    return run


def theirs(given):
    """The same of CLIP_benchmark; and the distance of each picture's classes to its best."""
    open_clip = peers()
    import torch
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import zeroshot_classification as zero_shot
    from sklearn.metrics import balanced_accuracy_score

    model, _, transform = open_clip.create_model_and_transforms(MODEL, pretrained=given.weights)
    tokenizer, amp = open_clip.get_tokenizer(MODEL), given.dtype == "bfloat16"
    model.eval()

    def run():
        dataset = build_dataset("wds/" + given.root.name, root=str(given.root), transform=transform)
        loader = torch.utils.data.DataLoader(
            dataset.batched(BATCH), batch_size=None, shuffle=False, num_workers=given.workers
        )
        names = (dataset.classes, dataset.templates)
        weights = zero_shot.zero_shot_classifier(model, tokenizer, *names, "cpu", amp=amp)
        logits, labels = zero_shot.run_classification(model, weights, loader, "cpu", amp=amp)
        top = logits.topk(5, dim=1).indices
        right = top == labels[:, None]
        balanced_accuracy_score(labels, top[:, 0])
        acc1, _ = (float(right[:, :k].any(dim=1).double().mean()) for k in (1, 5))
        below = (logits.max(dim=1, keepdim=True).values - logits) / 100
        return acc1, top[:, 0].tolist(), below.tolist()

    return run


def measure(given):
    """In a process of its own: both times, and what was found, as a line of JSON."""
    run = {"ours": ours, "theirs": theirs}[given.measure](given)
    seconds, found = {}, (0.0, [], None)
    for name in ("first", "warm"):
        with contextlib.redirect_stdout(sys.stderr):
            found, wall, busy = timed(run)
        seconds |= {name: wall, f"{name}_cpu": busy}
    acc1, classes, below = found
    print(json.dumps({"seconds": seconds, "acc1": acc1, "classes": classes, "below": below}))


def child(given, weights, what):
    """A turn, in a new process."""
    options = [f"--weights={weights}", f"--data.root={given.root}", f"--workers={given.workers}"]
    options += [f"--dtype={given.dtype}", *([f"--batch={given.batch}"] if given.batch else [])]
    ran = subprocess.run(
        [sys.executable, __file__, f"--measure={what}", *options],
        env={"JAX_PLATFORMS": "cpu", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(f"{what} failed:\n{ran.stderr}")
    return json.loads(ran.stdout.splitlines()[-1]) if what != "weights" else None


def compare(mine, other, close):
    """End the run unless both found the same, but for classes that are as good as equal."""
    pairs = zip(mine["classes"], other["classes"], strict=True)
    differing = [(row, pair) for row, pair in enumerate(pairs) if len(set(pair)) > 1]
    for row, (own, theirs) in differing:
        distance = other["below"][row][own]
        print(f"picture {row}: class {own} here, {theirs} there, cosines {distance:.1e} apart")
        if distance > close:
            sys.exit("the two do not find the same")
    if abs(mine["acc1"] - other["acc1"]) > 1e-6 + len(differing) / len(mine["classes"]):
        sys.exit(f"acc1 is {mine['acc1']} here and {other['acc1']} there")
    return len(differing)


def main() -> None:
    """Take turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data.root", dest="root", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=list(CLOSE), default="float32", help="of both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="of theirs")
    parser.add_argument("--batch", type=int, help="of ours (as eval.py)")
    parser.add_argument("--measure", choices=["weights", "ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.root = given.root.resolve()
    if given.measure:
        return write_weights(given) if given.measure == "weights" else measure(given)
    turns = {"ours": [], "theirs": []}
    with tempfile.TemporaryDirectory() as name:
        # A name that tells the architecture, as files of weights alone do not.
        weights = pathlib.Path(name) / "open_clip_model.safetensors"
        child(given, weights, "weights")
        for number in range(given.rounds):
            for what in sorted(turns, reverse=number % 2 == 1):
                turns[what].append(child(given, weights, what))
                print(what, {k: round(v, 2) for k, v in turns[what][-1]["seconds"].items()})
    differing = compare(turns["ours"][-1], turns["theirs"][-1], CLOSE[given.dtype])

    def median(what, name):
        return statistics.median(turn["seconds"][name] for turn in turns[what])

    def ratio(name):
        return round(median("ours", name) / median("theirs", name), 3)

    result = {"name": "evaluation", "ratio": ratio("first"), "better": "lower"}
    result |= {"warm_ratio": ratio("warm"), "cpu_ratio": ratio("first_cpu"), "dtype": given.dtype}
    for what in turns:
        result |= {f"{what}_s": round(median(what, "first"), 1)}
        result |= {f"{what}_warm_s": round(median(what, "warm"), 1)}
        result |= {f"{what}_acc1": turns[what][-1]["acc1"]}
    print(json.dumps({**result, "differing_pictures": differing}))


if __name__ == "__main__":
    main()
