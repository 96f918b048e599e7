"""How the charts of the report look: as SVG without time and random id, so that equal data gives equal bytes."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

plt.rcParams.update({
    "svg.hashsalt": "scan",
    "svg.fonttype": "none",  # text stays text, which the reader's browser shows in any script
    "text.parse_math": False,  # the name of a class may be $$
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
})  # fmt: skip

BLUE, ORANGE = "#2563ab", "#d9822b"
MAX_CLUSTERS_DRAWN = 50
MAX_NAME = 16  # characters of a class name

Rows = list[dict[str, Any]]  # of a plot's CSV file; numbers may be text
Chart = dict[str, str]  # title, text and svg; empty if there is nothing to draw


@contextlib.contextmanager
def any_script() -> Iterator[None]:
    """Names are drawn without a warning for each character that no font has here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def chart_of(title: str, text: str, figure: Figure) -> Chart:
    """The figure as SVG, which it is closed for."""
    buffer = io.StringIO()
    with any_script():
        figure.tight_layout()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return {"title": title, "text": text, "svg": svg[svg.index("<svg") :]}


def short_name(name: str) -> str:
    """``name`` in at most ``MAX_NAME`` characters."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
