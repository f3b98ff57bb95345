"""The plots of the report, as inline SVG that takes its colours and its typeface from the page.

matplotlib draws with stand-in colours; they leave as CSS variables (`var(--ink)`), so that one drawing serves light,
dark and print. Texts stay texts (a screen reader and a search find them). Every function returns a string starting with
`<svg`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# stand-in colours: nobody else draws with them, and `_svg` replaces them by the page's variables
INK, MUTED, GRID, MODEL, BASE, MISS, PAPER = (
    "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f", "#101112", "#131415",
)  # fmt: skip
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", MODEL: "model", BASE: "base", MISS: "miss", PAPER: "paper"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9.0, "text.color": INK, "text.parse_math": False,
    "axes.edgecolor": MUTED, "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.spines.left": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "axes.labelcolor": MUTED, "axes.titlecolor": MUTED, "axes.titlelocation": "left", "axes.titlesize": 9.0,
    "axes.titleweight": "normal", "axes.titlepad": 8.0, "grid.color": GRID, "grid.linewidth": 0.6,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.major.size": 3.0, "ytick.major.size": 0.0,
    "xtick.major.width": 0.6, "xtick.minor.visible": False, "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "figure.autolayout": False,
}  # fmt: skip
# pixels of a raster carry their own colour: mid-tones that stand on white and on near-black alike
_RASTER_RIGHT, _RASTER_WRONG = (0.29, 0.53, 0.80), (0.85, 0.42, 0.25)

Points = Sequence[float] | npt.NDArray[Any]


def available() -> bool:
    """Return whether matplotlib is installed; without it the page says so where the plots would be."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def _figure(width: float = 4.6, height: float = 2.9) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure of width x height inches in the house style, drawn without pyplot (no global state)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Figure, name: str, alt: str) -> str:
    """Return the figure as an SVG element for an HTML page: no XML head, no ids that clash, the page's colours."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # a label in a script that the layout font lacks: the browser sets the text, with its own fonts
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = text.replace("'DejaVu Sans'", "var(--sans)")
    box = re.search(r'viewBox="[^"]+"', text)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{label}">'
    return re.sub(r"\n\s*", "\n", head + text[text.index(">") + 1 :]).strip()


def _thin(x: Points, y: Points, most: int = 300) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return at most `most` points: the means of equal runs of neighbours, so that a long log stays a light plot."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) <= most:
        return x, y
    cuts = np.linspace(0, len(x), most + 1).astype(int)[:-1]
    sizes = np.diff(np.append(cuts, len(x)))
    return np.add.reduceat(x, cuts) / sizes, np.add.reduceat(y, cuts) / sizes


def _smooth(y: npt.NDArray[Any], share: float = 0.04) -> npt.NDArray[Any]:
    """Return the centred running mean over `share` of the points, shorter at both ends."""
    half = max(1, int(len(y) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    low = np.maximum(np.arange(len(y)) - half, 0)
    high = np.minimum(np.arange(len(y)) + half + 1, len(y))
    smoothed: npt.NDArray[Any] = (sums[high] - sums[low]) / (high - low)
    return smoothed


def curve(
    name: str, title: str, step: Points, value: Points, dev: tuple[Points, Points] | None = None, noisy: bool = True
) -> str:
    """Draw one quantity of the log over optimiser steps: each step faint, the running mean strong.

    Args:
        name: unique on the page; becomes part of the SVG's ids.
        title: what the vertical axis shows, with its unit.
        step: S step numbers (may be empty when there is `dev`).
        value: S values.
        dev: steps and values of the evaluations on dev, drawn as joined dots.
        noisy: draw the running mean over the steps; False draws the values themselves.
    """
    with _figure() as (figure, axes):
        if len(step):
            x, y = _thin(step, value)
            if noisy:
                axes.plot(x, y, color=MODEL, alpha=0.3, linewidth=0.8)
            axes.plot(x, _smooth(y) if noisy else y, color=MODEL)
        if dev is not None and len(dev[0]):
            axes.plot(dev[0], dev[1], color=BASE if len(step) else MODEL, marker="o", markersize=3.5)
            axes.annotate(
                f"dev {dev[1][-1]:.3g}", (dev[0][-1], dev[1][-1]), (-2, 7), textcoords="offset points", ha="right",
                color=BASE if len(step) else MODEL,
            )  # fmt: skip
        axes.margins(y=0.12)
        axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
        axes.set_title(title)
        axes.set_xlabel("optimiser step")
        return _svg(figure, name, f"{title} over optimiser steps")


def similarity(layer: Points, cosine: Points, cka: Points) -> str:
    """Draw how alike the states behind every layer are before and after fine-tuning.

    Args:
        layer: K + 1 numbers, 0 is the embeddings.
        cosine: mean cosine of a token's states.
        cka: linear CKA.
    """
    from matplotlib.ticker import MaxNLocator

    with _figure() as (figure, axes):
        for values, colour, name in ((cosine, BASE, "cosine"), (cka, MODEL, "CKA")):
            axes.plot(layer, values, color=colour, marker="o", markersize=3.5, label=name)
        axes.set_ylim(min(0.0, float(np.min(cosine)) - 0.05), 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left", frameon=False, labelcolor=INK, handletextpad=0.5, borderaxespad=0.2)
        axes.set_xlabel("layer (0: embeddings)")
        axes.set_title("similarity to the pretrained encoder")
        return _svg(figure, "forgetting", "Similarity of every layer to the pretrained encoder")


def precision_recall(
    precision: Points, recall: Points, chosen: tuple[float, float] | None, baseline: tuple[float, float] | None
) -> str:
    """Draw the micro precision-recall curve with lines of equal F1 and the operating points.

    Args:
        precision: P precisions, one per score cut.
        recall: P recalls, in the same order.
        chosen: (precision, recall) of the decision, or None.
        baseline: (precision, recall) of the linear baseline's decision, or None.
    """
    with _figure(4.6, 3.7) as (figure, axes):
        for f1 in (0.2, 0.4, 0.6, 0.8):
            r = np.linspace(f1 / (2 - f1), 1, 60)
            axes.plot(r, f1 * r / (2 * r - f1), color=GRID, linewidth=0.8)
            axes.annotate(
                f"F1 {f1:.1f}", (1.0, f1 / (2 - f1)), (3, 0), textcoords="offset points", va="center", color=MUTED,
                fontsize=7.5, annotation_clip=False,
            )  # fmt: skip
        axes.plot(recall, precision, color=MODEL)
        for point, colour, word in ((baseline, BASE, "linear baseline"), (chosen, MODEL, "decision")):
            if point is not None:
                axes.plot(
                    [point[1]], [point[0]], "o", color=colour, markersize=6, markeredgecolor=PAPER, label=word, zorder=5
                )
        if chosen is not None or baseline is not None:
            axes.legend(loc="lower left", frameon=False, labelcolor=INK, handletextpad=0.2, borderaxespad=0.2)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall (micro)")
        axes.set_title("precision (micro)")
        return _svg(figure, "pr", "Micro precision over recall")


def reliability(confidence: Points, correct: Points, counts: Points) -> str:
    """Draw accuracy over confidence in bins against the diagonal; dots grow with the documents in a bin.

    Args:
        confidence: mean probability of the decided label per bin (bins with documents only).
        correct: share of right decisions per bin.
        counts: documents per bin.
    """
    with _figure(4.6, 3.7) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        size = 12 + 160 * np.asarray(counts, dtype=float) / max(1, np.max(counts))
        axes.plot(confidence, correct, color=MODEL, linewidth=1.0, alpha=0.6)
        axes.scatter(confidence, correct, s=size, color=MODEL, edgecolors=PAPER, linewidths=0.8, zorder=3)
        axes.set(xlim=(0, 1.03), ylim=(0, 1.05), xlabel="probability of the decided label (mean of a bin)")
        axes.set_title("share decided right")
        return _svg(figure, "reliability", "Share decided right over probability of the decided label")


def confusion(matrix: npt.NDArray[Any], names: Sequence[str]) -> str:
    """Draw a confusion matrix, each row in shares of its true label; right in blue, wrong in orange.

    Colour grows with the square root of the share, so that rare confusions can be seen beside the diagonal.

    Args:
        matrix: int [L, L], rows true, columns decided.
        names: L label names, written on the axes up to 20 of them.
    """
    counts = np.asarray(matrix, dtype=np.float64)
    share = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    image = np.empty((*share.shape, 4))
    image[..., :3] = _RASTER_WRONG
    image[np.arange(len(share)), np.arange(len(share)), :3] = _RASTER_RIGHT
    image[..., 3] = share
    named = len(names) <= 20
    with _figure(4.6, 4.6 if named else 4.0) as (figure, axes):
        axes.imshow(image, interpolation="none", aspect="equal")
        axes.grid(False)
        for side in ("left", "right", "top", "bottom"):
            axes.spines[side].set_visible(True)
            axes.spines[side].set_color(GRID)
        if named:
            short = [name if len(name) <= 18 else name[:17] + "…" for name in names]
            axes.set_xticks(range(len(names)), short, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(names)), short)
        else:
            axes.set(xticks=[], yticks=[])
        axes.set_xlabel("decided label")
        axes.set_ylabel("true label")
        return _svg(figure, "confusion", f"Confusion matrix of {len(names)} labels")


def frequency(counts: Points, f1: Points, frequent: int) -> str:
    """Draw mean F1 (and the middle half of the labels) over training documents, in bins that double in width.

    Args:
        counts: training documents of the M labels that occur in the evaluated split.
        f1: F1 of those labels.
        frequent: training documents from which a label is called frequent; drawn as a line.
    """
    counts, f1 = np.asarray(counts, dtype=np.float64), np.asarray(f1, dtype=np.float64)
    bins = np.floor(np.log2(np.maximum(counts, 1))).astype(int)
    centre, mean, low, high = [], [], [], []
    for b in np.unique(bins):
        inside = f1[bins == b]
        centre.append(np.exp(np.log(np.maximum(counts[bins == b], 1)).mean()))
        mean.append(inside.mean())
        low.append(np.quantile(inside, 0.25))
        high.append(np.quantile(inside, 0.75))
    with _figure() as (figure, axes):
        axes.fill_between(centre, low, high, color=MODEL, alpha=0.16, linewidth=0)
        axes.plot(centre, mean, color=MODEL, marker="o", markersize=3.5)
        _log_counts(axes, np.min(counts), np.max(counts))
        axes.set_ylim(0, 1.02)
        if np.min(counts) < frequent < np.max(counts):
            axes.axvline(frequent, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                "frequent →", (frequent, 1.0), (4, 0), textcoords="offset points", va="top", color=MUTED, fontsize=8
            )
        axes.set_xlabel("training documents of the label")
        axes.set_title("F1: mean, and the middle half of labels")
        return _svg(figure, "frequency", "F1 of labels over their number of training documents")


def _log_counts(axes: Axes, low: float, high: float) -> None:
    """Give the horizontal axis a logarithmic scale with plain numbers (1, 10, 1,000) as ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    steps = (1.0,) if high / max(low, 1) > 50 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)


def lengths(edges: Points, counts: Points, max_tokens: int | None) -> str:
    """Draw how many documents have how many tokens; documents longer than the encoder reads in orange.

    Args:
        edges: B + 1 bin edges in tokens, rising.
        counts: B documents per bin.
        max_tokens: what the encoder reads of a document, or None.
    """
    edges, counts = np.asarray(edges, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    logarithmic = np.diff(edges)[-1] > 4 * np.diff(edges)[0]  # the axis follows the bins: bars look equally wide
    edges = np.maximum(edges, 1.0) if logarithmic else edges
    cut = edges[:-1] >= (np.inf if max_tokens is None else max_tokens)
    with _figure() as (figure, axes):
        axes.bar(
            edges[:-1], counts, np.diff(edges), align="edge", color=[MISS if c else MODEL for c in cut],
            edgecolor=PAPER, linewidth=0.6,
        )  # fmt: skip
        if logarithmic:
            _log_counts(axes, edges[0], edges[-1])
        else:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        if max_tokens is not None and edges[0] < max_tokens < edges[-1]:
            axes.axvline(max_tokens, color=INK, linewidth=0.9)
            ends = np.log(edges[[0, -1]]) if logarithmic else edges[[0, -1]]
            right = (np.log(max_tokens) if logarithmic else max_tokens) > ends.mean()
            axes.annotate(
                f"{max_tokens:,} tokens read", (max_tokens, axes.get_ylim()[1]), (-4 if right else 4, -1),
                textcoords="offset points", va="top", ha="right" if right else "left", fontsize=8,
            )  # fmt: skip
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("tokens of a document" + (" (logarithmic)" if logarithmic else ""))
        axes.set_title("documents")
        return _svg(figure, "lengths", "Documents by number of tokens")


def scatter(name: str, target: str, true: Points, predicted: Points, most: int = 800) -> str:
    """Draw predicted over true values of one regression target, at most `most` documents evenly taken.

    Args:
        name: unique on the page.
        target: the target's name, for the axes.
        true: N true values.
        predicted: N predicted values.
        most: points drawn at most.
    """
    true, predicted = np.asarray(true, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    keep = np.unique(np.linspace(0, len(true) - 1, min(most, len(true))).astype(int))
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())]
    with _figure(4.6, 3.7) as (figure, axes):
        axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.scatter(true[keep], predicted[keep], s=9, color=MODEL, alpha=0.4, linewidths=0)
        axes.set_xlabel(f"true {target}")
        axes.set_title(f"predicted {target}")
        return _svg(figure, name, f"Predicted over true {target}")


def residuals(name: str, target: str, true: Points, predicted: Points) -> str:
    """Draw the histogram of predicted minus true values (N each) of one regression target."""
    error = np.asarray(predicted, dtype=np.float64) - np.asarray(true, dtype=np.float64)
    with _figure(4.6, 3.7) as (figure, axes):
        axes.hist(error, bins=min(40, max(8, int(np.sqrt(len(error))))), color=MODEL, edgecolor=PAPER, linewidth=0.6)
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_xlabel(f"predicted − true {target}")
        axes.set_title("documents")
        return _svg(figure, name, f"Residuals of {target}")
