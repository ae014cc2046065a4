"""A small SVG with the differences of one contrast, for a row of a table.

It does not need a plotting library, so that a README can contain it, and equal numbers give equal
bytes.
"""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from experiments.reports import style
from experiments.reports.comparison import Comparison

WIDTH, HEIGHT, MARGIN = 320, 88, 22
TOP, MEAN, SEEDS, AXIS = 16, 26, 42, 54  # distances from the top
TICKS = 5  # the approximate number of intervals
TEXT = "#1f2328"


def strip(compared: Comparison, title: str) -> str:
    """Return a figure with every seed, the mean with its 95 % interval, zero and delta.

    Args:
        title: the text for screen readers and tooltips.
    """
    low, high = _extent(compared)

    def at(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low)

    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    svg.attrib |= {"width": str(WIDTH), "height": str(HEIGHT)}
    svg.attrib |= {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "font-family": "sans-serif"}
    svg.set("font-size", "11")
    ElementTree.SubElement(svg, "title").text = title
    _add(svg, "rect", width=WIDTH, height=HEIGHT, rx=4, fill="#ffffff")
    whole = compared.unit == "ratio" and high - low >= 2  # ticks at powers of two
    _axis(svg, compared, [(tick, at(tick)) for tick in _ticks(low, high, 1 if whole else 0)])
    _line(svg, (at(0), TOP), (at(0), AXIS), style.GREY)
    for bound in _bounds(compared):
        _line(svg, (at(bound), TOP), (at(bound), AXIS), style.GREEN, dashed=True)
    label = f"delta {compared.text(compared.delta, sign=False)}"
    _text(svg, label, at(compared.delta), TOP - 5, style.GREEN)
    for d in compared.d:
        _add(svg, "circle", cx=at(d), cy=SEEDS, r=4, fill=style.BLUE, fill_opacity=0.5)
    _mean(svg, at(compared.mean), [at(bound) for bound in compared.interval95])
    ElementTree.indent(svg, space=" ")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _bounds(compared: Comparison) -> list[float]:
    delta = compared.delta
    return [-delta, delta] if compared.direction == "equal" else [delta]


def _extent(compared: Comparison) -> tuple[float, float]:
    values = [0.0, *compared.d, *compared.interval95, *_bounds(compared)]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _ticks(low: float, high: float, least: float) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten; the distance is at least `least`."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(least, power * next(digit for digit in (1, 2, 5, 10) if digit * power >= rough))
    first, last = math.ceil(low / step), math.floor(high / step)
    return [index * step for index in range(first, last + 1)]


def _axis(
    svg: ElementTree.Element, compared: Comparison, ticks: Sequence[tuple[float, float]]
) -> None:
    ratio = compared.unit == "ratio"
    _line(svg, (MARGIN, AXIS), (WIDTH - MARGIN, AXIS), style.GREY)
    for tick, x in ticks:
        _line(svg, (x, AXIS), (x, AXIS + 4), style.GREY)
        _text(svg, f"{2**tick:.3g}x" if ratio else f"{tick:.6g}", x, AXIS + 15, TEXT)
    words = "a / b" if ratio else f"a - b in {compared.unit}"
    _text(svg, f"{compared.metric}: {words}", WIDTH / 2, HEIGHT - 5, TEXT)


def _mean(svg: ElementTree.Element, x: float, interval: Sequence[float]) -> None:
    low, high = interval
    _line(svg, (low, MEAN), (high, MEAN), style.VERMILION, width=2)
    for end in interval:
        _line(svg, (end, MEAN - 4), (end, MEAN + 4), style.VERMILION, width=2)
    corners = [(x - 6, MEAN), (x, MEAN - 6), (x + 6, MEAN), (x, MEAN + 6)]
    points = " ".join(f"{left:.2f},{top}" for left, top in corners)
    _add(svg, "polygon", points=points, fill=style.VERMILION)


def _line(
    svg: ElementTree.Element,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    *,
    width: int = 1,
    dashed: bool = False,
) -> None:
    (x1, y1), (x2, y2) = start, end
    dash = {"stroke_dasharray": "4 3"} if dashed else {}
    _add(svg, "line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=color, stroke_width=width, **dash)


def _text(svg: ElementTree.Element, text: str, x: float, y: float, color: str) -> None:
    """Write text within the figure."""
    half = 3.1 * len(text)  # half of its approximate width
    x = min(max(x, half), WIDTH - half)
    _add(svg, "text", x=x, y=y, fill=color, text_anchor="middle").text = text


def _add(svg: ElementTree.Element, name: str, **attributes: float | str) -> ElementTree.Element:
    formatted = {
        key.replace("_", "-"): f"{value:.2f}" if isinstance(value, float) else str(value)
        for key, value in attributes.items()
    }
    return ElementTree.SubElement(svg, name, formatted)
