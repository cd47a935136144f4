"""A reliability curve as a drawing inside a page, in the page's colours."""

from clip_jax.eval.classification import Calibration
from clip_jax.eval.page_parts import Html, tag

LEFT, TOP, SIZE = 40, 10, 240
"""Of the square of 0 to 100%, in units of the drawing."""


def reliability_chart(curve: Calibration, label: str) -> Html:
    """Accuracy (up) by confidence (right), a bar for the samples of each bin.

    Args:
      label: what is read to those who do not see it.
    """
    some = curve.counts > 0
    dots = list(zip(curve.confidence[some].tolist(), curve.accuracy[some].tolist(), strict=True))
    heights = (curve.counts / curve.counts.max()).tolist()
    edges = curve.edges.tolist()
    bars = [
        tag(
            "rect",
            x=_x(e),
            y=_y(h),
            width=_x(f) - _x(e) - 1,
            height=_y(0.0) - _y(h),
            class_="amount",
        )
        for e, f, h in zip(edges[:-1], edges[1:], heights, strict=True)
        if h
    ]
    drawn = [
        *bars,
        *_scale(),
        tag("line", x1=_x(0.0), y1=_y(0.0), x2=_x(1.0), y2=_y(1.0), class_="ideal"),
        tag("polyline", points=" ".join(f"{_x(c)},{_y(a)}" for c, a in dots), class_="curve"),
        *(tag("circle", cx=_x(c), cy=_y(a), r=3.5, class_="dots") for c, a in dots),
    ]
    box = f"0 0 {LEFT + SIZE + 20} {TOP + SIZE + 46}"
    return tag("svg", *drawn, viewBox=box, role="img", aria_label=label)


def _scale() -> list[Html]:
    told = "probability of the class given"
    drawn = [tag("text", told, x=_x(0.5), y=_y(0.0) + 36, text_anchor="middle")]
    for at in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn += [
            tag("line", x1=_x(0.0), x2=_x(1.0), y1=_y(at), y2=_y(at), class_="axis"),
            tag("text", f"{at:.0%}", x=LEFT - 6, y=_y(at) + 4, text_anchor="end"),
            tag("text", f"{at:.0%}", x=_x(at), y=_y(0.0) + 18, text_anchor="middle"),
        ]
    return drawn


def _x(share: float) -> float:
    return round(LEFT + SIZE * share, 2)


def _y(share: float) -> float:
    return round(TOP + SIZE * (1 - share), 2)
