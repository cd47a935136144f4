"""Figures that others published for known weights, to stand beside those found here."""

import dataclasses

from clip_jax.pretrained import catalog

TABLE = "open_clip, docs/openclip_results.csv"
RETRIEVAL = "open_clip, docs/openclip_retrieval_results.csv"
SIGLIP = "SigLIP, arXiv:2303.15343, table 3"
SIGLIP2 = "big_vision, README_siglip2.md"
CLIP = "Radford et al. 2021, arXiv:2103.00020"
AVERAGE = "average"
"""Stands for the mean of DataComp's 38 main figures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reported:
    """One figure as it was published."""

    value: float
    """A share, 0 to 1."""
    digits: int
    """Places after the point of the percentage that was printed."""
    source: str


def reported(model: str, dataset: str, metric: str) -> tuple[Reported, ...]:
    """What is published of these weights on this data set; empty where nothing is known here.

    Args:
      model: a catalogued name, in any form that `catalog.find` takes, or `hf-hub:` and its
        repository; anything else has no figure.
      dataset: the key of a task, such as `imagenet1k`; or `AVERAGE`.
      metric: such as `acc1`; of `AVERAGE`, any.
    """
    weights = _weights(model)
    known = _ALIASES.get(dataset, dataset), metric if dataset != AVERAGE else AVERAGE
    if known[1] == "mean_recall@1":
        return _mean_recall(weights, known[0])
    return _TABLE.get((weights, *known), ())


def _weights(model: str) -> str:
    """The name under which the table has a model; empty for one that the catalogue has not."""
    hub = model.removeprefix("hf-hub:")
    if hub != model:
        names = [name for name, row in catalog.published().items() if row.hub == hub]
        return min(names, key=len).replace("-quickgelu/", "/") if names else ""
    try:
        return catalog.find(model).name.replace("-quickgelu/", "/")
    except ValueError:
        return ""


def _mean_recall(weights: str, dataset: str) -> tuple[Reported, ...]:
    """Derived: the mean of both directions, where both are published."""
    sides = [_TABLE.get((weights, dataset, f"{side}_retrieval_recall@1")) for side in _SIDES]
    if not all(sides):
        return ()
    first, second = (side[0] for side in sides if side)
    mean = (first.value + second.value) / 2
    return (Reported(value=mean, digits=2, source=f"{first.source}; mean of both directions"),)


_SIDES = ("image", "text")
_ALIASES = {
    "flickr30k": "flickr",
    "retrieval/flickr_1k_test_image_text_retrieval": "flickr",
    "mscoco_captions": "coco",
    "retrieval/mscoco_2014_5k_test_image_text_retrieval": "coco",
}

# Zero-shot top-1 accuracy on ImageNet in percent.
_IMAGENET = {
    TABLE: """
        RN50/openai 59.8  RN101/openai 62.3  RN50x4/openai 66.3  RN50x16/openai 70.7
        RN50x64/openai 73.9  ViT-B-32/openai 63.3  ViT-B-16/openai 68.3  ViT-L-14/openai 75.5
        ViT-L-14-336/openai 76.6
        ViT-B-32/laion400m_e32 62.9  ViT-B-16/laion400m_e32 67.1
        ViT-B-16-plus-240/laion400m_e32 69.2  ViT-L-14/laion400m_e32 72.8
        ViT-B-32/laion2b_s34b_b79k 66.6  ViT-B-16/laion2b_s34b_b88k 70.2
        ViT-L-14/laion2b_s32b_b82k 75.3  ViT-H-14/laion2b_s32b_b79k 78.0
        ViT-g-14/laion2b_s34b_b88k 78.5  ViT-bigG-14/laion2b_s39b_b160k 80.1
        ViT-B-32/datacomp_xl_s13b_b90k 69.2  ViT-B-32-256/datacomp_s34b_b86k 72.8
        ViT-B-16/datacomp_xl_s13b_b90k 73.5  ViT-L-14/datacomp_xl_s13b_b90k 79.2
        ViT-B-16/datacomp_l_s1b_b8k 63.1  ViT-B-32/datacomp_m_s128m_b4k 29.7
        ViT-B-32/datacomp_s_s13m_b4k 3.9
        RN50/cc12m 36.5  RN50/yfcc15m 32.7
        ViT-H-14/dfn5b 83.4  ViT-H-14-378/dfn5b 84.4
        ViT-B-32/metaclip_400m 65.5  ViT-B-16/metaclip_400m 70.8  ViT-L-14/metaclip_400m 76.2
        ViT-B-32/metaclip_fullcc 67.6  ViT-B-16/metaclip_fullcc 72.1  ViT-L-14/metaclip_fullcc 79.2
        ViT-H-14/metaclip_fullcc 80.5  ViT-bigG-14/metaclip_fullcc 82.1
        ViT-H-14/metaclip_altogether 82.0
        ViT-L-14-CLIPA/datacomp1b 79.7  ViT-L-14-CLIPA-336/datacomp1b 80.3
        ViT-H-14-CLIPA/datacomp1b 81.5  ViT-H-14-CLIPA-336/datacomp1b 81.8
        ViT-bigG-14-CLIPA/datacomp1b 82.7  ViT-bigG-14-CLIPA-336/datacomp1b 83.0
        ViT-B-16-SigLIP/webli 76.0""",
    SIGLIP: """
        ViT-B-16-SigLIP/webli 76.2  ViT-B-16-SigLIP-256/webli 76.7  ViT-B-16-SigLIP-384/webli 78.6
        ViT-B-16-SigLIP-512/webli 79.2  ViT-L-16-SigLIP-256/webli 80.5
        ViT-L-16-SigLIP-384/webli 82.1  ViT-SO400M-14-SigLIP/webli 82.0
        ViT-SO400M-14-SigLIP-384/webli 83.2""",
    SIGLIP2: """
        ViT-B-32-SigLIP2-256/webli 74.0  ViT-B-16-SigLIP2/webli 78.2
        ViT-B-16-SigLIP2-256/webli 79.1  ViT-B-16-SigLIP2-384/webli 80.6
        ViT-B-16-SigLIP2-512/webli 81.2  ViT-L-16-SigLIP2-256/webli 82.5
        ViT-L-16-SigLIP2-384/webli 83.1  ViT-L-16-SigLIP2-512/webli 83.5
        ViT-SO400M-14-SigLIP2/webli 83.2  ViT-SO400M-16-SigLIP2-256/webli 83.4
        ViT-SO400M-16-SigLIP2-384/webli 84.1  ViT-SO400M-16-SigLIP2-512/webli 84.3
        ViT-gopt-16-SigLIP2-256/webli 84.5  ViT-gopt-16-SigLIP2-384/webli 85.0
        ViT-B-16-SigLIP2-NaFlex/webli 78.5  ViT-SO400M-16-SigLIP2-NaFlex/webli 83.5""",
    CLIP: "ViT-L-14-336/openai 76.2",
}
# Mean of the 38 main figures, as a share.
_AVERAGES = """
    RN50/openai .481  ViT-B-32/openai .5245  ViT-B-16/openai .5626  ViT-L-14/openai .6173
    ViT-L-14-336/openai .6284  ViT-B-32/laion2b_s34b_b79k .5694  ViT-H-14/laion2b_s32b_b79k .6419
    ViT-bigG-14/laion2b_s39b_b160k .6667  ViT-B-16/datacomp_xl_s13b_b90k .6147
    ViT-L-14/datacomp_xl_s13b_b90k .6627  ViT-H-14-378/dfn5b .7079"""
# recall@1: Flickr30k picture by text / text by picture, then COCO the same.
_RECALLS = {
    RETRIEVAL: """
        RN50/openai .574 .800 .285 .488
        ViT-B-32/openai .588 .789 .304 .501
        ViT-B-16/openai .622 .822 .331 .524
        ViT-L-14/openai .650 .852 .365 .563
        ViT-L-14-336/openai .669 .877 .371 .579
        ViT-B-32/laion2b_s34b_b79k .668 .841 .393 .563
        ViT-B-16/laion2b_s34b_b88k .698 .863 .423 .594
        ViT-L-14/laion2b_s32b_b82k .755 .895 .465 .634
        ViT-H-14/laion2b_s32b_b79k .776 .907 .495 .659
        ViT-bigG-14/laion2b_s39b_b160k .796 .929 .514 .674
        ViT-B-16/datacomp_xl_s13b_b90k .676 .851 .402 .574
        ViT-L-14/datacomp_xl_s13b_b90k .734 .890 .457 .633
        ViT-B-16-SigLIP/webli .747 .891 .478 .657
        ViT-SO400M-14-SigLIP-384/webli .830 .943 .542 .724
        ViT-H-14-378/dfn5b .820 .940 .556 .719""",
    SIGLIP2: """
        ViT-B-32-SigLIP2-256/webli - - .472 .637
        ViT-B-16-SigLIP2/webli - - .521 .689
        ViT-L-16-SigLIP2-256/webli - - .547 .715
        ViT-gopt-16-SigLIP2-384/webli - - .561 .728""",
}


def _read() -> dict[tuple[str, str, str], tuple[Reported, ...]]:
    made: dict[tuple[str, str, str], tuple[Reported, ...]] = {}

    def add(name: str, dataset: str, metric: str, figure: Reported) -> None:
        made[name, dataset, metric] = (*made.get((name, dataset, metric), ()), figure)

    for source, text in _IMAGENET.items():
        words = text.split()
        for name, percent in zip(words[::2], words[1::2], strict=True):
            share = round(float(percent) / 100, 4)
            add(name, "imagenet1k", "acc1", Reported(value=share, digits=1, source=source))
    top5 = Reported(value=0.95, digits=0, source=CLIP)
    add("ViT-L-14-336/openai", "imagenet1k", "acc5", top5)
    words = _AVERAGES.split()
    for name, share in zip(words[::2], words[1::2], strict=True):
        figure = Reported(value=float(share), digits=len(share) - 3, source=TABLE)
        add(name, AVERAGE, AVERAGE, figure)
    places = [
        (dataset, f"{side}_retrieval_recall@1") for dataset in ("flickr", "coco") for side in _SIDES
    ]
    for source, text in _RECALLS.items():
        for line in text.strip().splitlines():
            name, *shares = line.split()
            for place, share in zip(places, shares, strict=True):
                if share != "-":
                    add(name, *place, Reported(value=float(share), digits=1, source=source))
    return made


_TABLE = _read()
