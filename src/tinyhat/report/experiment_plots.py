"""The plots of an experiment's report: speed against quality, and a curve for every plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinyhat.report.plots import GRID, INK, MISS, MODEL, MUTED, _figure, _svg

_LOUD = 3  # curves that are drawn strong: those that end furthest from fp32


def frontier(name: str, quality: str, points: Mapping[str, tuple[float, float, float]]) -> str:
    """Draw documents/s against quality, a dot with its deviation for every plan.

    Args:
        name: unique on the page.
        quality: of the vertical axis.
        points: plan to (documents/s, mean quality, its deviation over seeds).
    """
    with _figure(7.4, 4.4) as (figure, axis):
        for plan, (speed, value, deviation) in points.items():
            colour = INK if plan == "fp32" else MODEL
            axis.errorbar([speed], [value], yerr=[deviation], fmt="o", color=colour, markersize=4, elinewidth=0.7)
            axis.annotate(plan, (speed, value), textcoords="offset points", xytext=(5, 3), fontsize=7, color=MUTED)
        axis.set_xlabel("documents/s")
        axis.set_ylabel(quality.replace("_", " "))
        return _svg(figure, name, f"documents per second against {quality} of {len(points)} plans")


def curves(name: str, title: str, found: Mapping[str, tuple[list[float], list[float]]]) -> str:
    """Draw one quantity over steps for every plan; fp32 and the plans that end furthest from it are named.

    Args:
        name: unique on the page.
        title: what the vertical axis shows.
        found: plan to steps and values.
    """
    with _figure(7.4, 3.2) as (figure, axis):
        last = {plan: values[-1] for plan, (_, values) in found.items() if values}
        base = last.get("fp32", float(np.median(list(last.values()))) if last else 0.0)
        far = sorted((p for p in last if p != "fp32"), key=lambda p: -abs(last[p] - base))[:_LOUD]
        for plan, (steps, values) in found.items():
            loud = plan in far or plan == "fp32"
            colour = INK if plan == "fp32" else MISS if plan in far else GRID
            axis.plot(steps, values, color=colour, linewidth=1.4 if loud else 0.9, zorder=3 if loud else 2)
            if loud and values:
                axis.annotate(plan, (steps[-1], values[-1]), xytext=(4, 0), textcoords="offset points", fontsize=7)
        axis.set_xlabel("step")
        axis.set_ylabel(title)
        axis.set_yscale("log")
        return _svg(figure, name, f"{title} over steps, {len(found)} plans")
