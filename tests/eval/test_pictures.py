import io

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from clip_jax.eval import pictures

GREEN = (26, 152, 80)
ODD = [
    "A VERY LOUD CAPTION IN CAPITALS " * 9,
    "costs $5 or $6_x^2 \\frac{a} and [bold]no markup[/bold]",
    "一只棕色的狗在雪地里奔跑、后面有一个栅栏。" * 4,
    "Supercalifragilisticexpialidocious" * 3,
    "שלום عربي 🐶\n\ttab\x00 and newline",
    "",
]


def drawn(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def near(pixels, colour):
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 12


def cells(figure, pixels):
    """The pixels of each picture with its frame, in the order they were drawn."""
    height, width = pixels.shape[:2]
    for axes in figure.axes:
        box, margin = axes.get_position(), 4
        rows = slice(int((1 - box.y1) * height) - margin, int((1 - box.y0) * height) + margin)
        yield pixels[rows, int(box.x0 * width) - margin : int(box.x1 * width) + margin]


def test_right_pictures_and_no_others_have_a_green_frame():
    rng = np.random.default_rng(0)
    right = rng.random((3, 4)) < 0.5
    images = np.zeros((3, 4, 8, 8, 3), np.uint8)
    images[..., :] = rng.integers(0, 4, (3, 4, 1, 1, 3)) * 80  # Far from the frame's green.
    figure = pictures.text_to_image_grid(["one", "two", "three"], images, right, "title")
    pixels = drawn(figure)
    shown = list(cells(figure, pixels))
    for cell, hit, image in zip(shown, right.ravel(), images.reshape(12, 8, 8, 3), strict=True):
        assert near(cell, GREEN).any() == hit
        assert near(cell, image[0, 0]).mean() > 0.7
    assert right.any() and not right.all()


def test_captions_beside_a_picture_are_green_where_right():
    images = np.full((2, 8, 8, 3), 200, np.uint8)
    right = [[True, True], [False, False]]
    figure = pictures.image_to_text_grid(images, [["a dog", "a cat"]] * 2, right, "title")
    pixels = drawn(figure)
    green = near(pixels, GREEN).any(axis=1)
    first, second = (axes.get_position() for axes in figure.axes)
    height = len(pixels)
    assert green[int((1 - first.y1) * height) : int((1 - first.y0) * height)].any()
    assert not green[int((1 - second.y1) * height) : int((1 - second.y0) * height)].any()


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_text_leaves_its_place_however_odd_it_is(columns):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    images = np.zeros((6, columns, 4, 4, 3), np.uint8)
    wide = pictures.text_to_image_grid(ODD, images, np.zeros((6, columns), bool), ODD[0])
    tall = pictures.image_to_text_grid(images[:2, 0], [ODD] * 2, [[True] * 6] * 2, ODD[2])
    for figure, limit in ((wide, min(axes.get_position().x0 for axes in wide.axes)), (tall, 1.0)):
        renderer = FigureCanvasAgg(figure).get_renderer()
        right_edge, top_edge = figure.bbox.width, figure.bbox.height
        title, *texts = figure.texts
        boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
        assert all(box.x0 >= 0 and box.x1 <= limit * right_edge for box in boxes)
        box = title.get_window_extent(renderer)
        assert box.x1 <= right_edge and box.y1 <= top_edge
        assert box.y0 >= max(axes.get_position().y1 for axes in figure.axes) * top_edge
        # Captions of one column do not run into each other.
        for one in boxes:
            below = [b for b in boxes if b is not one and b.x0 == one.x0 and b.y0 < one.y0]
            assert all(b.y1 <= one.y0 + 2 for b in below)


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("width, lines", [(5, 1), (25, 6), (64, 1), (40, 3)])
def test_wrapped_text_fits_and_loses_only_its_end(text, width, lines):
    wrapped = pictures.wrap(text, width=width, lines=lines)
    assert wrapped.count("\n") < lines
    assert max(map(cell_len, wrapped.split("\n"))) <= width
    bare = "".join(c for c in text if c.isprintable() and c != " ")
    kept = wrapped.replace("\n", "").replace(" ", "")
    assert kept == bare or (kept.endswith("…") and bare.startswith(kept[:-1]))


def test_short_text_is_left_alone():
    assert pictures.wrap("a red seven", width=11, lines=1) == "a red seven"
    assert pictures.wrap("a red seven", width=10, lines=2) == "a red\nseven"
    assert pictures.wrap("a red seven ate nine", width=10, lines=1) == "a red…"


def test_a_confusion_shows_counts_and_shares():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 12345]])
    figure = pictures.confusion(counts, ["dog", "$cat$", "a very long name of a class"], "title")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "12345"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "dog",
        "$cat$",
        "a very long name of a…",
    ]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown, [[0.75, 0.25, 0], [0, 0, 0], [0, 2 / 12347, 12345 / 12347]])
    assert len(np.unique(drawn(figure).reshape(-1, 3), axis=0)) > 20


def test_letters_without_a_font_are_no_warning(tmp_path):
    pictures.save(pictures.confusion(np.eye(2, dtype=int), ["🐶", "猫"], "🐶"), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
