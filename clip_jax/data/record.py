"""A sample as bytes: the msgpack array `[1, key, image, texts, label]`.

* 1 is the version of this layout;
* key: text. Here and in captions, half surrogates (bytes of file names that are no UTF-8) are
  written in three bytes, as UTF-8 would if it allowed them;
* image: the bytes of an encoded file, or `[height, width, bytes]` of decoded RGB;
* texts: an array of texts;
* label: an integer from 0 on, or nil.

`Sample.numbers`, which only suites of public data sets read, and from their own tars, is left out.

msgpack, because it is that compact and read by every language, and can hold data only, no code.
"""

from typing import Any

import numpy as np
from jaxtyping import UInt8

from clip_jax.data.sample import BadSampleError, Sample

_LAYOUT = 1


def write_record(sample: Sample) -> bytes:
    """A sample as bytes; see the top of this file.

    Raises:
      BadSampleError: its label is larger than 64 bits, or its image than 4 GiB.
    """
    import msgpack

    image: Any = sample.image
    if not isinstance(image, bytes):
        image = [image.shape[0], image.shape[1], image.tobytes()]
    values = [_LAYOUT, sample.key, image, sample.texts, sample.label]
    try:
        return msgpack.Packer(unicode_errors="surrogatepass").pack(values)
    except (OverflowError, ValueError) as fault:
        raise BadSampleError(f"sample {sample.key!r}: cannot be written: {fault}") from fault


def read_record(record: bytes) -> Sample:
    """Inverse of `write_record`.

    Raises:
      ValueError: the bytes are something else, or of a later layout.
    """
    import msgpack

    if not record:
        raise ValueError("the record is empty: its file was cut off while in use")
    try:
        values = msgpack.unpackb(record, unicode_errors="surrogatepass", use_list=False)
    except (ValueError, TypeError, RecursionError) as fault:
        raise ValueError(
            f"not a record of clip-jax pack: {fault or type(fault).__name__}"
        ) from None
    if not isinstance(values, tuple) or len(values) != 5 or type(values[0]) is not int:
        raise ValueError("not a record of clip-jax pack")
    layout, key, image, texts, label = values
    if layout != _LAYOUT:
        raise ValueError(f"a record of layout {layout}; this program reads layout {_LAYOUT}")
    right = (
        isinstance(key, str)
        and isinstance(texts, tuple)
        and all(isinstance(text, str) for text in texts)
        and (label is None or (type(label) is int and label >= 0))
    )
    if not right:
        raise ValueError("a record whose key, texts or label are of the wrong kind")
    return Sample(key=key, image=_image(image), texts=texts, label=label)


def _image(stored: Any) -> bytes | UInt8[np.ndarray, "height width 3"]:
    if isinstance(stored, bytes):
        return stored
    match stored:
        case (int(height), int(width), bytes(pixels)) if min(
            height, width
        ) > 0 and height * width * 3 == len(pixels):
            return np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()
    raise ValueError("a record whose image is neither bytes nor height, width and RGB")
