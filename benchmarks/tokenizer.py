"""Captions tokenized a second, against OpenCLIP's CLIP tokenizer, which is pure Python.

    python benchmarks/tokenizer.py      (needs open_clip beside clip_jax)

Both make padded rows of 77 ids of the same captions, in turn, in one run on one core. No caption
comes twice, but words do, as in any set of captions, and both keep the ids of words they have met
(OpenCLIP's of all, ours of up to 65,536). About one caption in thirteen is not plain ASCII: most of
the time for it goes into the same repair of mojibake in both. The first round, when they have met
no words, is printed and does not count. Prints the medians and, as the last line, the ratio of our
captions per second to OpenCLIP's.
"""

import importlib.util
import itertools
import json
import pathlib
import random
import statistics
import sys
import time

ROUNDS = 5
COUNT = 20_000

PHRASES = [
    "A|One|Two|Three|Several|A group of|The|Some|A pair of|Many",
    "red|blue|dark green|yellow|shiny|purple|old|tiny|wooden|fluffy|striped|broken|happy|tired|"
    "young|elderly|wet|muddy|golden|black-and-white|rusty|antique|colourful|bright|spotted|huge",
    "dog|cat|bicycle|teapot|elephant|jacket|snowman|girl|boy|woman|man|motorcycle|train|horse|"
    "guitarist|skateboarder|surfer|umbrella|pigeon|sheep|giraffe|fire hydrant|suitcase|pizza|"
    "sandwich|birthday cake|laptop|clock tower|bench|kite|frisbee|tennis player|couple|child|"
    "tabby kitten|golden retriever|double-decker bus|café owner|street musician|rock climber",
    "sits|stands|runs|jumps|is lying|waits|plays|is parked|sleeps|leans|can be seen|hangs|rests|"
    "is walking|poses|rides|floats|isn't moving|watches the camera|looks away",
    "on the beach|under a tree|in the snow|near two children|at the airport|in a kitchen|"
    "beside a river|in front of the cathedral|on a busy street|behind a fence|by the window|"
    "across the field|next to a vending machine|at a farmers' market|on the 3rd floor|"
    "inside an abandoned warehouse|at 5:30 pm|on a mountain trail|over the bridge|in Zürich",
]
ENDS = [".", "", "!", ", at night.", " (photo).", " during a thunderstorm.", ", seen from above"]


def captions():
    """Captions without an end, no two the same."""
    draw, seen = random.Random(0), set()
    choices = [phrases.split("|") for phrases in PHRASES]
    while True:
        caption = " ".join(map(draw.choice, choices)) + draw.choice(ENDS)
        if caption not in seen:
            seen.add(caption)
            yield caption


def peer():
    """OpenCLIP's tokenizer; its file alone, since the package wants torchvision, too."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        sys.exit("no open_clip beside clip_jax: pip install open_clip_torch")
    path = pathlib.Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()


def main() -> None:
    """Time both in turn."""
    from clip_jax.tokenizers import ClipBpe

    source = captions()
    tokenizers = {"clip_jax": ClipBpe(spelling="open_clip"), "OpenCLIP": peer()}
    seconds = {name: [] for name in tokenizers}
    for number in range(ROUNDS + 1):
        texts, ids = list(itertools.islice(source, COUNT)), {}
        for name in sorted(tokenizers, reverse=number % 2 == 1):
            start = time.perf_counter()
            ids[name] = tokenizers[name](texts)
            seconds[name].append(time.perf_counter() - start)
        if not (ids["clip_jax"] == ids["OpenCLIP"].numpy()).all():
            sys.exit("the ids differ")
    rates = {}
    for name, (first, *others) in seconds.items():
        rates[name] = COUNT / statistics.median(others)
        print(
            f"{name}: {rates[name]:,.0f} captions/s (median of {ROUNDS}); the first {COUNT:,} at "
            f"{COUNT / first:,.0f}"
        )
    ratio = rates["clip_jax"] / rates["OpenCLIP"]
    print(json.dumps({"name": "tokenizer", "ratio": round(ratio, 2), "better": "higher"}))


if __name__ == "__main__":
    main()
