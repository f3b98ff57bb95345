"""A trained run as people use it: texts in, decided labels with probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyhat.config import Config, DataConfig, EncoderConfig, ReadingConfig
from tinyhat.data.corpora import TEXT_COLUMNS
from tinyhat.data.read import BadRow
from tinyhat.decision import Decision, read_decision
from tinyhat.errors import UserError
from tinyhat.run import read_json
from tinyhat.types import Document, FloatArray, Prediction, Predictor
from tinyhat.verb import make_callable

make_callable(__name__, "predict")

if TYPE_CHECKING:
    from tinyhat.embed.embedder import Embedder
    from tinyhat.embed.hidden import HiddenStates

Texts = Sequence[str] | Sequence[tuple[str, str]]
PACK_TOKENS = 8192  # as in training: the logits of one document may differ in the last bits between pack shapes


class Classifier:
    """A predictor with its decision.

    Args:
        predictor: turns documents into logits.
        decision: turns logits into labels.
    """

    def __init__(self, predictor: Predictor, decision: Decision) -> None:
        self.predictor, self.decision = predictor, decision

    @property
    def labels(self) -> tuple[str, ...]:
        """The ordered label names; column j of the probabilities is ``labels[j]``."""
        return self.decision.labels

    def predict(self, texts: Texts, top_k: int | None = None) -> list[dict[str, Any]]:
        """Return one result per text, as `results` has it; ids are the positions.

        Args:
            texts: N texts, or N pairs of texts for a model trained on pairs.
            top_k: as in `results`.

        Raises:
            UserError: not a list of texts.
        """
        return list(self.results(_documents(texts), top_k))

    def predict_proba(self, texts: Texts) -> FloatArray:
        """Return float32 [N, L] probabilities (regression: [N, K] values)."""
        return self.decision.probabilities(self.logits(texts))

    def logits(self, texts: Texts) -> FloatArray:
        """Return float32 [N, L] logits."""
        rows = [p.logits for p in self.predictor.predict_logits(iter(_documents(texts))) if p.logits is not None]
        return np.stack(rows) if rows else np.zeros((0, len(self.labels)), np.float32)

    def hidden_states(self, texts: Sequence[str]) -> HiddenStates:
        """Return the states of every layer, with the conventions of stock transformers.

        Args:
            texts: B texts; each is cut at the encoder's max tokens.

        Raises:
            UserError: the linear model has none; not a list of texts.
        """
        return self._embedder.hidden_states(texts)

    @cached_property
    def _embedder(self) -> Embedder:
        from tinyhat.embed.embedder import Embedder
        from tinyhat.head.predictor import TorchPredictor

        if not isinstance(self.predictor, TorchPredictor):
            raise UserError("the linear model has no hidden states: load a run of an encoder")
        tokens = int(self.decision.reading["max_tokens"])
        return Embedder(self.predictor.encoder, max_tokens=tokens, plan=self.predictor.plan)

    def results(self, documents: Iterable[Document], top_k: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield one result per document, in input order, in flat memory.

        Each holds ``id``, ``labels`` (the decided ones, best first; for regression target name to value), ``scores``
        (label to probability: of the decided ones, or of the `top_k` best), ``tokens_read`` and ``tokens_total``; a run
        that reads windows adds ``windows``, their number, and ``spoke``, the loudest window of each of these labels.
        """
        for prediction in self.predictor.predict_logits(iter(documents)):
            yield self.result(prediction, top_k)

    def rows(self, rows: Iterator[Document | BadRow], top_k: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield one result per row, in order: `results` of the documents, and ``id`` and ``error`` of the bad rows."""
        waiting: list[tuple[int, BadRow]] = []  # (good documents before it, the row)
        passed = 0

        def good() -> Iterator[Document]:
            nonlocal passed
            for row in rows:
                if isinstance(row, BadRow):
                    waiting.append((passed, row))
                else:
                    passed += 1
                    yield row

        for done, result in enumerate(self.results(good(), top_k)):
            while waiting and waiting[0][0] <= done:
                yield _error(waiting.pop(0)[1])
            yield result
        for _, row in waiting:
            yield _error(row)

    def result(self, prediction: Prediction, top_k: int | None = None) -> dict[str, Any]:
        """Return the result of one document, as `results` describes it."""
        if prediction.logits is None:
            return {"id": prediction.id, "error": prediction.error}
        tokens: dict[str, Any] = {"tokens_read": prediction.tokens_read, "tokens_total": prediction.tokens_total}
        if self.decision.reading.get("strategy") == "windows":
            tokens["windows"] = prediction.windows
        probabilities = self.decision.probabilities(prediction.logits[None, :])[0]
        if self.decision.task == "regression":
            values = dict(zip(self.labels, map(float, probabilities), strict=True))
            return (
                {"id": prediction.id, "labels": values, "scores": values}
                | tokens
                | self._speakers(prediction, range(len(values)))
            )
        chosen = self.decision.decided_labels(prediction.logits)
        shown = chosen if top_k is None else np.argsort(-prediction.logits, kind="stable")[:top_k]
        return (
            {
                "id": prediction.id,
                "labels": [self.labels[j] for j in chosen],
                "scores": {self.labels[j]: float(probabilities[j]) for j in shown},
            }
            | tokens
            | self._speakers(prediction, dict.fromkeys([*chosen, *shown]))
        )

    def _speakers(self, prediction: Prediction, labels: Iterable[int]) -> dict[str, Any]:
        """Return under ``spoke`` which window (0-based) has the highest logit of its own for each of `labels`."""
        if prediction.speaker is None:
            return {}
        return {"spoke": {self.labels[j]: int(prediction.speaker[j]) for j in labels}}


def _documents(texts: Texts) -> list[Document]:
    if isinstance(texts, str):
        raise UserError("predict takes a list of texts, not one text: write predict([text])")
    documents = []
    for i, text in enumerate(texts):
        first, second = text if isinstance(text, tuple) and len(text) == 2 else (text, None)
        if not isinstance(first, str) or not isinstance(second, str | None):
            raise UserError(f"document {i} is a {type(text).__name__}, not a text: give a list of texts")
        documents.append(Document(str(i), first, second))
    return documents


def _error(row: BadRow) -> dict[str, Any]:
    return {"id": row.id, "error": row.error}


def text_columns(run: Path, named: Mapping[str, Any]) -> DataConfig:
    """Return the text columns a run was trained with, so that predict finds the same ones; those `named` win.

    A folder whose manifest.json another program wrote says nothing about columns.
    """
    wanted = {key: value for key, value in named.items() if value}
    given: dict[str, Any] = {}
    data = _data_section(run / "manifest.json")
    if data.get("path") in TEXT_COLUMNS:
        given = {"text": TEXT_COLUMNS[data["path"]]}
    else:
        given = {key: data[key] for key in ("text", "pair") if data.get(key)}
    if "text" in wanted or "pair" in wanted:  # one is named instead of the other
        given = {}
    return DataConfig(**(given | wanted))


def _data_section(manifest: Path) -> dict[str, Any]:
    """Return the data section of the configuration in a run's manifest, empty where there is none."""
    found: Any = read_json(manifest) if manifest.exists() else None
    for key in ("config", "data"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def load(run: str | Path, plan: str | None = None) -> Classifier:
    """Load a run (or its model folder) for prediction.

    Args:
        run: the folder that `train` wrote, or its ``model`` folder alone.
        plan: a numeric plan; None is the one the thresholds were tuned in.

    Raises:
        UserError: not a run, or a decision that does not belong to these labels or weights.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist: give the folder that 'tinyhat train --out' wrote")
    if (folder / "model").is_dir():
        folder = folder / "model"
    decision = read_decision(folder)
    if not (folder / "config.json").exists():
        from tinyhat.evaluate.linear import LinearPredictor, load_linear

        if plan not in (None, "fp32"):
            raise UserError(f"--plan {plan}: the linear model computes in fp32 only")
        return Classifier(LinearPredictor(load_linear(folder)), decision)
    return Classifier(_torch_predictor(folder, decision, plan), decision)


def _torch_predictor(folder: Path, decision: Decision, plan: str | None) -> Predictor:
    from tinyhat.data.reading import Reader
    from tinyhat.encoder.load import backend_tokenizer, load_trained
    from tinyhat.encoder.precision import check_file, choose_plan, pick_device
    from tinyhat.head.learned_vote import load_vote
    from tinyhat.head.predictor import TorchPredictor

    device = pick_device()
    encoder = load_trained(folder, EncoderConfig(model=str(folder)))
    encoder.model.to(device)
    check_file(choose_plan(decision.plan, device), encoder.model, folder)
    reading = ReadingConfig(**decision.reading)
    if reading.strategy == "windows":
        load_vote(encoder.model, len(decision.labels), reading.vote, folder)
    reader = Reader(backend_tokenizer(encoder), reading)
    return TorchPredictor(encoder, reader, choose_plan(plan or decision.plan, device), device, PACK_TOKENS)


def config_of(manifest: dict[str, Any]) -> Config:
    """Return the configuration a run was made with, from its manifest."""
    return Config.model_validate(manifest["config"])
