"""The decision: how logits become labels, saved beside the weights it was made for, and applied the same everywhere.

Every runtime (predict, the linear model, later ONNX and HTTP) reads `decision.json` and nothing else. numpy only.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tinyhat.errors import UserError
from tinyhat.run import file_sha256, read_json, write_json
from tinyhat.types import BoolArray, FloatArray, Task

SCHEMA = 1
FILE = "decision.json"
VOTE_FILE = "vote.safetensors"  # of a learned vote
Activation = Literal["softmax", "sigmoid", "identity"]
RuleKind = Literal["argmax", "thresholds", "global", "top_k", "value"]


def activation_of(task: Task) -> Activation:
    """Return the activation that turns a task's logits into what users read."""
    names: dict[Task, Activation] = {"single": "softmax", "multi": "sigmoid", "regression": "identity"}
    return names[task]


class Rule(BaseModel):
    """How labels are chosen. Thresholds are on fp32 logits.

    argmax: the best label. thresholds: each label above its own. global: all labels above one. top_k: the k best.
    value: regression, the number itself. never: indices of labels that are not chosen, whatever their logits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: RuleKind
    thresholds: tuple[float, ...] | None = None
    threshold: float | None = None
    k: int | None = None
    never: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Rule:
        needed = {"thresholds": self.thresholds, "global": self.threshold, "top_k": self.k}
        if self.kind in needed and needed[self.kind] is None:
            raise ValueError(f"rule '{self.kind}' lacks its value")
        return self

    def threshold_row(self, width: int) -> npt.NDArray[np.float64]:
        """Return the logit thresholds as float64 [width]; +inf where a label is never chosen (rules on thresholds)."""
        if self.kind == "global":
            assert self.threshold is not None
            row = np.full(width, self.threshold)
        else:
            assert self.thresholds is not None, f"rule '{self.kind}' has no thresholds"
            row = np.array(self.thresholds, dtype=np.float64)
        row[list(self.never)] = np.inf
        return row

    def decide(self, logits_BL: FloatArray) -> BoolArray:
        """Return bool [B, L]: which labels this rule chooses for each row of float32 logits. Not for regression."""
        width = logits_BL.shape[1]
        if self.kind in ("thresholds", "global"):
            return logits_BL > self.threshold_row(width)[None, :]
        assert self.kind != "value", "regression has no labels to choose"
        k = 1 if self.kind == "argmax" else min(self.k or 1, width)
        if self.never:
            logits_BL = logits_BL.copy()
            logits_BL[:, list(self.never)] = -np.inf
        chosen = np.zeros(logits_BL.shape, dtype=bool)
        # a stable sort: the lower label index wins a tie, in every runtime
        best = np.argsort(-logits_BL, axis=1, kind="stable")[:, :k]
        np.put_along_axis(chosen, best, True, axis=1)
        return chosen


class Decision(BaseModel):
    """The whole decision file.

    Attributes:
        schema_version: of this file.
        task: single, multi or regression.
        labels: ordered label names; column j of the logits is ``labels[j]``.
        labels_sha256: of the ordered labels, against files put together by hand.
        unseen: indices of labels without a training document.
        weights_sha256: of the weights file the rule was fitted for.
        vote_sha256: of vote.safetensors, where windows vote with weights of their own.
        activation: softmax, sigmoid or identity.
        rule: how labels are chosen.
        reading: max_tokens, strategy, head_ratio: how documents were read.
        plan: the numeric plan the rule was tuned in.
        fitted_on: the split, the number of documents and the hash of the data behind the rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA
    task: Task
    labels: tuple[str, ...]
    labels_sha256: str
    unseen: tuple[int, ...] = ()
    weights_sha256: str
    vote_sha256: str | None = None
    activation: Activation
    rule: Rule
    reading: dict[str, Any]
    plan: str
    fitted_on: dict[str, Any]

    def threshold_row(self) -> npt.NDArray[np.float64]:
        """Return the logit thresholds as float64 [L]; +inf where a label is never chosen (rules on thresholds)."""
        return self.rule.threshold_row(len(self.labels))

    def probabilities(self, logits_BL: FloatArray) -> FloatArray:
        """Return float32 [B, L]: softmax or sigmoid of the logits, or the logits themselves (regression)."""
        return activate(logits_BL, self.activation)

    def decide(self, logits_BL: FloatArray) -> BoolArray:
        """Return bool [B, L]: which labels the rule chooses. Regression has no labels to choose.

        Raises:
            ValueError: the width of the logits is not the number of labels.
        """
        logits_BL = np.asarray(logits_BL, dtype=np.float32)
        if logits_BL.ndim != 2 or logits_BL.shape[1] != len(self.labels):
            raise ValueError(f"logits of shape {logits_BL.shape} do not fit {len(self.labels)} labels")
        return self.rule.decide(logits_BL)

    def decided_labels(self, logits_L: FloatArray) -> list[int]:
        """Return the indices of the labels chosen for one document (float32 [L]), best first."""
        chosen = np.flatnonzero(self.decide(logits_L[None, :])[0])
        return [int(j) for j in chosen[np.argsort(-logits_L[chosen], kind="stable")]]


def activate(logits_BL: FloatArray, activation: Activation) -> FloatArray:
    """Return float32 [B, L]: row-wise softmax, elementwise sigmoid, or the logits unchanged."""
    x = np.asarray(logits_BL, dtype=np.float64)
    if activation == "softmax":
        e = np.exp(x - x.max(axis=1, keepdims=True))
        x = e / e.sum(axis=1, keepdims=True)
    elif activation == "sigmoid":
        e = np.exp(-np.abs(x))
        x = np.where(x >= 0, 1.0, e) / (1.0 + e)
    return x.astype(np.float32)


def labels_sha256(labels: tuple[str, ...]) -> str:
    """Return the sha256 of the ordered label names."""
    return hashlib.sha256(json.dumps(list(labels), ensure_ascii=False).encode()).hexdigest()


def write_decision(folder: Path, decision: Decision) -> None:
    """Write `decision.json` into a model folder, atomically."""
    write_json(folder / FILE, decision.model_dump(mode="json"))


def read_decision(folder: Path, weights: str = "model.safetensors") -> Decision:
    """Read and verify the decision of a model folder.

    Args:
        folder: the model folder.
        weights: name of the weights file whose fingerprint must match.

    Raises:
        UserError: no decision, another schema, a label list that was edited, weights it was not made for.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{folder} has no {FILE}: it is not a tinyhat model folder (a run's is RUN/model)")
    tree = read_json(path)
    if not isinstance(tree, dict) or tree.get("schema_version") != SCHEMA:
        found = tree.get("schema_version") if isinstance(tree, dict) else None
        raise UserError(
            f"{path} has schema version {found!r}, this tinyhat reads {SCHEMA}: use the version that wrote it"
        )
    try:
        decision = Decision.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is damaged at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if labels_sha256(decision.labels) != decision.labels_sha256:
        raise UserError(f"{path}: the label list is not the one the decision was made for (its hash differs)")
    if decision.rule.thresholds is not None and len(decision.rule.thresholds) != len(decision.labels):
        found = len(decision.rule.thresholds)
        raise UserError(f"{path}: {found} thresholds for {len(decision.labels)} labels; run 'tinyhat tune' again")
    if not (folder / weights).exists():
        raise UserError(f"{folder} has no {weights}: the weights are missing")
    if file_sha256(folder / weights) != decision.weights_sha256:
        raise UserError(
            f"{folder / weights} is not the file {FILE} was tuned for (its sha256 differs); run 'tinyhat tune'"
        )
    vote = folder / VOTE_FILE
    if (file_sha256(vote) if vote.exists() else None) != decision.vote_sha256:
        raise UserError(
            f"{vote} is not the one {FILE} was tuned with (its sha256 differs); copy the whole folder again"
        )
    return decision
