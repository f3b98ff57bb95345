"""The plot of `tinyhat layers`: the probe's score over the layers, a line a pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tinyhat.evaluate.probe import Probed
from tinyhat.report.plots import available
from tinyhat.run import atomic_path


def draw_layers(
    path: Path, metric: str, poolings: Mapping[str, Sequence[Probed]], mixtures: Mapping[str, float]
) -> bool:
    """Draw a PNG, without pyplot; return False and draw nothing where matplotlib is not installed.

    Args:
        path: the file.
        metric: what the probe measured.
        poolings: name to what the probe found on hidden states 0, 1, 2 and so on; bars are standard errors.
        mixtures: name to score of choices of several layers, drawn as level lines.
    """
    if not available():
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, found in poolings.items():
        axes.errorbar(
            range(len(found)), [p.score for p in found], [p.error for p in found], label=name, capsize=2, linewidth=1.4
        )
    for i, (name, score) in enumerate(mixtures.items()):
        axes.axhline(score, label=name, color="0.35", linewidth=1, linestyle=("--", ":", "-.")[i % 3])
    axes.set_xlabel("hidden state (0: the embedding output)")
    axes.set_ylabel(f"{metric} of a linear probe")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return True
