"""tinyhat as a scikit-learn classifier: fit, predict, predict_proba, decision_function, score."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from tinyhat.config import Config, build_config
from tinyhat.data.assemble import assemble, label_names
from tinyhat.data.dataset import Dataset
from tinyhat.data.labels import encode_labels
from tinyhat.data.raw import RawDataset, RawSplit
from tinyhat.data.split import stratified_split
from tinyhat.errors import UserError
from tinyhat.pipeline import train_dataset
from tinyhat.predict import Classifier, load
from tinyhat.run import read_json
from tinyhat.types import FloatArray, Targets, Task


class TinyhatClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier with scikit-learn's interface.

    ``y`` is one label a document, or for multi-label a list of labels a document. ``fit`` splits a dev part off for
    tuning and early choice of the best weights, exactly as the command line does.

    Args:
        model: hub name, local path, ``minilm`` or ``linear``.
        epochs: times every document is read.
        max_tokens: tokens read per document.
        seed: of everything random.
        out: run folder to keep (new or empty); None trains in a temporary one, which is removed.
        settings: further dotted configuration keys.
    """

    def __init__(
        self,
        model: str = "minilm",
        epochs: float = 3.0,
        max_tokens: int = 512,
        seed: int = 0,
        out: str | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.max_tokens = max_tokens
        self.seed = seed
        self.out = out
        self.settings = settings

    def fit(self, X: Sequence[str], y: Any) -> TinyhatClassifier:
        """Train on texts `X` (N) and labels `y` (N: a label, or a list of labels).

        Sets ``classes_`` (sorted labels, as they were given) and ``metrics_`` (of the dev part). An indicator matrix
        [N, L] (dense or sparse) is read as multi-label with the column numbers as labels.

        Raises:
            UserError: X is not a list of texts, lengths differ, or a single class.
        """
        texts = _texts(X)
        count = y.shape[0] if hasattr(y, "shape") else len(y)
        if len(texts) != count:
            raise UserError(f"X has {len(texts)} texts and y has {count} labels: they must be equally many")
        config = build_config(
            None,
            {
                "encoder.model": self.model,
                "train.epochs": self.epochs,
                "reading.max_tokens": self.max_tokens,
                "train.seed": self.seed,
                "evaluate.baseline": False,
                "evaluate.bootstrap": 0,
                **(self.settings or {}),
            },
        )
        answers, multi = _answers(y)
        dataset = _dataset(texts, answers, multi, config)
        named = {str(label): label for labels in answers for label in labels}
        self.classes_ = np.array([named[name] for name in dataset.labels.names])
        self.task_ = dataset.task
        with tempfile.TemporaryDirectory(prefix="tinyhat-") as folder:
            run = train_dataset(config, dataset, self.out or Path(folder) / "run", say=_quiet)
            self.classifier_ = load(run.path)
            self.metrics_ = read_json(run.metrics)
        return self

    def predict(self, X: Sequence[str]) -> npt.NDArray[Any] | sparse.csr_array[Any, tuple[int, int]]:
        """Return the decided labels: [N] of the type of ``y``, or for multi-label 0/1 CSR [N, L] over ``classes_``."""
        chosen = self._classifier().decision.decide(self.decision_function(X))
        if self.task_ == "multi":
            return sparse.csr_array(chosen.astype(np.int64))
        return self.classes_[chosen.argmax(axis=1)]

    def predict_proba(self, X: Sequence[str]) -> FloatArray:
        """Return float32 [N, L]: softmax (single) or sigmoid (multi) probabilities, columns as ``classes_``."""
        return self._classifier().decision.probabilities(self.decision_function(X))

    def decision_function(self, X: Sequence[str]) -> FloatArray:
        """Return the logits, float32 [N, L]."""
        return self._classifier().logits(_texts(X))

    def _classifier(self) -> Classifier:
        check_is_fitted(self, "classifier_")
        return self.classifier_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        tags.non_deterministic = False
        return tags


def _quiet(_: str) -> None:
    pass


def _texts(X: Sequence[str]) -> list[str]:
    if isinstance(X, str):
        raise UserError("X is one text; give a list of texts")
    texts = list(X)
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise UserError(f"X[{wrong}] is a {type(texts[wrong]).__name__}, not a text")
    return texts


def _answers(y: Any) -> tuple[list[list[Any]], bool]:
    """Return the labels of every document, and whether there may be several."""
    if sparse.issparse(y) or getattr(y, "ndim", 1) == 2:
        matrix = sparse.csr_array(y)
        return [row.tolist() for row in np.split(matrix.indices, matrix.indptr[1:-1])], True
    answers = y.tolist() if isinstance(y, np.ndarray) else list(y)
    multi = any(isinstance(labels, list | tuple | set | frozenset) for labels in answers)
    return [list(labels) if multi else [labels] for labels in answers], multi


def _dataset(texts: list[str], answers: list[list[Any]], multi: bool, config: Config) -> Dataset:
    """Build a dataset with a dev part from lists in memory."""
    lists = [[str(label) for label in labels] for labels in answers]
    everything = RawSplit(ids=[str(i) for i in range(len(texts))], texts=texts, labels=lists)
    task: Task = "multi" if multi else "single"
    kept, held = stratified_split(_targets(lists, task), config.data.dev_share, config.train.seed)
    splits = {"train": everything.take(kept), "dev": everything.take(held)}
    return assemble(RawDataset(task, splits), config.data, config.train.seed, "y")


def _targets(lists: list[list[str]], task: Task) -> Targets:
    return encode_labels(lists, label_names(lists), task)[0]
