"""How results look in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tinyhat.evaluate.bootstrap import without_width

ROWS = {
    "multi": ("micro_f1", "macro_f1", "precision_at_1", "precision_at_5", "rp_at_5", "ndcg_at_5", "exact_match"),
    "single": ("accuracy", "macro_f1", "weighted_f1", "log_loss"),
    "regression": ("pearson", "spearman", "mae", "rmse", "r2"),
}


def metrics_table(metrics: dict[str, Any]) -> None:
    """Print the main numbers with their intervals, beside the linear baseline where there is one (to stdout)."""
    baseline = metrics.get("baseline")
    shown = [name for name in ROWS[metrics["task"]] if metrics.get(name) is not None]
    intervals = {name: pair for name, pair in (metrics.get("intervals") or {}).items() if name in shown}
    table = Table(title=f"{metrics['documents']} {metrics['split']} documents", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95% interval", justify="right")
    if baseline:
        table.add_column("linear baseline", justify="right")
    for name in shown:
        cells = [name, f"{metrics[name]:.4f}"]
        if intervals:
            low_high = intervals.get(name)
            cells.append(f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "")
        if baseline:
            cells.append(f"{baseline[name]:.4f}" if baseline.get(name) is not None else "")
        table.add_row(*cells)
    console = Console(width=None)
    console.print(table)
    remark = without_width({"intervals": intervals, "documents": metrics["documents"]})
    if remark:
        console.print(remark)
