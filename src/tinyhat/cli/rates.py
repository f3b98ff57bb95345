"""What `tinyhat train --find-rate` prints: the loss over the rate, and the rate to take."""

from __future__ import annotations

from typing import Any

WIDTH = 40


def rate_table(curve: Any) -> str:
    """Return every fourth step as a line with a bar, then the suggestion.

    Args:
        curve: a `tinyhat.train.find_rate.RateCurve`.
    """
    low, high = min(curve.losses), max(curve.losses)
    lines = [f"{'rate':>10}{'loss':>12}"]
    for rate, loss in list(zip(curve.rates, curve.losses, strict=True))[::4]:
        bar = "#" * round(WIDTH * (loss - low) / max(high - low, 1e-12))
        lines.append(f"{rate:10.1e}{loss:12.4g}  {bar}".rstrip())
    lines.append(f"the loss is lowest at {curve.highest:.1e}; near that rate training is about to break")
    return "\n".join([*lines, f"try --learning-rate {curve.suggested:.1e}"])
