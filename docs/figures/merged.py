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
NORMALIZATIONS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "batch": lambda example, channel: (channel,),
    "ghost_batch": lambda example, channel: (example // 2, channel),
    "layer": lambda example, channel: (example,),
    "group": lambda example, channel: (example, channel // 3),
    "instance": lambda example, channel: (example, channel),
}


def picture(merged: Callable[[int, int], tuple[int, ...]]) -> str:
    """Return the SVG in which the cells of one label have one color."""
    width, height = LEFT + CHANNELS * CELL + 8, TOP + EXAMPLES * CELL + 8
    cells = [(n, c) for n in range(EXAMPLES) for c in range(CHANNELS)]
    labels = list(dict.fromkeys(merged(*cell) for cell in cells))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{2 * width}" height="{2 * height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" fill="#333">channels →</text>',
        f'<text x="6" y="{TOP + 20}" fill="#333">examples ↓</text>',
    ]
    for example, channel in cells:
        number = labels.index(merged(example, channel))
        color, pale = COLORS[number % len(COLORS)], number // len(COLORS)
        for position in range(POSITIONS**2):
            x = LEFT + channel * CELL + position % POSITIONS * (SQUARE + GAP)
            y = TOP + example * CELL + position // POSITIONS * (SQUARE + GAP)
            lines.append(
                f'<rect x="{x}" y="{y}" width="{SQUARE}" height="{SQUARE}" fill="{color}" '
                f'fill-opacity="{1 - 0.3 * pale:.1f}"/>'
            )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    for name, merged in NORMALIZATIONS.items():
        Path(__file__).with_name(f"{name}.svg").write_text(picture(merged))
