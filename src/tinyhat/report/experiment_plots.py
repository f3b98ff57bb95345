"""The plots of an experiment's report: speed against quality, and a curve for every plan."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinyhat.report.plots import BASE, INK, MISS, MODEL, MUTED, _figure, _svg

_LOUD = 3  # curves that are drawn strong: those that end furthest from fp32
_NAME = (0.2, 0.05)  # width and height of a plan's name, as shares of the axes


def frontier(name: str, quality: str, points: Mapping[str, tuple[float, float, float]], less_is_better: bool) -> str:
    """Draw documents/s against quality, a dot with its deviation for every plan.

    fp32 and the plans that none beats in both are named first, others where their name lies on no other: the table
    beside the plot has them all.

    Args:
        name: unique on the page.
        quality: of the vertical axis.
        points: plan to (documents/s, mean quality, its deviation over seeds).
        less_is_better: quality is a loss.
    """
    sign = -1.0 if less_is_better else 1.0
    best = {
        p
        for p, (speed, value, _) in points.items()
        if not any(s > speed and sign * v > sign * value for s, v, _ in points.values())
    }
    with _figure(7.4, 4.4) as (figure, axis):
        for plan, (speed, value, deviation) in points.items():
            colour = INK if plan == "fp32" else MODEL if plan in best else BASE
            axis.errorbar([speed], [value], yerr=[deviation], fmt="o", color=colour, markersize=4, elinewidth=0.7)
        axis.margins(x=0.16)
        figure.draw_without_rendering()  # now the axes have their limits
        taken: list[tuple[float, float]] = []
        for plan in sorted(points, key=lambda p: (p != "fp32", p not in best)):
            at = axis.transAxes.inverted().transform(axis.transData.transform(points[plan][:2]))
            if all(abs(at[0] - x) > _NAME[0] or abs(at[1] - y) > _NAME[1] for x, y in taken):
                taken.append((at[0], at[1]))
                axis.annotate(
                    plan, points[plan][:2], textcoords="offset points", xytext=(5, 3), fontsize=7, color=MUTED
                )
        axis.set_xlabel("documents/s")
        axis.set_ylabel(quality.replace("_", " "))
        return _svg(figure, name, f"documents per second against {quality} of {len(points)} plans")


def curves(name: str, title: str, found: Mapping[str, tuple[list[float], list[float]]]) -> str:
    """Draw one quantity over steps for every plan; fp32 and the plans that end furthest from it are named.

    The axis is that of the plans that reach the last step: one that diverges leaves the frame.

    Args:
        name: unique on the page.
        title: what the vertical axis shows.
        found: plan to steps and values.
    """
    last = {plan: values[-1] for plan, (_, values) in found.items() if values}
    end = max((steps[-1] for steps, _ in found.values() if steps), default=0.0)
    whole = [v for steps, values in found.values() if steps and steps[-1] == end for v in values if v > 0]
    base = last.get("fp32", float(np.median(list(last.values()))) if last else 0.0)
    far = sorted((p for p in last if p != "fp32"), key=lambda p: -abs(last[p] - base))[:_LOUD]
    with _figure(7.4, 3.2) as (figure, axis):
        axis.set_yscale("log")
        if whole:
            axis.set_ylim(min(whole) / 1.15, max(whole) * 1.15)
        low, high = axis.get_ylim()
        heights: list[float] = []
        for plan in [*(p for p in found if p not in far and p != "fp32"), *far, *(["fp32"] if "fp32" in found else [])]:
            steps, values = found[plan]
            loud = plan in far or plan == "fp32"
            colour = INK if plan == "fp32" else MISS if plan in far else BASE
            axis.plot(steps, values, color=colour, linewidth=1.4 if loud else 0.7, zorder=3 if loud else 2)
            if loud and values:
                at = min(max(values[-1], low), high)
                height = (np.log(at) - np.log(low)) / (np.log(high) - np.log(low))
                while any(abs(height - other) < _NAME[1] for other in heights):
                    height -= _NAME[1]
                heights.append(height)
                axis.annotate(
                    plan, (steps[-1], height), xycoords=("data", "axes fraction"), xytext=(4, 0),
                    textcoords="offset points", fontsize=7, color=MUTED,
                )  # fmt: skip
        # matplotlib writes powers of ten as formulas, which the page would show as they are typed
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: "" if f"{value:e}"[0] not in "2345" else f"{value:g}")
        axis.set_xlabel("step")
        axis.set_ylabel(title)
        return _svg(figure, name, f"{title} over steps, {len(found)} plans")
