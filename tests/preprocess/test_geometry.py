import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clip_jax.preprocess import geometry


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_gives_exactly_pillows_pixels(photo, encode, subsampling, progressive):
    data = encode(photo, "JPEG", quality=83, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(geometry.decode(data), pillow(data))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_give_exactly_pillows_pixels(photo, encode, form):
    data = encode(photo, form)
    np.testing.assert_array_equal(geometry.decode(data), pillow(data))


@pytest.mark.parametrize("form, options", [("L", {}), ("RGB", {"keep_rgb": True})])
def test_jpegs_of_other_colour_spaces_give_exactly_pillows_pixels(photo, encode, form, options):
    data = encode(Image.fromarray(photo).convert(form), "JPEG", **options)
    np.testing.assert_array_equal(geometry.decode(data), pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK", "1"])
def test_grey_and_cmyk_end_as_rgb(photo, encode, mode):
    data = encode(Image.fromarray(photo).convert(mode), "TIFF")
    np.testing.assert_array_equal(geometry.decode(data), pillow(data))
    assert geometry.decode(data).shape == (43, 61, 3)


def test_cmyk_jpeg_is_read_behind_the_fast_decoder(photo, encode):
    data = encode(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95)
    np.testing.assert_array_equal(geometry.decode(data), pillow(data))
    np.testing.assert_array_equal(geometry.decode(data, min_side=10), pillow(data))


def test_transparency_is_dropped_not_blended(photo, encode):
    alpha = np.full((43, 61, 1), 3, np.uint8)
    data = encode(np.concatenate([photo, alpha], -1), "PNG")
    np.testing.assert_array_equal(geometry.decode(data), photo)


def test_palette_with_transparency_keeps_its_colours_without_a_warning(encode):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 30, 10, 5, 90, 250])
    image.putpixel((1, 0), 1)
    data = encode(image, "PNG", transparency=b"\x00\x80")
    np.testing.assert_array_equal(geometry.decode(data), [[[200, 30, 10], [5, 90, 250]]])


def test_sixteen_bit_grey_keeps_its_upper_bits(encode):
    image = Image.fromarray(np.array([[0, 255, 256, 40_000, 65_535]], np.uint16))
    pixels = geometry.decode(encode(image, "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0, 1, 156, 255]])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_animation_gives_its_first_frame(encode):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (geometry.decode(data) == [255, 0, 0]).all()


def test_exif_orientation_is_ignored(photo, encode):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees.
    data = encode(photo, "JPEG", exif=exif)
    np.testing.assert_array_equal(geometry.decode(data), pillow(data))
    assert geometry.decode(data).shape == (43, 61, 3)


def test_reduced_decoding_keeps_the_least_side_and_the_picture(encode):
    y, x = np.mgrid[0:480, 0:640]
    big = np.stack([x * 255 // 639, y * 255 // 479, (x + y) * 255 // 1118], -1).astype(np.uint8)
    data = encode(big, "JPEG", quality=95)
    small = geometry.decode(data, min_side=100)
    assert 100 <= min(small.shape[:2]) < 240
    exact = np.asarray(Image.fromarray(big).resize(small.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - exact).mean() < 2


def test_reduced_decoding_never_enlarges(photo, encode):
    data = encode(photo, "JPEG")
    np.testing.assert_array_equal(geometry.decode(data, min_side=1000), geometry.decode(data))


def test_no_bytes_are_called_empty():
    with pytest.raises(ValueError, match=r"^the image file is empty$"):
        geometry.decode(b"")


@pytest.mark.parametrize("data", [b"<html>404</html>", b"\xff\xd8", b"\xff\xd8\xff\xe0rubbish"])
def test_what_is_no_picture_is_refused_with_its_first_bytes(data):
    with pytest.raises(ValueError, match="cannot decode the image: ") as caught:
        geometry.decode(data)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_in_half_is_refused(photo, encode, form):
    data = encode(photo, form)
    with pytest.raises(ValueError, match="cannot decode the image: "):
        geometry.decode(data[: len(data) // 2])


def test_flipped_bits_either_decode_or_raise_valueerror(photo, encode):
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "WEBP", "GIF"):
        good = np.frombuffer(encode(photo, form), np.uint8)
        for _ in range(60):
            bad = good.copy()
            bad[rng.integers(len(bad), size=4)] = rng.integers(256, size=4)
            try:
                pixels = geometry.decode(bad.tobytes())
            except ValueError:
                continue
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height):
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + png_chunk(b"IDAT", b"")


def test_a_decompression_bomb_is_refused_before_it_unfolds():
    with pytest.raises(ValueError, match="decompression bomb"):
        geometry.decode(png_header(60_000, 60_000))


def test_a_bomb_among_jpegs_is_refused_too(encode, monkeypatch, photo):
    monkeypatch.setattr(geometry, "MAX_PIXELS", 1000)
    message = "cannot decode the image: 61 x 43 pixels; allowed are 1 to 1,000 in all"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        geometry.decode(encode(photo, "JPEG"))


def test_arrays_of_other_shapes_and_types_are_named():
    for wrong in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
        message = re.escape(f"got {wrong.dtype} {wrong.shape}")
        with pytest.raises(ValueError, match=message):
            geometry.as_rgb(wrong)
    with pytest.raises(ValueError, match="0 x 5 pixels"):
        geometry.as_rgb(np.zeros((5, 0, 3), np.uint8))


def test_resizing_a_box_of_the_same_size_is_a_crop(photo):
    np.testing.assert_array_equal(
        geometry.resize(photo, 9, 7, box=(5, 3, 14, 10)), photo[3:10, 5:14]
    )


def test_a_box_between_pixels_is_pillows(photo):
    box = (2.5, 1.25, 40.75, 42.0)
    expected = Image.fromarray(photo).resize((11, 13), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(geometry.resize(photo, 11, 13, box=box), expected)
    shifted = geometry.resize(photo, 9, 7, box=(5.5, 3.5, 14.5, 10.5))  # Of its size, but between.
    assert not np.array_equal(shifted, photo[3:10, 5:14])


def test_size_is_read_from_the_header_of_jpegs_alone(photo, encode):
    data = encode(photo, "JPEG")
    assert geometry.jpeg_size(data) == geometry.jpeg_size(data[: len(data) // 2 + 400]) == (43, 61)
    for other in (b"", b"\xff\xd8", data[:30], encode(photo, "PNG"), b"<html>"):
        assert geometry.jpeg_size(other) is None


@pytest.mark.parametrize(
    "part, decoded", [(480, 240), (420, 240), (419, 480), (100, 480), (1, 480)]
)
def test_a_crop_is_decoded_at_a_fast_scale_that_keeps_its_pixels(encode, part, decoded):
    data = encode(np.zeros((480, 640, 3), np.uint8), "JPEG")
    least = geometry.min_side_for(480, 640, part, 224)
    assert geometry.decode(data, min_side=least).shape == (decoded, decoded * 4 // 3, 3)


@pytest.mark.parametrize("shape", [(480, 640), (481, 639), (7, 1000), (1023, 17)])
@pytest.mark.parametrize("size", [4, 16, 50, 224])
def test_a_scale_is_an_eighth_to_the_whole(encode, shape, size):
    data = encode(np.zeros((*shape, 3), np.uint8), "JPEG")
    least = geometry.min_side_for(*shape, min(shape), size)
    found = geometry.decode(data, min_side=least).shape[:2]
    exact = [n for n in (1, 2, 4, 8) if found == tuple(-(-side * n // 8) for side in shape)]
    assert exact and (exact[0] == 8 or min(found) >= size * 15 / 16)


def test_opencv_looks_like_pillow():
    pytest.importorskip("cv2", reason="it is optional")
    y, x = np.mgrid[0:480, 0:640]
    waves = [np.sin(x / 27 + y / 31), np.cos(x / 45 - y / 33), np.sin(x * y / 9000)]
    image = (np.stack(waves, -1) * 100 + 128).astype(np.uint8)
    for size, box in [((224, 224), (10, 20, 300, 260)), ((32, 48), (3, 5, 611, 437))]:
        fast = geometry.resize(image, *size, box=box, interpolation="opencv").astype(int)
        assert fast.shape == (*size[::-1], 3)
        assert np.abs(fast - geometry.resize(image, *size, box=box)).mean() < 3
    sliver = geometry.resize(image, 9, 9, box=(5.1, 5.2, 5.3, 400.0), interpolation="opencv")
    assert sliver.shape == (9, 9, 3)


@pytest.mark.parametrize("way", ["bicubic", "bilinear", "bilinear_plain", "opencv"])
@pytest.mark.parametrize("box", [None, (5, 3, 14, 10), (5.5, 3.5, 14.5, 10.5), (1, 2, 60, 40)])
def test_a_given_array_is_filled_and_its_neighbours_are_not(photo, way, box):
    if way == "opencv":
        pytest.importorskip("cv2", reason="it is optional")
    rows = np.zeros((3, 7, 9, 3), np.uint8)
    filled = geometry.resize(photo, 9, 7, box=box, interpolation=way, out=rows[1])
    assert np.shares_memory(filled, rows) and not rows[0].any() and not rows[2].any()
    made = geometry.resize(photo, 9, 7, box=box, interpolation=way)
    np.testing.assert_array_equal(rows[1], made)
    assert made.flags.owndata and not np.shares_memory(made, photo)


@pytest.mark.parametrize("shape", [(43, 61), (61, 43), (50, 50), (31, 224), (2, 9), (225, 224)])
def test_shortest_side_cuts_the_middle(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    size = 32
    height, width = shape
    if width <= height:
        wide, tall = size, int(size * height / width)
    else:
        wide, tall = int(size * width / height), size
    whole = Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2.0), round((tall - size) / 2.0)
    expected = whole.crop((left, top, left + size, top + size))
    np.testing.assert_array_equal(geometry.shortest_side(image, size), expected)


def test_a_sliver_is_refused_instead_of_filling_memory():
    with pytest.raises(ValueError, match=r"1120000 x 224 pixels"):
        geometry.shortest_side(np.zeros((1, 5000, 3), np.uint8), 224)


@pytest.mark.parametrize(
    "shape, inner",
    [
        ((10, 20), (slice(4, 12), slice(0, 16))),
        ((20, 10), (slice(0, 16), slice(4, 12))),
        ((9, 16), (slice(3, 12), slice(0, 16))),  # 7 rows left: 3 above and 4 below.
        ((16, 16), (slice(0, 16), slice(0, 16))),
        ((1, 3), (slice(5, 10), slice(0, 16))),  # 5.33 rows.
        ((1, 5000), (slice(7, 8), slice(0, 16))),  # 0.003 rows: one is kept.
    ],
)
def test_longest_side_lies_in_the_middle_of_its_padding(shape, inner):
    image = np.random.default_rng(2).integers(0, 100, (*shape, 3), np.uint8)
    square = geometry.longest_side(image, 16, "bilinear", fill=200)
    size = [s.stop - s.start for s in inner]
    small = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(square[inner], small)
    padding = np.ones((16, 16), bool)
    padding[inner] = False
    assert (square[padding] == 200).all()


@pytest.mark.parametrize("fit", [geometry.shortest_side, geometry.squash, geometry.longest_side])
def test_the_filter_is_the_one_asked_for(photo, fit):
    bicubic, bilinear = fit(photo, 20, "bicubic"), fit(photo, 20, "bilinear")
    np.testing.assert_array_equal(fit(photo, 20), bicubic)
    assert bicubic.shape == bilinear.shape and not np.array_equal(bicubic, bilinear)


@pytest.mark.parametrize("size", [(7, 5), (3, 11), (1, 1), (23, 17)])
def test_plain_bilinear_is_the_mean_of_four_neighbours(size):
    """Pixel by pixel, as TensorFlow documents its resize without antialiasing."""
    image = np.random.default_rng(3).integers(0, 256, (13, 9, 3), np.uint8)
    width, height = size
    found = geometry.resize(image, width, height, interpolation="bilinear_plain")
    for row, column in np.ndindex(height, width):
        y = (row + 0.5) * 13 / height - 0.5
        x = (column + 0.5) * 9 / width - 0.5
        total = np.zeros(3)
        for cell_y in (np.floor(y), np.floor(y) + 1):
            for cell_x in (np.floor(x), np.floor(x) + 1):
                weight = (1 - abs(y - cell_y)) * (1 - abs(x - cell_x))
                inside = int(np.clip(cell_y, 0, 12)), int(np.clip(cell_x, 0, 8))
                total += weight * image[inside]
        low, high = np.floor(total - 1e-3), np.floor(total + 1e-3)  # Either, on a whole number.
        assert np.all((found[row, column] >= low) & (found[row, column] <= high))
