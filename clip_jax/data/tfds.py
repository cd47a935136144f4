"""Data sets prepared by tensorflow-datasets, read without TensorFlow."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clip_jax.config import nearest
from clip_jax.data.sample import BadSampleError, Fault, Sample, reason_of
from clip_jax.data.tar_shards import natural
from clip_jax.data.tfds_features import choose

_FORMAT = "array_record"
_DAMAGE = (ValueError, RuntimeError, TypeError, AttributeError)
"""How reading ends where the files hold something else than `features.json` says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds:
    """A data set that `tfds build` prepared in the format array_record.

    Features are named by their path, with dots into nested ones and into sequences: COCO's captions
    are `captions.text`. Images stay encoded, as they were stored, and no other feature is decoded.
    A sample's key has the data set's name and version, the split, and the number there.
    """

    name: str
    """`cifar10`, `coco_captions:1.1.0` or `coco_captions/2014:1.1.0`: without a version the newest
    one that is prepared, without a config the only one."""
    data_dir: str | None = None
    """Folder of all prepared data sets; None: `TFDS_DATA_DIR`, or else `~/tensorflow_datasets`."""
    image: str = "image"
    """Feature with the picture: an Image, or a Tensor of bytes (height, width, 1 or 3)."""
    text: str | None = None
    """Feature with the caption or, as (part of) a sequence, the captions; None: they are made of
    the label."""
    label: str | None = None
    """Feature with the class, a ClassLabel; None: samples have no label."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Captions where `text` is None, each with one place for the class name: `{}` or `{c}`."""
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Split -> what tensorflow-datasets shall read for it: {"test": "validation"}, {"train":
    "train[:90%]"}; a split that is not mentioned goes by its own name."""

    def __post_init__(self):
        faults = []
        if self.text is None and self.label is None:
            faults.append("needs a feature for `text` or for `label`")
        if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?", self.name):
            faults.append(f"name must look like coco_captions/2014:1.1.0, not {self.name!r}")
        wrong = [template for template in self.templates if not _has_one_place(template)]
        if wrong or not self.templates:
            faults.append(f"templates need one place each, {{}} or {{c}}; wrong: {wrong or 'none'}")
        if faults:
            raise ValueError("Tfds: " + "; ".join(faults))

    def open(self, split: str) -> "TfdsSource":
        """Find the prepared files, check the features and the split.

        Raises:
          FileNotFoundError: the data set is not prepared, or some of its files are missing.
          ValueError: it is prepared in a format without random access; features that do not exist
            or do not fit; no such split.
        """
        import tensorflow_datasets as tfds

        builder = self._builder()
        reading = self._reading(builder)
        spec = self.splits.get(split, split)
        self._require_split(builder, split, spec)
        records = builder.as_data_source(
            spec, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES, file_format=_FORMAT
        )
        return TfdsSource(records, reading, f"{builder.info.full_name}/{split}")

    def class_names(self, split: str) -> tuple[str, ...]:
        """Names of the classes of `label`, with spaces for underscores; empty without a label.

        Raises:
          FileNotFoundError, ValueError: as `open`, but for the split.
        """
        if self.label is None:
            return ()
        return self._reading(self._builder()).names

    def _builder(self) -> Any:
        """What describes the prepared data set; the code that made it is not needed.

        Raises:
          FileNotFoundError, ValueError: none is prepared in the right format.
        """
        from tensorflow_datasets import builder_from_directory

        builder = builder_from_directory(self._folder())
        formats = sorted(found.value for found in builder.info.available_file_formats())
        if _FORMAT not in formats:
            raise ValueError(
                f"{builder.data_dir} is prepared as {', '.join(formats)}, which cannot be read at "
                f"random: `tfds convert_format --dataset_version_dir={builder.data_dir} "
                f"--out_file_format={_FORMAT}` (needs TensorFlow) adds {_FORMAT}"
            )
        return builder

    def _folder(self) -> Any:
        """The folder of the named config and version, or of the newest version."""
        from etils import epath

        given = self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        root = epath.Path(given).expanduser()
        full, _, version = self.name.partition(":")
        name, _, config = full.partition("/")
        there = {
            path.parent.relative_to(root).as_posix(): path.parent
            for depth in ("*", "*/*")
            for path in (root / name).glob(f"{depth}/features.json")
            if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)  # Others are still being made.
        }
        fits = [
            place
            for place in sorted(there, key=natural)
            if (not config or place.split("/")[1:-1] == [config])
            and (not version or place.endswith(f"/{version}"))
        ]
        configs = {place.rpartition("/")[0] for place in fits}
        if len(configs) > 1:
            raise ValueError(
                f"several configs of {self.name} are prepared in {root}: "
                f"{', '.join(sorted(configs))}; name one"
            )
        if not fits:
            has = ", ".join(sorted(there, key=natural)) or "nothing"
            raise FileNotFoundError(
                f"{self.name} is not prepared in {root} (of {name} there is {has}); where "
                f"TensorFlow is installed, prepare it by `tfds build {full} --data_dir={given} "
                f"--file_format={_FORMAT}`; reading it needs no TensorFlow"
            )
        return there[fits[-1]]

    def _require_split(self, builder: Any, split: str, spec: str) -> None:
        """Check that a split can be read.

        Raises:
          ValueError, FileNotFoundError: no such split; some of its files are missing.
        """
        builder.info.set_file_format(_FORMAT, override=True, override_if_initialized=True)
        known = sorted(builder.info.splits)
        try:
            files = builder.info.splits[spec].file_instructions
        except (ValueError, KeyError) as fault:
            where = f"{split!r}" if split == spec else f"{spec!r} (for {split!r})"
            raise ValueError(
                f"{builder.data_dir} has no split {where}{nearest(spec, known)}; it has "
                f"{', '.join(known)}, and parts of them like 'train[:90%]'; the config's `splits` "
                "say what a split is made of"
            ) from fault
        there = {path.name for path in builder.data_path.iterdir()}
        names = [os.path.basename(file.filename) for file in files]  # noqa: PTH119 (may be gs://)
        if missing := [name for name in names if name not in there]:
            raise FileNotFoundError(
                f"{len(missing)} of {len(names)} files of split {spec!r} are missing in "
                f"{builder.data_dir}: {', '.join(missing[:5])}"
            )

    def _reading(self, builder: Any) -> "_Reading":
        """Where the wanted features lie in an example.

        Raises:
          ValueError: lists all features that do not exist or do not fit.
        """
        from tensorflow_datasets import features

        wanted = {"image": self.image, "text": self.text, "label": self.label}
        try:
            found = choose(builder.info.features, wanted)
        except ValueError as fault:
            raise ValueError(f"{builder.data_dir}: {fault}") from None
        image, text, label = found["image"], found.get("text"), found.get("label")
        names = [] if label is None else label.feature.names
        is_tensor = not isinstance(image.feature, features.Image)
        return _Reading(
            image=image.key,
            shape=tuple(image.feature.shape) if is_tensor else None,
            text=None if text is None else text.key,
            label=None if label is None else label.key,
            names=tuple(name.replace("_", " ") for name in names),
            templates=self.templates,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reading:
    """Names of features in the protocol buffer, and what becomes of them."""

    image: str
    shape: tuple[int | None, ...] | None
    """Of a picture that is stored decoded."""
    text: str | None
    label: str | None
    names: tuple[str, ...]
    templates: tuple[str, ...]


class TfdsSource:
    """Samples of one split; safe to use from several threads, and to pickle."""

    def __init__(self, records: Any, reading: _Reading, name: str):
        # A sequence of bytes; beartype would read one, were it called that.
        self.records = records
        self.reading = reading
        self.name = name

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Sample:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        parse: Any = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        key = f"{self.name}/{index}"
        try:
            return self._sample(key, parse(self.records[index]).features.feature)
        except (*_DAMAGE, DecodeError) as fault:
            raise BadSampleError(f"sample {key!r}: {fault}", reason=reason_of(fault)) from fault

    def _sample(self, key: str, features: Any) -> Sample:
        wanted = self.reading
        stored = _values(features, wanted.image)
        image = _picture(stored, wanted.shape) if wanted.shape else next(iter(stored), b"")
        if not isinstance(image, (bytes, np.ndarray)) or not len(image):
            raise Fault("missing image", "it has no image")
        label = None
        if wanted.label is not None:
            label = next(iter(_values(features, wanted.label)), -1)
            if not isinstance(label, int) or not -1 <= label < len(wanted.names):
                raise Fault("bad label", f"its label is {label}, of {len(wanted.names)} classes")
            label = None if label == -1 else label  # -1 means that nobody knows, in many test sets.
        if wanted.text is not None:
            found = (text.decode("utf-8").strip() for text in _values(features, wanted.text))
            texts = tuple(text for text in found if text)
        elif label is None:
            texts = ()
        else:
            name = wanted.names[label]
            texts = tuple(template.format(name, c=name) for template in wanted.templates)
        if not texts and label is None:
            missing = "its label is not known" if wanted.text is None else "no caption"
            raise Fault("missing caption", missing)
        return Sample(key=key, image=image, texts=texts, label=label)


def _values(features: Any, key: str) -> Sequence[Any]:
    """What is stored of a feature: bytes or numbers; empty where there is nothing."""
    if key not in features:
        return ()
    feature = features[key]
    kind = feature.WhichOneof("kind")
    return () if kind is None else getattr(feature, kind).value


def _picture(
    values: Sequence[int], shape: tuple[int | None, ...]
) -> UInt8[np.ndarray, "height width 3"]:
    numbers = np.array(values)
    if not numbers.size:
        raise Fault("missing image", "it has no image")
    if numbers.min() < 0 or numbers.max() > 255:
        raise Fault("bad image", f"its pixels reach from {numbers.min()} to {numbers.max()}")
    picture = numbers.astype(np.uint8).reshape([-1 if n is None else n for n in shape])
    return np.broadcast_to(picture, (*picture.shape[:2], 3)).copy()


def _has_one_place(template: str) -> bool:
    try:
        return template.format("\0", c="\0").count("\0") == 1
    except (LookupError, ValueError, AttributeError):
        return False
