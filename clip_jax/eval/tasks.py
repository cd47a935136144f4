"""The data sets of both public suites as a table: what each is called, and how it is measured."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

Kind = Literal[
    "zero_shot", "multilabel", "retrieval", "winogavil", "winoground", "sugarcrepe", "faces"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """Accuracy within groups of the samples, as WILDS names the figures."""

    fields: tuple[str, ...]
    """Columns of `Task.columns` whose values together make a group."""
    prefix: str = "acc"
    """Of the figures `PREFIX_avg`, `PREFIX_FIELD:VALUE` and the worst group's."""
    worst: str = "acc_wg"
    """Name of the worst group's figure."""
    names: tuple[str, ...] = ()
    """Of the values of the (only) field, from 0 on; the numbers themselves where there are none."""
    ignored: tuple[str, ...] = ()
    """Names that WILDS leaves out of the worst group. DataComp, which gives groups no names, counts
    them; so there is a figure `WORST_wilds` besides."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One data set and its measures."""

    key: str
    """Its name in the suite."""
    name: str
    """The readable name, DataComp's where it has one."""
    kind: Kind = "zero_shot"
    main: str | None = "acc1"
    """The figure that stands for the data set; None: it does not count in averages."""
    size: int | None = None
    """Samples in the test split; None where the suites do not say."""
    classes: int | None = None
    chance: float | None = None
    """What the main figure is for a model that guesses."""
    datacomp: str | None = None
    """Folder in DataComp's layout, and name of the repository on the hub."""
    benchmark: str | None = None
    """Folder in CLIP_benchmark's layout, and name of the repository on the hub."""
    hub: str | None = None
    """Repository of pictures in parquet files, where these are no tar files."""
    columns: tuple[str, ...] = ()
    """What the numbers of a sample mean; of a multilabel set they are the classes."""
    groups: tuple[Groups, ...] = ()
    macro: bool = False
    """Whether recall and F1 are averaged over the classes that have samples, as for iWildCam."""


def _both(key: str, name: str, size: int, classes: int, chance: float, main: str = "acc1") -> Task:
    return Task(
        key=key,
        name=name,
        main=main,
        size=size,
        classes=classes,
        chance=chance,
        datacomp=f"wds_{key.replace('/', '-')}_test",
        benchmark=f"wds_{key.replace('/', '-')}",
    )


def _benchmark(key: str, name: str, kind: Kind = "zero_shot") -> Task:
    mains: Mapping[str, str] = {
        "retrieval": "mean_recall@1",
        "multilabel": "mean_average_precision",
    }
    folder = f"wds_{key.replace('/', '-')}"
    return Task(key=key, name=name, kind=kind, main=mains.get(kind, "acc1"), benchmark=folder)


def _grouped(key: str, name: str, size: int, classes: int | None, main: str | None, **more) -> Task:
    # The fairness sets lie in folders without that word.
    folder = f"wds_{key.removeprefix('fairness/').replace('/', '-')}_test"
    return Task(key=key, name=name, size=size, classes=classes, main=main, datacomp=folder, **more)


_RECALL = "mean_per_class_recall"
_FMOW = ("Asia", "Europe", "Africa", "Americas", "Oceania", "Other")
FACES = ("age", "gender", "race", "race_binary")
"""Columns of the two sets of faces."""

_IN_BOTH = (
    _both("vtab/caltech101", "Caltech-101", 6085, 102, 0.009804, _RECALL),
    _both("vtab/cifar100", "CIFAR-100", 10000, 100, 0.01),
    _both("vtab/clevr_count_all", "CLEVR Counts", 15000, 8, 0.125061),
    _both("vtab/clevr_closest_object_distance", "CLEVR Distance", 15000, 6, 0.190520),
    _both("country211", "Country211", 21100, 211, 0.004739),
    _both("vtab/dtd", "Describable Textures", 1880, 47, 0.021277),
    _both("vtab/eurosat", "EuroSAT", 5400, 10, 0.101483),
    _both("fgvc_aircraft", "FGVC Aircraft", 3333, 100, 0.01, _RECALL),
    _both("gtsrb", "GTSRB", 12630, 43, 0.037604),
    _both("imagenet1k", "ImageNet 1k", 50000, 1000, 0.001),
    _both("imagenet_sketch", "ImageNet Sketch", 50889, 1000, 0.001),
    _both("imagenetv2", "ImageNet v2", 10000, 1000, 0.001),
    _both("imagenet-a", "ImageNet-A", 7500, 200, 0.008056),
    _both("imagenet-o", "ImageNet-O", 2000, 200, 0.006047),
    _both("imagenet-r", "ImageNet-R", 30000, 200, 0.006163),
    _both("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711, 4, 0.295289),
    _both("mnist", "MNIST", 10000, 10, 0.100350),
    _both("objectnet", "ObjectNet", 18574, 113, 0.009481),
    _both("vtab/flowers", "Oxford Flowers-102", 6149, 102, 0.009804, _RECALL),
    _both("vtab/pets", "Oxford-IIIT Pet", 3669, 37, 0.027027, _RECALL),
    _both("voc2007", "Pascal VOC 2007", 14976, 20, 0.154038),
    _both("vtab/pcam", "PatchCamelyon", 32768, 2, 0.5),
    _both("renderedsst2", "Rendered SST2", 1821, 2, 0.500001),
    _both("vtab/resisc45", "RESISC45", 6300, 45, 0.022342),
    _both("cars", "Stanford Cars", 8041, 196, 0.005160),
    _both("stl10", "STL-10", 8000, 10, 0.1),
    _both("sun397", "SUN397", 108754, 397, 0.004645),
    _both("vtab/svhn", "SVHN", 26032, 10, 0.117897),
)

_DATACOMP = (
    dataclasses.replace(_both("cifar10", "CIFAR-10", 10000, 10, 0.1), benchmark="wds_vtab-cifar10"),
    dataclasses.replace(_both("food101", "Food-101", 25250, 101, 0.009901), benchmark=None),
    Task(
        key="retrieval/flickr_1k_test_image_text_retrieval",
        name="Flickr",
        kind="retrieval",
        main="mean_recall@1",
        size=1000,
        hub="nlphuji/flickr_1k_test_image_text_retrieval",
    ),
    Task(
        key="retrieval/mscoco_2014_5k_test_image_text_retrieval",
        name="MSCOCO",
        kind="retrieval",
        main="mean_recall@1",
        size=5000,
        hub="nlphuji/mscoco_2014_5k_test_image_text_retrieval",
    ),
    Task(
        key="misc/winogavil",
        name="WinoGAViL",
        kind="winogavil",
        main="jaccard_score_10-12",
        size=3563,
        chance=0.205,
        hub="nlphuji/winogavil",
    ),
    _grouped(
        "wilds/iwildcam",
        "iWildCam",
        42791,
        182,
        "F1-macro_all",
        chance=0.143056,
        columns=(
            *("location", "sequence", "year", "month", "day", "hour", "minute", "second"),
            "y",
        ),
        macro=True,
    ),
    _grouped(
        "wilds/camelyon17",
        "Camelyon17",
        85054,
        2,
        "acc1",
        chance=0.5,
        columns=("hospital", "slide", "y"),
        groups=(Groups(fields=("slide",)),),
    ),
    _grouped(
        "wilds/fmow",
        "FMoW",
        22108,
        62,
        "acc_worst_region",
        chance=0.027193,
        columns=("region", "year", "y"),
        groups=(
            Groups(fields=("year",), worst="acc_worst_year"),
            Groups(fields=("region",), worst="acc_worst_region", names=_FMOW, ignored=("Other",)),
        ),
    ),
    _grouped(
        "fairness/dollar_street",
        "Dollar Street",
        3503,
        58,
        "acc_top5_wg",
        columns=("income_ds", "income_meta", "region"),
        groups=(Groups(fields=("income_ds",), prefix="acc_top5", worst="acc_top5_wg"),),
    ),
    _grouped(
        "fairness/geode",
        "GeoDE",
        12488,
        40,
        "acc_wg",
        columns=("region", "country"),
        groups=(Groups(fields=("region",)),),
    ),
    _grouped("fairness/fairface", "FairFace", 10954, None, None, kind="faces", columns=FACES),
    _grouped("fairness/utkface", "UTKFace", 23703, None, None, kind="faces", columns=FACES),
)

_BENCHMARK = (
    _benchmark("mscoco_captions", "MSCOCO Captions", "retrieval"),
    _benchmark("flickr8k", "Flickr8k", "retrieval"),
    _benchmark("flickr30k", "Flickr30k", "retrieval"),
    _benchmark("fer2013", "FER2013"),
    _benchmark("voc2007_multilabel", "Pascal VOC 2007 (multilabel)", "multilabel"),
    dataclasses.replace(
        _both("vtab/cifar10", "CIFAR-10", 10000, 10, 0.1), datacomp="wds_cifar10_test"
    ),
    _benchmark("vtab/diabetic_retinopathy", "Diabetic Retinopathy"),
    _benchmark("vtab/dmlab", "DMLab"),
    _benchmark("vtab/dsprites_label_orientation", "dSprites Orientation"),
    _benchmark("vtab/dsprites_label_x_position", "dSprites X Position"),
    _benchmark("vtab/dsprites_label_y_position", "dSprites Y Position"),
    _benchmark("vtab/smallnorb_label_azimuth", "SmallNORB Azimuth"),
    _benchmark("vtab/smallnorb_label_elevation", "SmallNORB Elevation"),
)

_OTHERS = (
    Task(
        key="winoground",
        name="Winoground",
        kind="winoground",
        main="acc",
        size=400,
        chance=1 / 6,
        hub="facebook/winoground",
    ),
    Task(key="sugar_crepe", name="SugarCrepe", kind="sugarcrepe", main="acc", chance=0.5),
)

TASKS: Mapping[str, Task] = {
    task.key: task for task in (*_IN_BOTH, *_DATACOMP, *_BENCHMARK, *_OTHERS)
}
"""Every data set that a suite names, by key."""

SHIFTS = ("imagenet_sketch", "imagenetv2", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet")
SUITES: Mapping[str, tuple[str, ...]] = {
    "datacomp": tuple(task.key for task in (*_IN_BOTH, *_DATACOMP)),
    "clip_benchmark": tuple(task.key for task in (*_IN_BOTH, *_BENCHMARK)),
    "imagenet_shifts": ("imagenet1k", *SHIFTS),
    "retrieval": ("flickr8k", "flickr30k", "mscoco_captions"),
    "fairness": tuple(key for key in TASKS if key.startswith("fairness/")),
    "compositional": ("winoground", "sugar_crepe", "misc/winogavil"),
    "quick": ("cifar10", "vtab/dtd", "vtab/pets", "flickr8k"),
}
"""Suites as selections of keys."""

_VTAB = (
    *("caltech101", "cifar100", "clevr_count_all", "clevr_closest_object_distance", "dtd"),
    *("eurosat", "kitti_closest_vehicle_distance", "flowers", "pets", "pcam", "resisc45", "svhn"),
)
AGGREGATES: Mapping[str, tuple[str, ...]] = {
    "ImageNet": ("imagenet1k",),
    "ImageNet shifts": SHIFTS,
    "VTAB": (*(f"vtab/{name}" for name in _VTAB), "sun397"),
    "Retrieval": (
        *(key for key in TASKS if key.startswith("retrieval/")),
        "misc/winogavil",
    ),
}
"""DataComp's means of main figures, by name; beside them `Average`, over all of a suite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The mean of the main figures of several data sets."""

    name: str
    mean: float
    """Of those that are there."""
    there: int
    wanted: int

    @property
    def whole(self) -> bool:
        """Whether no data set is missing: only then it may be compared with published ones."""
        return self.there == self.wanted


def aggregates(mains: Mapping[str, float], keys: Sequence[str]) -> list[Aggregate]:
    """DataComp's means, those of which at least one data set is there; the average last.

    Args:
      mains: the main figure by the key of a data set, for those that are done and have one.
      keys: of the data sets that were asked for.
    """
    scored = tuple(k for k in keys if k not in TASKS or TASKS[k].main is not None)
    groups = {name: group for name, group in AGGREGATES.items() if set(group) <= set(scored)}
    found = []
    for name, group in {**groups, "Average": scored}.items():
        values = [mains[key] for key in group if key in mains]
        if values:
            mean = sum(values) / len(values)
            found.append(Aggregate(name=name, mean=mean, there=len(values), wanted=len(group)))
    return found


def select(names: str) -> tuple[str, ...]:
    """Keys that a text means: suites and data sets, with commas between them, each key once.

    A name that is in no suite stands as it is: a folder of the user's own.

    Raises:
      ValueError: no name at all, or an empty one.
    """
    given = [name.strip() for name in names.split(",")]
    if not all(given):
        raise ValueError(f"--suite {names!r}: an empty name; suites are {', '.join(SUITES)}")
    return keys_of(given)


def keys_of(names: Sequence[str]) -> tuple[str, ...]:
    """Keys of suites and data sets, each once; a name that is in no suite stands as it is."""
    return tuple(dict.fromkeys(key for name in names for key in SUITES.get(name, (name,))))


def nearest(name: str) -> str:
    """The suite or data set whose name is most like this one, for a message."""
    return difflib.get_close_matches(name, [*SUITES, *TASKS], n=1, cutoff=0.0)[0]
