"""What all figures share: their look, and how a drawn figure becomes the same bytes every time.

Each figure brings its own light card, so it reads the same on the light page, the dark page and paper. Colours are
Okabe and Ito's; shapes and dashes repeat what colour says.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from fllm.report.formatting import engineering, prefix, prefix_exponent

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
GREY, CARD, INK, _GRID = "#5F5F5F", "#FBFBF9", "#22262B", "#DCDDDA"
SIZE = (5.6, 3.9)  # inches
SMALL = 9.5  # points
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#6B7076",
    "axes.facecolor": CARD,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": CARD,
    "figure.titlesize": 10.5,
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "grid.color": _GRID,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "savefig.facecolor": CARD,
    "svg.fonttype": "path",
    "svg.hashsalt": "fllm",
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Drawn:
    """A figure that is not saved yet."""

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Picture:
    """One drawn figure: its file name, what it says, and its bytes in two formats."""

    name: str
    caption: str
    alt: str
    svg: bytes
    png: bytes


def own_style() -> AbstractContextManager[None]:
    """Draw in our style, whatever the user's matplotlibrc says."""
    return style.context(["default", _STYLE], after_reset=True)


def picture(name: str, draw: Callable[[], Drawn]) -> Picture:
    """Draw one figure and save it twice, without dates or versions in the files."""
    with own_style():
        drawn = draw()
        svg, png = io.BytesIO(), io.BytesIO()
        drawn.figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        drawn.figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Picture(name, drawn.caption, drawn.alt, svg.getvalue(), png.getvalue())


def nothing(figure: Figure, axes: Axes, caption: str, why: str = "No data") -> Drawn:
    """Return an empty figure that says so."""
    note(axes, why)
    return Drawn(figure, caption, f"Empty figure: {why[0].lower()}{why[1:]}.")


def note(axes: Axes, why: str = "No data") -> None:
    """Write into empty axes why they are empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=GREY)


def rows_figure(inches: float) -> tuple[Figure, Axes]:
    """Return a figure of horizontal rows, read from the top, with the inches that its rows take."""
    figure = Figure(figsize=(SIZE[0], inches))
    axes = figure.subplots()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def name_rows(axes: Axes, names: Sequence[str], places: Sequence[float] | None = None, bold: str = "") -> None:
    """Name the rows from the top, those that match ``bold`` in bold."""
    places = range(len(names)) if places is None else places
    shown = ["\n".join(shorten(line) for line in name.split("\n")) for name in names]
    axes.set_yticks(places, shown, fontsize=SMALL)
    axes.set_ylim(max(places, default=0.0) + 0.6, min(places, default=0.0) - 0.6)
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if bold and re.fullmatch(bold, label.get_text(), re.DOTALL) else "normal")


def shorten(text: str, most: int = 34) -> str:
    """Cut a text that would leave no room for the figure."""
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def shorten_middle(text: str, most: int) -> str:
    """Cut the middle out of a text: names of one kind often differ at their end."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end].rstrip()}\N{HORIZONTAL ELLIPSIS}{text[-end:].lstrip()}"


def ink_on(color: tuple[float, ...] | str) -> str:
    """Return black or white, whichever is readable on a colour, by its relative luminance (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#FFFFFF" if luminance < 0.179 else "#000000"


def percent_tick(value: float, _: float) -> str:
    """Write a fraction on an axis in percent: 75, 77.5."""
    return f"{round(100 * value, 6):g}"


def beside(axes: Axes, row: float, text: str, points: float, **look: Any) -> None:
    """Write right of the axes, the text ending so many points behind them."""
    if text:
        whole: dict[str, Any] = {"fontsize": SMALL, "ha": "right", "va": "center", "annotation_clip": False, **look}
        place = axes.get_yaxis_transform()
        axes.annotate(text, (1.0, row), (points, 0), xycoords=place, textcoords="offset points", **whole)


def log_axis(axes: Axes, unit: str, ticks: int = 5) -> None:
    """Make the x axis logarithmic, its ticks quantities with a prefix: 1 nJ, 100 nJ; about so many."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))
    axes.xaxis.minorticks_off()


def _tick(value: float, unit: str) -> str:
    """Write a power of ten without the digits that a table would show."""
    if value <= 0:
        return engineering(value, unit)
    exponent = prefix_exponent(value)
    return f"{value / 10.0**exponent:g} {prefix(exponent)}{unit}"
