"""A small SVG with the differences of a contrast at every place, for a row of a table.

It does not need a plotting library, so that a README can contain it, and equal numbers give equal
bytes.
"""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from experiments.reports import style
from experiments.reports.comparison import Comparison

WIDTH, MARGIN, TOP = 320, 22, 16
MEAN, SEEDS, ROW = 10, 26, 38  # distances from the top of a row, and its height
NAME = 14  # the height of the name of a place
BELOW = 34  # the height of the axis and its text
TICKS = 5  # the approximate number of intervals
TEXT = "#1f2328"


def strip(places: Sequence[Comparison], title: str) -> str:
    """Return a figure with every seed, the mean with its 95 % interval, zero and delta.

    Args:
        places: the comparisons of a contrast; each has a row.
        title: the text for screen readers and tooltips.
    """
    first = places[0]
    low, high = _extent(places)
    name = NAME if len(places) > 1 else 0
    axis = TOP + len(places) * (ROW + name)

    def at(value: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (value - low) / (high - low)

    svg = _figure(axis + BELOW, title)
    whole = first.unit == "ratio" and high - low >= 2  # ticks at powers of two
    _axis(svg, first, axis, [(tick, at(tick)) for tick in _ticks(low, high, 1 if whole else 0)])
    _line(svg, (at(0), TOP), (at(0), axis), style.GREY)
    for bound in first.bounds:
        _line(svg, (at(bound), TOP), (at(bound), axis), style.GREEN, dashed=True)
    label = f"delta {first.text(first.margin, sign=False)}"
    _text(svg, label, at(first.bounds[-1]), TOP - 5, style.GREEN)
    for row, compared in enumerate(places):
        top = TOP + row * (ROW + name) + name
        if name:
            _text(svg, compared.place, 0, top, TEXT)
        for d in compared.d:
            _add(svg, "circle", cx=at(d), cy=top + SEEDS, r=4, fill=style.BLUE, fill_opacity=0.4)
        _mean(svg, at(compared.mean), top + MEAN, [at(bound) for bound in compared.interval95])
    ElementTree.indent(svg, space=" ")
    return ElementTree.tostring(svg, encoding="unicode") + "\n"


def _figure(height: int, title: str) -> ElementTree.Element:
    svg = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    svg.attrib |= {"width": str(WIDTH), "height": str(height)}
    svg.attrib |= {"viewBox": f"0 0 {WIDTH} {height}", "font-family": "sans-serif"}
    svg.set("font-size", "11")
    ElementTree.SubElement(svg, "title").text = title
    _add(svg, "rect", width=WIDTH, height=height, rx=4, fill="#ffffff")
    return svg


def _extent(places: Sequence[Comparison]) -> tuple[float, float]:
    values = [0.0]
    for compared in places:
        values += [*compared.d, *compared.interval95, *compared.bounds]
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
    svg: ElementTree.Element,
    compared: Comparison,
    axis: float,
    ticks: Sequence[tuple[float, float]],
) -> None:
    ratio = compared.unit == "ratio"
    _line(svg, (MARGIN, axis), (WIDTH - MARGIN, axis), style.GREY)
    for tick, x in ticks:
        _line(svg, (x, axis), (x, axis + 4), style.GREY)
        _text(svg, f"{2**tick:.3g}x" if ratio else f"{tick:.6g}", x, axis + 15, TEXT)
    words = "a / b" if ratio else f"a - b in {compared.unit}"
    _text(svg, f"{compared.metric}: {words}", WIDTH / 2, axis + BELOW - 5, TEXT)


def _mean(svg: ElementTree.Element, x: float, y: float, interval: Sequence[float]) -> None:
    low, high = interval
    _line(svg, (low, y), (high, y), style.VERMILION, width=2)
    for end in interval:
        _line(svg, (end, y - 4), (end, y + 4), style.VERMILION, width=2)
    corners = [(x - 6, y), (x, y - 6), (x + 6, y), (x, y + 6)]
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
