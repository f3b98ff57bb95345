"""The embedder: texts in, vectors out. B documents, S windows, T tokens, D width."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinyhat.config import EncoderConfig, ReadingConfig
from tinyhat.data.reading import Reader
from tinyhat.decision import read_decision
from tinyhat.embed.ahead import ahead, cut
from tinyhat.embed.budget import find_budget
from tinyhat.embed.choice import Combine, Layers, Pooling, check_pooling, choose_layers, read_choice
from tinyhat.embed.forward import Forward
from tinyhat.embed.hidden import HiddenStates, padded_states
from tinyhat.embed.memory import bound_memory
from tinyhat.embed.states import PreLogits
from tinyhat.embed.threads import products_of, start_threads
from tinyhat.embed.tokens import Long, WindowReader, Windows, as_windows
from tinyhat.embed.words import Words, pieces_to_words
from tinyhat.encoder.hub import hub_folder
from tinyhat.encoder.load import Encoder, backend_tokenizer, load_encoder, load_trained
from tinyhat.encoder.long import full_attention_tokens
from tinyhat.encoder.precision import choose_plan, pick_device
from tinyhat.errors import UserError
from tinyhat.run import read_json
from tinyhat.types import FloatArray, IntArray

LOOK_AHEAD = 1024  # documents read, sorted by length and packed together; packs never cross it
CHARACTERS = 8 << 20  # and so many characters, about 200 MB in the tokenizer; laws are 5 MB a thousand
WORD_CHARACTERS = 1 << 20  # where every word has a vector: 200,000 of 384 numbers are 300 MB
HEAD = ("no label", "no other label")  # of the classifier that an encoder without one is loaded as; no vector sees it


class Embedder:
    """Turns texts into vectors with one encoder and one choice of layers and pooling.

    Args:
        encoder: a loaded encoder, with or without a trained head.
        layers: as in `choose_layers`, or ``best:FOLDER`` with the folder that `tinyhat layers` wrote;
            or a choice that is made already.
        pooling: mean, max, cls, last, mean_sqrt or weighted; None is the one `best` chose, else mean.
        combine: what several layers become: their mean, or one behind the other.
        max_tokens: of a sequence, special tokens included; None is what `best` was chosen with, else 512, or the
            encoder's positions if fewer.
        long: what becomes of longer documents: every token is read in windows (None), or the head alone.
        normalize: vectors of length 1.
        exact: a document's bits do not depend on its neighbours, their order, the budget or the number of workers: a
            forward pass holds one window and runs on one CPU thread (or one GPU).
        plan: numeric plan; auto is bf16 where the hardware has it. One that stores weights in low precision changes
            those of `encoder`.
        budget: tokens of one forward pass; None is found from the memory at hand.
        workers: forward passes at the same time; None is one a CPU thread, and 1 on a GPU.
        reading: how a run reads documents, for its pooled vectors; None: by `max_tokens` and `long`.

    Raises:
        UserError: whatever is wrong with these, in one sentence.
    """

    def __init__(
        self,
        encoder: Encoder,
        layers: str | Layers = "last",
        pooling: Pooling | None = None,
        combine: Combine = "mean",
        max_tokens: int | None = None,
        long: Long | None = None,
        normalize: bool = False,
        exact: bool = False,
        plan: str = "auto",
        budget: int | None = None,
        workers: int | None = None,
        reading: ReadingConfig | None = None,
    ) -> None:
        self.encoder, self.device = encoder, pick_device()
        encoder.model.to(self.device).eval()
        self.plan = choose_plan(plan, self.device)
        self.tokenizer, self._sha256 = backend_tokenizer(encoder), ""
        self.layers, self.pooling, found = _choice(encoder, layers, pooling, combine)
        if found.get("model_sha256", "") and found["model_sha256"] != self.fingerprint():
            raise UserError(
                f"--layers {layers} was chosen for another model than {encoder.name!r} (their weights or tokenizers "
                "differ): run 'tinyhat layers' with this one"
            )
        if self.layers.pooled and not _has_trained_head(encoder):
            raise UserError(f"--layers pooled: {encoder.name} has no trained classifier; give the folder of one")
        self.max_tokens = _max_tokens(encoder, max_tokens or found.get("max_tokens"))
        self.long, self.reading = long or ("windows" if reading is None else None), reading
        self.reader = WindowReader(self.tokenizer, self.max_tokens, self.long or "windows")
        self._reader = None if reading is None else Reader(self.tokenizer, reading)
        if {self.plan.body, self.plan.head} != {torch.float32}:
            self.fingerprint()  # of the weights as they were loaded
        self.plan.store(encoder.model)
        self.normalize, self.exact = normalize, exact
        on_cpu = self.device.type == "cpu"
        threads = torch.get_num_threads()
        # BigBird is switched between full and sparse attention from batch to batch: by one thread alone
        alone = full_attention_tokens(encoder.model) is not None
        self.workers = 1 if alone else workers or (threads if on_cpu else 1)
        every = not self.layers.pooled and self.layers.indices != (self.layer_count,)
        self.budget = budget or find_budget(encoder.model.config, self.device, self.workers, every)
        pre_logits = PreLogits(encoder) if self.layers.pooled else None
        self.forward = Forward(encoder, self.layers, self.pooling, self.plan, self.device, pre_logits)
        # a pass on one thread beside others wastes none of them on waiting for each other, and its bits are its own
        self._pool = start_threads(self.workers, threads if alone and not exact else 1) if on_cpu else None

    @property
    def layer_count(self) -> int:
        """The layers of the encoder; hidden states are numbered 0 (embeddings) to this."""
        return int(self.encoder.model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """D of the vectors."""
        if self.layers.pooled:
            return self.forward.pooled_width
        return self.layers.width(int(self.encoder.model.config.hidden_size))

    def read(self, texts: Sequence[str], words: bool = False) -> Windows:
        """Tokenise N texts as the vectors need them; with `words`, keep word numbers and character offsets."""
        return self.reader.read(texts, words) if self._reader is None else as_windows(self._reader.read(texts))

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> FloatArray:
        """Return float32 [N, D], a vector a text, in the order of `texts`.

        Args:
            texts: N texts.
            progress: told how many more documents are done.

        Raises:
            UserError: not a list of texts, or one window alone does not fit in memory.
        """
        checked = check_texts(texts)
        chunks = cut(checked, LOOK_AHEAD, CHARACTERS, len)
        found = [self.embed_windows(w, progress) for w in ahead(self.read(chunk) for chunk in chunks)]
        return np.concatenate([np.zeros((0, self.width), np.float32), *found])

    def embed_windows(self, windows: Windows, progress: Callable[[int], None] | None = None) -> FloatArray:
        """Return float32 [N, D] for N tokenised documents, packed by length within them."""
        out = np.zeros((len(windows), self.width), np.float32)
        weights = self.forward.weights(windows)
        jobs = self._jobs(windows)

        def work(documents: IntArray) -> tuple[IntArray, FloatArray]:
            return documents, self.forward.vectors(windows, weights, documents, self._pass_tokens)

        for documents, vectors in self._map(work, jobs):
            out[documents] = vectors
            if progress:
                progress(len(documents))
        return normalized(out) if self.normalize else out

    def words(self, texts: Sequence[str], pooling: str = "mean") -> list[Words]:
        """Return the vectors of all words of each text, with their places in it.

        Args:
            texts: N texts.
            pooling: what a word's pieces become: first, last, mean or max.

        Raises:
            UserError: no such pooling; ``pooled`` layers, which have no tokens.
        """
        checked = check_texts(texts)
        chunks = cut(checked, LOOK_AHEAD, WORD_CHARACTERS, len)
        read = ahead(self.reader.read(chunk, words=True) for chunk in chunks)
        return [words for windows in read for words in self.word_windows(windows, pooling)]

    def word_windows(
        self, windows: Windows, pooling: str = "mean", progress: Callable[[int], None] | None = None
    ) -> list[Words]:
        """As `words`, for documents tokenised with their words."""
        check_pooling(pooling, words=True)
        if self.layers.pooled:
            raise UserError("--layers pooled has one vector a document: choose other layers for words")
        assert windows.words is not None
        assert windows.offsets is not None
        numbers, offsets = windows.words, windows.offsets
        found: list[Words | None] = [None] * len(windows)
        first = len(self.reader.begin)

        def work(documents: IntArray) -> tuple[IntArray, list[FloatArray]]:
            return documents, self.forward.states(windows, documents, self._pass_tokens)

        for documents, states in self._map(work, self._jobs(windows)):
            for d, states_CD in zip(documents.tolist(), states, strict=True):
                content = states_CD[first : first + len(numbers[d])]
                words = pieces_to_words(content, numbers[d], offsets[d], pooling)
                found[d] = Words(words.spans, normalized(words.vectors)) if self.normalize else words
            if progress:
                progress(len(documents))
        return [words for words in found if words is not None]

    def span(self, text: str, begin: int, end: int, pooling: str = "mean") -> FloatArray:
        """Return float32 [D], the vector of the characters `begin` to `end` of a text, read in the whole text.

        Args:
            text: the text.
            begin: first character.
            end: one past the last character.
            pooling: what the pieces that touch the span become: first, last, mean or max.

        Raises:
            UserError: no token of the text touches the span.
        """
        windows = self.reader.read([text], words=True)
        assert windows.offsets is not None
        offsets = windows.offsets[0]
        inside = (offsets[:, 0] < end) & (offsets[:, 1] > begin)
        if not inside.any():
            raise UserError(f"no token touches the characters {begin} to {end} of the text ({len(text)} characters)")
        numbers = [np.where(inside, 0, -1).astype(np.int32)]
        one = Windows(**{**vars(windows), "words": numbers})
        vector: FloatArray = self.word_windows(one, pooling)[0].vectors[0]
        return vector

    def hidden_states(self, texts: Sequence[str]) -> HiddenStates:
        """Return the states of every layer, as stock transformers returns them for a padded batch.

        Args:
            texts: B texts; each is cut at `max_tokens`.
        """
        checked = check_texts(texts)
        windows = WindowReader(self.tokenizer, self.max_tokens, "truncate").read(checked, words=True)
        return padded_states(self.forward, windows, self._pass_tokens, len(self.reader.begin))

    def fingerprint(self) -> str:
        """Return the sha256 of the tokenizer and of the weights that the vectors depend on, as they were loaded."""
        self._sha256 = self._sha256 or self._hash()
        return self._sha256

    def _hash(self) -> str:
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        model = self.encoder.model if self.layers.pooled else self.encoder.model.base_model
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return what the vectors depend on, for a manifest."""
        return {
            "model": self.encoder.name,
            "model_sha256": self.fingerprint(),
            "layers": self.layers.facts(),
            "pooling": None if self.layers.pooled else self.pooling,
            "max_tokens": self.max_tokens,
            "long": self.long,
            "reading": None if self.reading is None else self.reading.model_dump(),
            "normalize": self.normalize,
            "exact": self.exact,
            "plan": self.plan.name,
            "device": self.device.type,
            "packed": self.encoder.packed,
            "budget": self.budget,
        }

    @property
    def _pass_tokens(self) -> int:
        """Tokens of one forward pass; 1 puts every window in a pass of its own."""
        return 1 if self.exact else self.budget

    def _jobs(self, windows: Windows) -> list[IntArray]:
        """Cut documents into jobs of about a budget each, longest first; a longer document is a job of its own."""
        tokens = windows.tokens
        order = np.argsort(-tokens, kind="stable")
        jobs: list[IntArray] = []
        begin, total = 0, 0
        for end, document in enumerate(order):
            if end > begin and total + tokens[document] > self.budget:
                jobs.append(order[begin:end])
                begin, total = end, 0
            total += int(tokens[document])
        return [*jobs, order[begin:]] if len(order) else []

    def _map(self, work: Callable[[IntArray], Any], jobs: list[IntArray]) -> Iterator[Any]:
        with products_of(self.plan):
            yield from map(work, jobs) if self._pool is None else self._pool.map(work, jobs)


def load_embedder(model: str | Path, **settings: Any) -> Embedder:
    """Load an embedder: a run, a folder with a checkpoint, a hub name, or ``minilm``.

    Args:
        model: the folder of a run or its model, another folder, or a name.
        settings: as the arguments of `Embedder`.

    Raises:
        UserError: nothing there, or whatever is wrong with the settings.
    """
    bound_memory()
    folder = Path(model)
    if (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    layers = settings.get("layers")
    if layers == "best":
        settings = settings | {"layers": f"best:{model}"}
    pooled = layers == "pooled" or (isinstance(layers, Layers) and layers.pooled)
    if pooled and not folder.exists() and _is_hub_name(str(model)):
        folder = hub_folder(str(model))  # for the head that a classifier has there
    if pooled and settings.get("long") is None and (folder / "decision.json").is_file():
        settings = settings | _as_the_run_reads(folder, settings.get("max_tokens"))
    config = EncoderConfig(model=str(model))
    if (folder / "config.json").is_file() and _is_classifier(read_json(folder / "config.json")):
        return Embedder(load_trained(folder, config), **settings)
    if (folder / "model").is_dir() or (folder / "decision.json").is_file():
        raise UserError(f"{model} holds a linear model, which has no hidden states: give an encoder")
    return Embedder(load_encoder(str(model), "single", HEAD, config, 0, 0), **settings)


def _is_hub_name(name: str) -> bool:
    return name != "minilm" and not name.startswith((".", "/", "~")) and name.count("/") <= 1


def _as_the_run_reads(folder: Path, max_tokens: int | None) -> dict[str, Any]:
    """Return the settings that give the vectors whose logits, averaged over windows, are those of predict."""
    reading = ReadingConfig(**read_decision(folder).reading)
    if reading.strategy == "windows" and reading.vote != "mean":
        raise UserError(
            f"--layers pooled: {folder} lets the windows of a document vote ({reading.vote}), which no vector of the "
            "document can stand for: say --long windows for the mean over windows, or --long truncate"
        )
    if max_tokens is not None:
        reading = reading.model_copy(update={"max_tokens": max_tokens})
    return {"max_tokens": reading.max_tokens, "reading": reading}


def normalized(vectors_ND: FloatArray) -> FloatArray:
    """Return the rows at length 1; a row of zeros stays so."""
    norms = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))
    return (vectors_ND / np.maximum(norms, 1e-12)[:, None]).astype(np.float32)


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return `texts` as a list.

    Raises:
        UserError: one text instead of a list, or something in it that is no text.
    """
    if isinstance(texts, str):
        raise UserError("embed takes a list of texts, not one text: write embed([text])")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"document {i} is a {type(text).__name__}, not a text: give a list of texts")
    return list(texts)


def _choice(
    encoder: Encoder, layers: str | Layers, pooling: Pooling | None, combine: Combine
) -> tuple[Layers, Pooling, Mapping[str, Any]]:
    """Return layers, pooling, and what `tinyhat layers` wrote with them, where it chose."""
    if isinstance(layers, Layers):
        return layers, pooling or "mean", {}
    found: Mapping[str, Any] = {}
    if layers == "best" or layers.startswith("best:"):
        found = read_choice(Path(layers.partition(":")[2] or encoder.name))
        layers, pooling = found["layers"], pooling or found["pooling"]
        combine = found.get("combine", combine)
    pooling = pooling or "mean"
    check_pooling(pooling, words=False)
    assert isinstance(layers, str)
    count = int(encoder.model.config.num_hidden_layers)
    return choose_layers(layers, count, combine, tuple(found.get("weights") or ()) or None), pooling, found


def _max_tokens(encoder: Encoder, wanted: int | None) -> int:
    most = encoder.max_positions
    if wanted is None:
        return min(512, most or 512)
    if most is not None and wanted > most:
        raise UserError(
            f"--max-tokens {wanted} is more than the {most} positions of {encoder.name}: longer documents are read in "
            f"windows, give {most} or less"
        )
    return wanted


def _is_classifier(config: Any) -> bool:
    return any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _has_trained_head(encoder: Encoder) -> bool:
    return tuple(encoder.model.config.id2label.values()) != HEAD
