"""What open_clip and transformers make of small pictures; writes preprocess.npz beside this file.

Needs torch, torchvision, open_clip and transformers: `python -m tests.golden.make_preprocess`
from the root of the repository.
"""

import itertools
import pathlib

import numpy as np
from PIL import Image

from tests.parity import peers

SIZE = 16
SHAPES = {
    "wide": (33, 50),
    "tall": (51, 34),
    "exact": (16, 16),
    "small": (7, 5),
    "line": (1, 20),
    "column": (20, 1),
    "odd": (21, 44),
}
PATCH, PATCHES = 4, 12


def picture(name):
    """Waves with noise, so that a shift by one pixel or another filter shows."""
    height, width = SHAPES[name]
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 3 + y / 5), np.cos(x / 4 - y / 3), np.sin(x * y / 90)], -1)
    return (waves * 90 + 128 + rng.integers(-37, 37, waves.shape)).astype(np.uint8)


def with_open_clip(pictures, mode, interpolation, fill):
    """uint8: all of open_clip's steps but the last two, which make numbers of pixels."""
    transform = peers.open_clip().image_transform(
        SIZE, is_train=False, resize_mode=mode, interpolation=interpolation, fill_color=fill
    )
    made = []
    for image in pictures:
        image = Image.fromarray(image)
        for step in transform.transforms[:-2]:
            image = step(image)
        made.append(np.asarray(image))
    return np.stack(made)


def main():
    """Make them all."""
    pictures = {name: picture(name) for name in SHAPES} | {"grey": picture("wide")[..., 0]}
    golden = {f"picture/{name}": image for name, image in pictures.items()}
    for mode, interpolation in itertools.product(
        ("shortest", "squash", "longest"), ("bicubic", "bilinear")
    ):
        fill = 114 if (mode, interpolation) == ("longest", "bilinear") else 0
        key = f"open_clip/{mode}/{interpolation}/{fill}"
        golden[key] = with_open_clip(pictures.values(), mode, interpolation, fill)
    transform = peers.open_clip().image_transform(SIZE, is_train=False)
    normal = transform(Image.fromarray(pictures["wide"]))
    golden["normalized"] = normal.numpy().transpose(1, 2, 0)

    from transformers.models.siglip2 import image_processing_pil_siglip2 as siglip2

    processor = siglip2.Siglip2ImageProcessorPil(
        patch_size=PATCH, max_num_patches=PATCHES, do_rescale=False, do_normalize=False
    )
    made = processor([Image.fromarray(p).convert("RGB") for p in pictures.values()])
    golden["naflex/pixels"] = np.stack(made["pixel_values"]).astype(np.uint8)
    golden["naflex/grid"] = np.stack(made["spatial_shapes"]).astype(np.int32)
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(0, np.log(9000), (400, 2))).astype(np.int32)
    limits = np.stack([rng.choice([14, 16, 32], 400), rng.choice([1, 7, 64, 256, 1024], 400)], 1)
    asked = golden["sizes/asked"] = np.concatenate([sizes, limits], axis=1).astype(np.int32)
    golden["sizes/given"] = np.array(
        [siglip2.get_image_size_for_max_num_patches(*map(int, row)) for row in asked], np.int32
    )
    np.savez_compressed(pathlib.Path(__file__).with_name("preprocess.npz"), **golden)


if __name__ == "__main__":
    main()
