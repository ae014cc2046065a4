"""Draw what each normalization merges: `python docs/figures/merged.py` writes beside it.

A picture is a batch: rows are examples, columns channels, and the small squares of a cell its
positions. Squares of one color share a mean and a variance.
"""

from collections.abc import Callable
from pathlib import Path

EXAMPLES, CHANNELS, POSITIONS = 4, 6, 3
CELL, SQUARE, GAP, LEFT, TOP = 34, 9, 2, 78, 34
# Okabe and Ito's colors, which the color-blind tell apart, and lighter ones of the same hues.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c8c8c", "#f0e442")
Label = tuple[int, ...]
NORMALIZATIONS: dict[str, Callable[[int, int], Label]] = {
    "batch": lambda example, channel: (channel,),
    "ghost_batch": lambda example, channel: (example // 2, channel),
    "layer": lambda example, channel: (example,),
    "group": lambda example, channel: (example, channel // 3),
    "instance": lambda example, channel: (example, channel),
}


def shared(merged: Callable[[int, int], Label]) -> Callable[[int, int], str]:
    """Return the paint of a cell, one color for the cells of one label."""
    cells = [(n, c) for n in range(EXAMPLES) for c in range(CHANNELS)]
    labels = list(dict.fromkeys(merged(*cell) for cell in cells))

    def paint(example: int, channel: int) -> str:
        number = labels.index(merged(example, channel))
        color, pale = COLORS[number % len(COLORS)], number // len(COLORS)
        return f'fill="{color}" fill-opacity="{1 - 0.3 * pale:.1f}"'

    return paint


def streamed(example: int, channel: int) -> str:
    """Return the paint of a cell: what a channel saw, paler the longer ago, and what is next."""
    color, age = COLORS[channel], EXAMPLES - 1 - example
    if age == 0:
        return f'fill="white" stroke="{color}" stroke-width="1.5"'
    return f'fill="{color}" fill-opacity="{0.5 ** (age - 1):.2f}"'


def picture(paint: Callable[[int, int], str], rows: str = "examples") -> str:
    """Return the SVG of a batch whose cells are painted."""
    width, height = LEFT + CHANNELS * CELL + 8, TOP + EXAMPLES * CELL + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{2 * width}" height="{2 * height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" fill="#333">channels →</text>',
        f'<text x="6" y="{TOP + 20}" fill="#333">{rows} ↓</text>',
    ]
    for example in range(EXAMPLES):
        for channel in range(CHANNELS):
            for position in range(POSITIONS**2):
                x = LEFT + channel * CELL + position % POSITIONS * (SQUARE + GAP)
                y = TOP + example * CELL + position // POSITIONS * (SQUARE + GAP)
                lines.append(
                    f'<rect x="{x}" y="{y}" width="{SQUARE}" height="{SQUARE}" '
                    f"{paint(example, channel)}/>"
                )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    pictures = {name: picture(shared(merged)) for name, merged in NORMALIZATIONS.items()}
    pictures["online"] = picture(streamed, "time")
    for name, svg in pictures.items():
        Path(__file__).with_name(f"{name}.svg").write_text(svg)
