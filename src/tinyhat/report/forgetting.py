"""The report's section on what fine-tuning changed in the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinyhat.report import plots


def forgetting_section(metrics: Mapping[str, Any], drawn: bool) -> dict[str, Any]:
    """Return the text's name, lines of (what, before, after) and the plot; empty where nothing was measured.

    Args:
        metrics: metrics.json, with ``forgetting`` as `tinyhat.train.forgetting` returns it.
        drawn: plots can be drawn.
    """
    facts = metrics.get("forgetting") or {}
    layers = facts.get("layers") or []
    if not layers:
        return {}
    probe = facts.get("probe") or {}
    lines = []
    if probe:
        name = f"linear probe: {probe['task']} ({probe['pairs']} pairs; chance is 0.5)"
        lines.append((name, probe["before"], probe["refitted"]))
        lines.append(("the probe fitted before, read from the states after", probe["before"], probe["kept"]))
    loss = facts.get("masked_lm_loss")
    if loss:
        lines.append(("masked-LM loss, nats a masked token (lower is better)", loss["before"], loss["after"]))
    section: dict[str, Any] = {"text": facts.get("text"), "tokens": facts.get("tokens"), "lines": lines}
    columns = [[layer[key] for layer in layers] for key in ("layer", "cosine", "cka")]
    if drawn:
        section["plot"] = plots.similarity(columns[0], columns[1], columns[2])
    return section
