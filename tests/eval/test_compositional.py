import numpy as np
import pytest

from clip_jax.eval import compositional


def unit(rng, *shape):
    rows = rng.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_winoground_is_its_definition():
    rng = np.random.default_rng(0)
    images = unit(rng, 80, 2, 4)
    texts = unit(rng, 80, 2, 4) + images
    found = compositional.winoground(images, texts)
    for n in range(80):
        s = {(c, i): float(texts[n, c] @ images[n, i]) for c in (0, 1) for i in (0, 1)}
        assert found.text[n] == (s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1])
        assert found.image[n] == (s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0])
    np.testing.assert_array_equal(found.group, found.text & found.image)
    assert 0 < found.group.mean() < found.text.mean() < 1
    assert (found.text != found.image).any()


def test_swapping_the_modalities_swaps_text_and_image():
    rng = np.random.default_rng(1)
    images, texts = unit(rng, 40, 2, 4), unit(rng, 40, 2, 4)
    found, swapped = (
        compositional.winoground(images, texts),
        compositional.winoground(texts, images),
    )
    np.testing.assert_array_equal(found.text, swapped.image)
    np.testing.assert_array_equal(found.image, swapped.text)
    turned = compositional.winoground(images[:, ::-1], texts[:, ::-1])
    np.testing.assert_array_equal(found.group, turned.group)


def test_a_bag_of_words_solves_no_winoground():
    rng = np.random.default_rng(2)
    images, text = unit(rng, 30, 2, 4), unit(rng, 30, 1, 4)
    found = compositional.winoground(images, np.repeat(text, 2, axis=1))
    assert not (found.text.any() or found.image.any() or found.group.any())
    perfect = compositional.winoground(images, images)
    assert perfect.group.all()


def test_sugarcrepe_counts_by_category():
    rng = np.random.default_rng(3)
    images, positives, negatives = (unit(rng, 60, 4) for _ in range(3))
    kinds = rng.integers(2, size=60)
    found = compositional.sugarcrepe(images, positives, negatives, kinds, ("swap", "add"))
    right = np.array([i @ p > i @ q for i, p, q in zip(images, positives, negatives, strict=True)])
    np.testing.assert_allclose(found.means, [right[kinds == k].mean() for k in (0, 1)])
    other = compositional.sugarcrepe(images, negatives, positives, kinds, ("swap", "add"))
    np.testing.assert_allclose(found.means + other.means, 1)
    tied = compositional.sugarcrepe(images, positives, positives, kinds, ("swap", "add"))
    assert tied.means.tolist() == [0, 0]


def associations(rng, cues=30):
    counts = np.resize([5, 6, 10, 12], cues)
    owner = np.repeat(np.arange(cues), counts)
    associated = rng.random(len(owner)) < 0.4
    associated[np.searchsorted(owner, np.arange(cues))] = True
    return unit(rng, cues, 4), unit(rng, len(owner), 4), owner, associated


def slow_jaccard(cues, candidates, owner, associated):
    """Choose from a list in which others come first among equals; sets of what was chosen."""
    found = []
    for cue in range(len(cues)):
        rows = np.flatnonzero(owner == cue)
        wanted = {row for row in rows if associated[row]}
        scores = {row: round(float(cues[cue].astype(float) @ candidates[row]), 8) for row in rows}
        order = sorted(rows, key=lambda row: (-scores[row], row in wanted))
        chosen = set(order[: len(wanted)])
        found.append(len(chosen & wanted) / len(chosen | wanted))
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_winogavil_is_its_definition_in_any_order(tied):
    rng = np.random.default_rng(4)
    cues, candidates, owner, associated = associations(rng)
    if tied:
        axes = np.eye(4, dtype="f4")
        cues, candidates = axes[rng.integers(4, size=30)], axes[rng.integers(4, size=len(owner))]
    found = compositional.winogavil(cues, candidates, owner, associated)
    expected = slow_jaccard(cues, candidates, owner, associated)
    np.testing.assert_allclose(found.jaccard, expected)
    assert 0 < found.mean() < 1
    order = rng.permutation(len(owner))
    again = compositional.winogavil(cues, candidates[order], owner[order], associated[order])
    np.testing.assert_array_equal(again.jaccard, found.jaccard)
    many = [value for value, n in zip(expected, found.candidates, strict=True) if n >= 10]
    assert found.mean(10, 12) == pytest.approx(np.mean(many))
    assert found.mean(5, 6, 10, 12) == pytest.approx(found.mean())


def test_winogavil_at_its_extremes():
    rng = np.random.default_rng(5)
    cues, _, owner, associated = associations(rng)
    perfect = np.where(associated[:, None], cues[owner], -cues[owner])
    assert compositional.winogavil(cues, perfect, owner, associated).mean() == 1
    assert compositional.winogavil(cues, cues[owner], owner, np.full(len(owner), True)).mean() == 1
    blind = compositional.winogavil(cues, cues[owner], owner, associated)
    np.testing.assert_allclose(blind.jaccard, slow_jaccard(cues, cues[owner], owner, associated))


def test_bad_input_is_named():
    rng = np.random.default_rng(6)
    cues, candidates, owner, associated = associations(rng, 4)
    with pytest.raises(ValueError, match=r"^1 of 4 cues have no associated candidate; .* cue 2$"):
        compositional.winogavil(cues, candidates, owner, associated & (owner != 2))
    with pytest.raises(ValueError, match=r"^\d+ of 33 cues of candidates are not in 0 to 3; .*$"):
        compositional.winogavil(cues, candidates, owner + 1, associated)
    found = compositional.winogavil(cues, candidates, owner, associated)
    message = r"^no cue has \(7,\) candidates; there are \[5, 6, 10, 12\]$"
    with pytest.raises(ValueError, match=message):
        found.mean(7)
    images = unit(rng, 3, 2, 4)
    broken = images.copy()
    broken[1, 0, 2] = np.inf
    with pytest.raises(ValueError, match=r"^1 of 3 rows of texts are not finite; .* row 1$"):
        compositional.winoground(images, broken)
