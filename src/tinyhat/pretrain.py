"""Pretraining, the story in one screen: text, tokenizer, sequences, masked-LM training, a checkpoint to fine-tune."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyhat.config import Config, PretrainConfig
from tinyhat.errors import UserError
from tinyhat.run import Run, atomic_path, environment, file_sha256, freed_if_refused, open_run, write_json
from tinyhat.train.ranks import world_size
from tinyhat.verb import make_callable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tinyhat.data.corpus import Corpus
    from tinyhat.data.masking import Masking
    from tinyhat.data.sequences import Sequences
    from tinyhat.encoder.load import Encoder
    from tinyhat.train.loop import Outcome
    from tinyhat.train.masked_lm import Validation

make_callable(__name__, "pretrain")

Say = Callable[[str], None]
TASK = "masked_lm"


@dataclass(frozen=True)
class _Material:
    """Everything the loop needs beside the model."""

    sequences: Sequences
    masking: Masking
    validation: Validation


def pretrain_config(config: Config, out: str | Path, resume: bool = False, say: Say = print) -> Run:
    """Train an LTG-BERT from nothing on the text that ``config.data`` names.

    Args:
        config: sections data (path, source, text, pair, limit) and pretrain count.
        out: the run folder, new or empty, or with `resume` this very run; ``model`` in it is the checkpoint.
        resume: go on after an interruption.
        say: where remarks for people go.

    Raises:
        UserError: as the corpus, the tokenizer, the configuration or the folder deserve.
    """
    if world_size() > 1:
        raise UserError("tinyhat pretrain runs in one process for now: start it without torchrun")
    config = config.model_copy(update={"pretrain": _resolve(config.pretrain)})
    _check_folder(Path(out), resume)
    from tinyhat.data.corpus import read_texts

    corpus = read_texts(config.data, config.pretrain.validation_share, config.pretrain.seed)
    new = not Path(out).exists()
    run = open_run(Path(out), config.model_dump(mode="json"), resume)
    with freed_if_refused(run, new, resume):
        _tell_story(config, corpus, run, resume, say)
    return run


def _resolve(config: PretrainConfig) -> PretrainConfig:
    """Fill in what depends on other keys, and refuse what does not fit together."""
    lengths, switches = config.lengths, config.switches
    if len(switches) != len(lengths) - 1 or any(not 0 < s < 1 for s in switches):
        raise UserError(
            f"pretrain.switches = {list(switches)} must be one share between 0 and 1 less than there are "
            f"pretrain.lengths ({len(lengths)})"
        )
    if any(b <= a for a, b in pairwise(switches)) or any(b <= a for a, b in pairwise(lengths)) or lengths[0] < 8:
        raise UserError("pretrain.lengths and pretrain.switches must rise, and sequences have 8 tokens at least")
    assert config.max_steps is not None
    return config.model_copy(
        update={
            "learning_rate": config.learning_rate or (1e-2 if config.optimizer == "lamb" else 1e-3),
            "evaluate_every": config.evaluate_every or max(1, math.ceil(config.max_steps / 10)),
        }
    )


def _check_folder(out: Path, resume: bool) -> None:
    """Refuse to resume what is no pretraining, before its text is read."""
    if resume and Run(out).manifest.exists() and Run(out).read_manifest().get("task") != TASK:
        raise UserError(f"--resume: {out} is a run of 'tinyhat train', not of 'tinyhat pretrain': name another folder")


def _tell_story(config: Config, corpus: Corpus, run: Run, resume: bool, say: Say) -> None:
    from tinyhat.encoder.masked_lm import new_masked_lm, start_at_frequencies
    from tinyhat.train.classifier import fix_threads

    before = run.read_manifest() if resume else {}
    if resume and before["data"]["sha256"] != corpus.sha256:
        raise UserError(f"--resume: the text of {config.data.path} has changed since {run.path} began")
    for note in corpus.notes:
        say(f"corpus: {note}")
    tokenizer = _tokenizer(config.pretrain, corpus, run, before, say)
    manifest: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        "task": TASK,
        "data": {"name": config.data.path, "sha256": corpus.sha256, "notes": list(corpus.notes)},
        "labels": [],
        "train_counts": [],
        "tokenizer": {"entries": len(tokenizer), "sha256": file_sha256(run.path / "tokenizer" / "tokenizer.json")},
        "threads": fix_threads(before.get("threads"), say),
    }
    write_json(run.manifest, manifest)
    encoder = new_masked_lm(config.pretrain.size, tokenizer, config.pretrain.seed)
    parameters = sum(p.numel() for p in encoder.model.parameters())
    say(f"model: {encoder.name}, {parameters / 1e6:.1f}M parameters with its head, {len(tokenizer)} entries")
    material = _material(config.pretrain, corpus, tokenizer)
    say(
        f"sequences: {material.sequences.counts} of up to {list(config.pretrain.lengths)} tokens; validation: "
        f"{material.validation.sequences} of up to {config.pretrain.lengths[0]}, "
        f"{material.validation.asked} tokens asked for, unigram entropy {material.validation.unigram_entropy:.4f} nats"
    )
    start_at_frequencies(
        encoder.model, np.bincount(material.sequences.stream.ids, minlength=len(tokenizer)).astype(np.int64)
    )
    outcome = _train(config.pretrain, encoder, material, run, resume, say) if config.pretrain.max_steps else None
    with atomic_path(run.model) as temporary:
        encoder.save(temporary)
        tokenizer.save_pretrained(temporary)
    write_json(run.metrics, _metrics(run, material.validation, outcome) | {"parameters": parameters})


def _tokenizer(
    config: PretrainConfig, corpus: Corpus, run: Run, before: dict[str, Any], say: Say
) -> PreTrainedTokenizerFast:
    """Train, load or, on resume, find again the tokenizer; it is kept in the folder ``tokenizer`` of the run."""
    from tinyhat.data.corpus import text_parts
    from tinyhat.data.wordpiece import FLAVOURS, train_wordpiece
    from tinyhat.encoder.masked_lm import load_full_tokenizer, wrap_tokenizer

    folder = run.path / "tokenizer"
    if folder.is_dir() and "tokenizer" in before:
        if file_sha256(folder / "tokenizer.json") != before["tokenizer"]["sha256"]:
            raise UserError(
                f"--resume: {folder / 'tokenizer.json'} has changed since the run began: its ids are learnt"
            )
        return load_full_tokenizer(str(folder))
    flavour = next((f for f in FLAVOURS if f == config.tokenizer), None)
    if flavour is None:
        tokenizer = load_full_tokenizer(config.tokenizer)
        say(f"tokenizer: {config.tokenizer}")
    else:
        parts = (part for text in corpus.train for part in text_parts(text))
        tokenizer = wrap_tokenizer(train_wordpiece(parts, flavour, config.vocabulary), max(config.lengths))
        say(f"tokenizer: WordPiece ({flavour}) of {len(tokenizer)} entries, trained on the corpus")
    with atomic_path(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    # a tokenizer as it is read back, so that a resumed run has the very same
    return load_full_tokenizer(str(folder))


def _material(config: PretrainConfig, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> _Material:
    from tinyhat.data.masking import Masking
    from tinyhat.data.sequences import Sequences, encode_texts
    from tinyhat.data.wordpiece import word_starts
    from tinyhat.encoder.load import plain_tokenizer
    from tinyhat.train.masked_lm import Validation

    backend = plain_tokenizer(tokenizer)
    frame = (int(tokenizer.cls_token_id), int(tokenizer.sep_token_id))
    eligible = np.ones(len(tokenizer), bool)
    eligible[tokenizer.all_special_ids] = False
    masking = Masking(config.masking, config.mask_share, int(tokenizer.mask_token_id), eligible, word_starts(backend))
    train, held_out = (
        Sequences(encode_texts(texts, backend), config.lengths, frame) for texts in (corpus.train, corpus.validation)
    )
    validation = Validation(held_out, masking, config.validation_tokens, config.pack_tokens, config.seed)
    return _Material(train, masking, validation)


def _train(config: PretrainConfig, encoder: Encoder, material: _Material, run: Run, resume: bool, say: Say) -> Outcome:
    from tinyhat.encoder.precision import choose_plan, pick_device
    from tinyhat.train.loop import Trainer
    from tinyhat.train.masked_lm import MaskedLM
    from tinyhat.train.precision import choose_train_plan

    device = pick_device()
    # without an fp32 head, which fine-tuning has: this one is as large as the vocabulary
    plan = choose_train_plan(choose_plan("auto", device).name if config.plan == "auto" else config.plan, device)
    say(f"plan: {plan.name} on {device.type} ({plan.reason})")

    def evaluate() -> tuple[str, float]:
        loss = material.validation.loss(encoder, plan, device)
        entropy = material.validation.unigram_entropy
        say(f"validation: masked-LM loss {loss:.4f} (unigram entropy {entropy:.4f}, perplexity {math.exp(loss):.1f})")
        return "masked_lm_log_likelihood", -loss

    objective = MaskedLM(material.sequences, material.masking, config)
    trainer = Trainer(encoder, objective, config, plan, run, evaluate)
    say(
        f"pretrain: {trainer.steps} steps of {config.batch_size} x {config.lengths[0]} tokens, {config.optimizer} at "
        f"{config.learning_rate:g}, {config.masking} masking"
    )
    return trainer.fit(resume, say)


def _metrics(run: Run, validation: Validation, outcome: Outcome | None) -> dict[str, Any]:
    """Return what metrics.json holds: the last validation loss beside the unigram entropy, and how it fell."""
    found: dict[str, Any] = {
        "task": TASK,
        "masked_lm_loss": None,
        "unigram_entropy": validation.unigram_entropy,
        "validation_tokens": validation.tokens,
        "validation_tokens_asked": validation.asked,
        "history": [],
    }
    if outcome is not None:
        lines = map(json.loads, run.log.read_text(encoding="utf-8").splitlines())
        found["history"] = [[x["step"], -x["evaluation"]["value"]] for x in lines if "evaluation" in x]
        assert outcome.best_value is not None
        found |= {
            "masked_lm_loss": -outcome.best_value,
            "steps": outcome.steps,
            "best_step": outcome.best_step,
            "sequences_per_second": outcome.documents_per_second,
            "tokens_per_second": outcome.tokens_per_second,
            "peak_memory_gb": outcome.peak_memory_gb,
            "train_seconds": outcome.seconds,
        }
    return found
