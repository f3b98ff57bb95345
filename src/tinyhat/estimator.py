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

    def fit(self, X: Sequence[str], y: Sequence[Any]) -> TinyhatClassifier:
        """Train on texts `X` (N) and labels `y` (N: a label, or a list of labels).

        Sets ``classes_`` (sorted labels), ``run_`` (the run folder, where kept) and ``metrics_``.

        Raises:
            UserError: X is not a list of texts, lengths differ, or a single class.
        """
        texts = _texts(X)
        if len(texts) != len(y):
            raise UserError(f"X has {len(texts)} texts and y has {len(y)} labels: they must be equally many")
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
        dataset = _dataset(texts, list(y), config)
        self.classes_ = np.array(dataset.labels.names, dtype=object)
        self.task_ = dataset.task
        if self.out is not None:
            self.run_ = train_dataset(config, dataset, self.out, say=_quiet)
            self.classifier_ = load(self.run_.path)
        else:
            with tempfile.TemporaryDirectory(prefix="tinyhat-") as folder:
                self.run_ = train_dataset(config, dataset, Path(folder) / "run", say=_quiet)
                self.classifier_ = load(self.run_.path)
        return self

    def predict(self, X: Sequence[str]) -> npt.NDArray[Any] | sparse.csr_array[Any, tuple[int, int]]:
        """Return the decided labels: object [N], or for multi-label a 0/1 CSR matrix [N, L] over ``classes_``."""
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


def _dataset(texts: list[str], y: list[Any], config: Config) -> Dataset:
    """Build a dataset with a dev part from lists in memory."""
    multi = any(isinstance(labels, list | tuple | set | frozenset) for labels in y)
    lists = [[str(label) for label in labels] if multi else [str(labels)] for labels in y]
    everything = RawSplit(ids=[str(i) for i in range(len(texts))], texts=texts, labels=lists)
    task: Task = "multi" if multi else "single"
    kept, held = stratified_split(_targets(lists, task), config.data.dev_share, config.train.seed)
    splits = {"train": everything.take(kept), "dev": everything.take(held)}
    return assemble(RawDataset(task, splits), config.data, config.train.seed, "y")


def _targets(lists: list[list[str]], task: Task) -> Targets:
    return encode_labels(lists, label_names(lists), task)[0]
