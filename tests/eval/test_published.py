import re

import pytest

from clip_jax.eval import published
from clip_jax.eval.published import AVERAGE, reported
from clip_jax.pretrained import catalog


def test_every_figure_is_of_catalogued_weights_and_a_share_with_a_source():
    assert len(published._TABLE) > 100
    for (name, _, _), figures in published._TABLE.items():
        assert catalog.published()[name].name == name
        for figure in figures:
            assert 0 < figure.value < 1 and figure.source and figure.digits in (0, 1, 2)
            percent = 100 * figure.value
            assert float(f"{percent:.{figure.digits}f}") == pytest.approx(percent, abs=1e-9)
        assert len({figure.source for figure in figures}) == len(figures)


def test_every_figure_stands_in_the_reference(shared):
    """Under its data set: as a percentage, or as a share."""
    text = (shared / "reference" / "numbers.md").read_text()
    imagenet = re.search(r"### 2\.2.*?(?=\n### )", text, re.S)[0]
    recalls = re.search(r"### 2\.3.*?(?=\n### )", text, re.S)[0]
    for (name, dataset, metric), figures in published._TABLE.items():
        for figure in figures:
            percent = f"{100 * figure.value:.{figure.digits}f}"
            if dataset == AVERAGE:
                assert f"[{f'{figure.value:.4f}'.strip('0')}" in imagenet, name
            elif metric.startswith("acc"):
                assert re.search(rf"(?<![\d.]){re.escape(percent)}(?!\d)", imagenet), name
            elif figure.source == published.SIGLIP2:
                assert re.search(rf"/{re.escape(percent)}(?!\d)", imagenet), name
            else:
                assert f"{figure.value:.3f}"[1:] in recalls, name


def test_all_names_of_the_same_weights_have_the_same_figures():
    plain = reported("ViT-B-32/openai", "imagenet1k", "acc1")
    hub = catalog.published()["ViT-B-32/openai"].hub
    assert len(plain) == 1
    for name in ("ViT-B-32-quickgelu/openai", "ViT-B-32/OpenAI", f"hf-hub:{hub}"):
        assert reported(name, "imagenet1k", "acc1") == plain
    for name in ("runs/digits", "ViT-B-32", "hf-hub:nobody/nothing", "", "ViT-B-32/openai2"):
        assert reported(name, "imagenet1k", "acc1") == ()
    assert reported("ViT-B-32/openai", "imagenet1k", "acc_wg") == ()
    assert reported("ViT-B-32/openai", "imagenetv2", "acc1") == ()


def test_two_sources_of_one_figure_are_both_told():
    sources = [one.source for one in reported("ViT-L-14-336/openai", "imagenet1k", "acc1")]
    assert sources == [published.TABLE, published.CLIP]


@pytest.mark.parametrize(
    "keys",
    [
        ("flickr30k", "retrieval/flickr_1k_test_image_text_retrieval"),
        ("mscoco_captions", "retrieval/mscoco_2014_5k_test_image_text_retrieval"),
    ],
)
def test_recalls_have_one_figure_under_the_names_of_both_suites_and_a_mean(keys):
    model = "ViT-B-16/openai"
    sides = [reported(model, keys[0], f"{s}_retrieval_recall@1")[0] for s in ("image", "text")]
    for key in keys:
        (mean,) = reported(model, key, "mean_recall@1")
        assert mean.value == pytest.approx((sides[0].value + sides[1].value) / 2)
        assert mean.source == f"{sides[0].source}; mean of both directions"
    assert reported("RN101/openai", keys[0], "mean_recall@1") == ()


def test_the_average_is_of_all_figures():
    (one,) = reported("ViT-B-32/openai", AVERAGE, "whatever")
    assert 0.5 < one.value < 0.6 and one.digits == 2
