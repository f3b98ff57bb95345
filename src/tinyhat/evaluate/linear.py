"""The linear model: TF-IDF and one linear layer over all labels. The baseline beside every encoder, and a model itself.

Dimension letters: N documents, V words, L labels or regression targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
from scipy.sparse import csc_array, csr_array

from tinyhat.errors import UserError
from tinyhat.evaluate.linear_solver import fit_ridge, fit_svm
from tinyhat.evaluate.tfidf import Tfidf, fit_tfidf
from tinyhat.run import read_json, write_bytes, write_json
from tinyhat.types import Document, FloatArray, Prediction, Targets, Task

FILE = "linear.json"
WEIGHTS = "model.safetensors"
SCHEMA = 1
SVM_STRENGTH = 1.0  # C; 0.3 and 3 are no better on banking77 and hyperpartisan (docs/linear.md)
RIDGE_STRENGTH = 2.0  # alpha
UNSEEN = -100.0  # logit of a label without training documents: probability 0
HELD_OUT = 0.2  # share of the documents that calibration holds out
CALIBRATION_LABELS = 128  # two numbers for all labels: a sample of the labels is enough
WINDOW = 1024  # documents scored at once


@dataclass(frozen=True)
class LinearModel:
    """TF-IDF and a linear layer.

    Attributes:
        task: what the logits mean.
        tfidf: V words and their weights.
        weights: float32 [V, L], sparse.
        bias: float32 [L]; the logits of a text without a known word.
    """

    task: Task
    tfidf: Tfidf
    weights: csr_array
    bias: FloatArray

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> FloatArray:
        """Return float32 [N, L]: before softmax (single) or sigmoid (multi), or the values (regression).

        A document's row does not depend on the documents beside it.
        """
        joined = _join(texts, pairs)
        out = np.empty((len(joined), len(self.bias)), dtype=np.float32)
        for begin in range(0, len(joined), WINDOW):
            part = slice(begin, begin + WINDOW)
            out[part] = self._score(joined[part])[0]
        return out

    def _score(self, texts: Sequence[str]) -> tuple[FloatArray, list[int]]:
        rows, words = self.tfidf.transform(texts)
        return (rows @ self.weights).toarray() + self.bias, words

    def save(self, folder: Path) -> None:
        """Write `linear.json` (task and vocabulary) and `model.safetensors` into `folder`, each atomically."""
        from safetensors.numpy import save

        tensors = {
            "idf": self.tfidf.idf,
            "weights.data": self.weights.data,
            "weights.indices": self.weights.indices.astype(np.int32),
            "weights.indptr": self.weights.indptr.astype(np.int64),
            "bias": self.bias,
        }
        write_bytes(folder / WEIGHTS, save(tensors))
        write_json(
            folder / FILE,
            {"schema_version": SCHEMA, "task": self.task, "vocabulary": list(self.tfidf.vocabulary)},
        )


def load_linear(folder: Path) -> LinearModel:
    """Read a model that `LinearModel.save` wrote; its logits are the same to the bit.

    Raises:
        UserError: files missing, damaged, of another schema, or not belonging together.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not (folder / FILE).exists():
        raise UserError(f"{folder} has no {FILE}: it is not the folder of a linear model")
    tree = read_json(folder / FILE)
    if not isinstance(tree, dict) or tree.get("schema_version") != SCHEMA or tree.get("task") not in get_args(Task):
        raise UserError(f"{folder / FILE} is not a linear model of schema {SCHEMA}: use the version that wrote it")
    try:
        tensors = load((folder / WEIGHTS).read_bytes())
        vocabulary, bias = tuple(tree["vocabulary"]), tensors["bias"]
        indptr = tensors["weights.indptr"]
        data, indices = tensors["weights.data"], tensors["weights.indices"]
        weights = csr_array((data, indices, indptr.astype(np.int32)), shape=(len(vocabulary), len(bias)))
        weights.check_format()
        if len(tensors["idf"]) != len(vocabulary):
            raise ValueError(f"{len(tensors['idf'])} word weights for {len(vocabulary)} words")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} does not fit {FILE} or is damaged ({error}); train again") from None
    return LinearModel(tree["task"], Tfidf(vocabulary, tensors["idf"]), weights, bias)


class LinearPredictor:
    """A linear model as a Predictor; its tokens are words.

    Args:
        model: the fitted or loaded model.
    """

    plan = "fp32"

    def __init__(self, model: LinearModel) -> None:
        self.model = model

    def predict_logits(self, documents: Iterator[Document]) -> Iterator[Prediction]:
        """Yield a Prediction per document, in input order; at most WINDOW documents are held."""
        while window := list(islice(documents, WINDOW)):
            texts = [d.text if d.pair is None else f"{d.text}\n{d.pair}" for d in window]
            logits, words = self.model._score(texts)
            for i, document in enumerate(window):
                yield Prediction(document.id, logits[i], words[i], words[i])


def fit_linear(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    targets: Targets,
    weights: FloatArray | None,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> LinearModel:
    """Fit TF-IDF (single words, ``1 + ln count``) and one linear layer over all labels.

    single and multi: one squared-hinge SVM per label (as scikit-learn's LinearSVC), then an affine map fitted on
    held-out training documents and folded in, so that softmax and sigmoid of the logits are probabilities (Platt 1999
    for multi, a temperature for single). regression: ridge. Words in fewer than 1 to 5 documents (by N) are left out.

    Args:
        texts: N texts.
        pairs: N second texts, read as one text with the first, or None.
        targets: of the N documents; single documents without a label (-1) are left out.
        weights: float32 [N] document weights, or None; only their proportions matter.
        seed: which documents calibration holds out.
        progress: told the number of labels done.

    Raises:
        UserError: no words, or no labels, to learn from.
    """
    joined = _join(texts, pairs)
    if targets.task == "single":
        known = np.flatnonzero(targets.values >= 0)
        joined, targets = [joined[i] for i in known], targets.take(known)
        weights = None if weights is None else weights[known]
    if not len(targets.values):
        raise UserError("the linear model finds no training document with a label: check the label column")
    s = np.ones(len(joined), dtype=np.float32) if weights is None else (weights / weights.mean()).astype(np.float32)
    tfidf = fit_tfidf(joined, min_df=min(5, 1 + len(joined) // 10_000))
    rows, _ = tfidf.transform(joined)
    if targets.task == "regression":
        w, bias = fit_ridge(rows, targets.dense(), RIDGE_STRENGTH, s)
        return LinearModel(targets.task, tfidf, w, bias)
    labels = _columns(targets)
    w, bias = fit_svm(rows, labels, SVM_STRENGTH, s, progress)
    scale, shift = _calibrate(rows, labels, targets.task, s, seed)
    bias = np.where(np.diff(labels.indptr) > 0, scale * bias + shift, UNSEEN).astype(np.float32)
    return LinearModel(targets.task, tfidf, csr_array(w * np.float32(scale)), bias)


def _join(texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    return list(texts) if pairs is None else [f"{a}\n{b}" for a, b in zip(texts, pairs, strict=True)]


def _columns(targets: Targets) -> csc_array:
    """Return the targets of single and multi as a sparse [N, L] of ones, by column."""
    indptr = np.arange(len(targets) + 1) if targets.indptr is None else targets.indptr
    ones = np.ones(len(targets.values), dtype=np.float32)
    shape = (len(targets), targets.width)
    return csr_array((ones, targets.values.astype(np.int32), indptr.astype(np.int32)), shape=shape).tocsc()


def _calibrate(rows: csr_array, labels: csc_array, task: Task, weights_N: FloatArray, seed: int) -> tuple[float, float]:
    """Return scale and shift of the margins, fitted on documents that a second, smaller fit has not seen."""
    order = np.random.default_rng(seed).permutation(rows.shape[0])
    count = int(HELD_OUT * len(order))
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    by_row = labels.tocsr()
    kept = np.flatnonzero(np.diff(by_row[rest].tocsc().indptr) > 0)  # in order of column
    if task == "multi" and len(kept) > CALIBRATION_LABELS:
        by_frequency = kept[np.argsort(-np.diff(labels.indptr)[kept], kind="stable")]
        step = -(-len(kept) // CALIBRATION_LABELS)
        kept = by_frequency[step // 2 :: step]
    truth = by_row[held][:, kept].toarray()
    if not truth.any():  # also when there are fewer than five documents, of which none is held out
        return 1.0, 0.0
    w, bias = fit_svm(rows[rest], by_row[rest].tocsc()[:, kept], SVM_STRENGTH, weights_N[rest])
    margins = ((rows[held] @ w).toarray() + bias).astype(np.float64)
    return _temperature(margins, truth) if task == "single" else _platt(margins.ravel(), truth.ravel())


def _platt(margins: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the scale > 0 and the shift that make sigmoid(scale * margin + shift) most likely.

    Source: Platt 1999, with his smoothed targets; one map for all labels.
    """
    from scipy.optimize import minimize

    positives = truth.sum()
    target = np.where(truth > 0, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2))

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        scale = np.exp(x[0])
        z = scale * margins + x[1]
        error = 1 / (1 + np.exp(-np.clip(z, -500, 500))) - target
        value = np.logaddexp(0, z) - target * z
        return float(value.mean()), np.array([(error * margins).mean() * scale, error.mean()])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-3, 3), (-20, 20)])
    return float(np.exp(found.x[0])), float(found.x[1])


def _temperature(margins: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the scale that makes softmax(scale * margins) most likely, and a shift of 0 (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    rows = truth.any(axis=1)
    own = margins[truth > 0]

    def loss(log_scale: float) -> float:
        scale = np.exp(log_scale)
        return float((logsumexp(scale * margins[rows], axis=1) - scale * own).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)), 0.0
