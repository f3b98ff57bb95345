"""Published LTG-BERT checkpoints: other names for the same weights, a config that does not say the layout."""

from __future__ import annotations

import dataclasses
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM, LtgBertPreTrainedModel
from tinyhat.encoder.ltg_bert.layers_ltg_bert import LtgBertAttention
from tinyhat.encoder.ltg_bert.transfer import Transfer, check_transfer
from tinyhat.encoder.quiet import quiet
from tinyhat.errors import UserError
from tinyhat.run import atomic_path, read_json

LAYOUTS = ("split", "interleaved")
State = dict[str, torch.Tensor]
Model = TypeVar("Model", bound=LtgBertPreTrainedModel)
_TO_OURS = (
    (r"^embedding\.", "model.embedding."),
    (r"^transformer\.layers\.", "model.transformer.layers."),
    (r"\.mlp\.mlp\.1\.", ".mlp.up."),
    (r"\.mlp\.mlp\.4\.", ".mlp.down."),
    (r"^classifier\.nonlinearity\.1\.", "lm_head.dense."),
    (r"^classifier\.nonlinearity\.5\.", "lm_head.out_proj."),
    (r"^head\.nonlinearity\.1\.", "head.dense."),
    (r"^head\.nonlinearity\.5\.", "head.out_proj."),
)
_TO_THEIRS = (
    (r"^model\.", ""),
    (r"\.mlp\.up\.", ".mlp.mlp.1."),
    (r"\.mlp\.down\.", ".mlp.mlp.4."),
    (r"^lm_head\.dense\.", "classifier.nonlinearity.1."),
    (r"^lm_head\.out_proj\.", "classifier.nonlinearity.5."),
    (r"^head\.dense\.", "head.nonlinearity.1."),
    (r"^head\.out_proj\.", "head.nonlinearity.5."),
)
# a table every layer of the original carried, and the next-sentence head of some
_WITHOUT_USE = re.compile(r"(\.position_indices$)|(^next_sentence_classifier\.)")


def from_published(state: Mapping[str, torch.Tensor]) -> State:
    """Return the weights of a published state dict under our names, without its position tables and sentence head."""
    return {_rename(name, _TO_OURS): t for name, t in state.items() if not _WITHOUT_USE.search(name)}


def to_published(state: Mapping[str, torch.Tensor]) -> State:
    """Return our weights under the published names; a tied output matrix is there, as it is in theirs."""
    return {_rename(name, _TO_THEIRS): t for name, t in state.items()}


def load_published(folder: str | Path, layout: str, kind: type[Model]) -> tuple[Model, Transfer]:
    """Load a published checkpoint, in fp32, into one of our classes.

    Args:
        folder: with config.json and model.safetensors or pytorch_model.bin (read with ``weights_only=True``).
        layout: ``split`` or ``interleaved``; `detect_layout` finds out.
        kind: for example LtgBertForMaskedLM.

    Returns:
        The model in evaluation mode, and what it took over.

    Raises:
        UserError: no such files, an unknown layout, sizes that do not fit together, foreign weights.
    """
    folder = Path(folder)
    config = _config(folder, layout)
    state = from_published(_weights(folder))
    words, output = state.get("model.embedding.word_embedding.weight"), state.get("lm_head.out_proj.weight")
    if words is not None and output is not None:  # most files hold the tied matrix twice, some once
        config.tie_word_embeddings = torch.equal(words, output)
    settings = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet():
        model, report = kind.from_pretrained(None, config=config, state_dict=state, **settings)
    return model.eval(), check_transfer(str(folder), model, report, fresh_head=False)


def detect_layout(folder: str | Path, texts: Sequence[str], tokens: int = 128, seed: int = 0) -> dict[str, float]:
    """Return the masked-LM loss of a published checkpoint under both layouts; the lower is the layout it was made with.

    Args:
        folder: the checkpoint, with its tokenizer.json.
        texts: a few dozen sentences of its language.
        tokens: read of each text.
        seed: of the masked places (15% of the tokens).

    Raises:
        UserError: as `load_published`; a tokenizer without [MASK]; losses so near that the text decides nothing.
    """
    model = _masked_lm(folder, "split")
    ids, labels, mask = _masked(Path(folder), texts, tokens, seed, model.config.vocab_size)
    found = layout_losses(model, ids, labels, mask)
    low, high = sorted(found.values())
    if high - low < 0.02 * high:
        raise UserError(
            f"{folder}: the loss is {found['split']:.3f} under split and {found['interleaved']:.3f} under interleaved, "
            "too near to tell the layout: give more text of the model's language, or the layout itself"
        )
    return found


def layout_losses(
    model: LtgBertForMaskedLM, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: torch.Tensor
) -> dict[str, float]:
    """Return the masked-LM loss of one model read in both layouts; the model is left as it was.

    Args:
        model: its weights are the same in both.
        input_ids: int64 [B, T], with masked tokens.
        labels: int64 [B, T], -100 where nothing was masked.
        attention_mask: int64 [B, T].
    """
    attentions = [m for m in model.modules() if isinstance(m, LtgBertAttention)]
    before, training = [a.interleaved for a in attentions], model.training
    model.eval()
    found = {}
    try:
        for layout in LAYOUTS:
            for attention in attentions:
                attention.interleaved = layout == "interleaved"
            with torch.no_grad():
                found[layout] = float(model(input_ids, attention_mask, labels=labels).loss)
    finally:
        for attention, value in zip(attentions, before, strict=True):
            attention.interleaved = value
        model.train(training)
    return found


def convert(
    folder: str | Path, out: str | Path, layout: str | None = None, texts: Sequence[str] | None = None
) -> LtgBertConfig:
    """Write a published checkpoint as a folder that ``tinyhat train --model`` and transformers load.

    Args:
        folder: the published checkpoint.
        out: the new folder; it must not exist.
        layout: None: decided by `texts`.
        texts: as in `detect_layout`.

    Raises:
        UserError: neither layout nor texts; a layout that `texts` speak against; `out` exists; no masked-LM head, as in
            a fine-tuned classifier; as `load_published`.
    """
    if layout is None and not texts:
        raise UserError(f"{folder} does not say its layout: give layout='split' or 'interleaved', or texts to find out")
    if Path(out).exists():
        raise UserError(f"{out} exists: choose another folder")
    losses = detect_layout(folder, texts) if texts else {}
    likely = min(losses, key=losses.__getitem__) if losses else layout
    if layout and likely != layout:
        raise UserError(
            f"{folder} is not {layout}: its masked-LM loss is {losses[layout]:.3f} so, and {losses[str(likely)]:.3f} "
            f"as {likely}"
        )
    model = _masked_lm(folder, str(likely))
    with atomic_path(Path(out)) as temporary:
        model.save_pretrained(temporary)
        for pattern in ("tokenizer*.json", "special_tokens_map.json", "vocab.txt"):
            for path in Path(folder).glob(pattern):
                shutil.copy(path, temporary)
    config: LtgBertConfig = model.config
    return config


def save_published(model: LtgBertPreTrainedModel, folder: str | Path) -> None:
    """Write config.json and model.safetensors with the published names, for code that expects them.

    Raises:
        UserError: `folder` exists.
    """
    if Path(folder).exists():
        raise UserError(f"{folder} exists: choose another folder")
    state = {name: t.detach().clone().contiguous() for name, t in to_published(model.state_dict()).items()}
    with atomic_path(Path(folder)) as temporary:
        temporary.mkdir(exist_ok=True)
        model.config.to_json_file(temporary / "config.json")
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _config(folder: Path, layout: str) -> LtgBertConfig:
    if layout not in LAYOUTS:
        raise UserError(f"layout {layout!r} is neither 'split' nor 'interleaved'")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a published LTG-BERT")
    given: dict[str, Any] = read_json(path)
    if "position_bucket_size" not in given:
        raise UserError(f"{path} has no position_bucket_size: it is not the config of an LTG-BERT")
    known = {f.name for f in dataclasses.fields(LtgBertConfig)} & {
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "position_bucket_size"),
        *("layer_norm_eps", "classifier_dropout", "pad_token_id", "id2label", "label2id", "problem_type"),
    }
    settings = {key: value for key, value in given.items() if key in known}
    settings.setdefault("classifier_dropout", given.get("cls_dropout"))
    settings["relative_qk_layout"] = layout
    if (folder / "tokenizer.json").is_file():
        # wrong in every published config, or left out: 4 is [MASK] and 0 is [UNK] there
        pad = _tokenizer(folder).token_to_id("[PAD]")
        settings |= {} if pad is None else {"pad_token_id": pad}
    try:
        return LtgBertConfig(classifier_head="mlp", **settings)
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"{path}: {str(error).strip().splitlines()[-1].strip()}") from None


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is not a tokenizer ({error}): copy it again") from None


def _masked_lm(folder: str | Path, layout: str) -> LtgBertForMaskedLM:
    """Load the masked LM of `folder`, and refuse a checkpoint whose head would start from random weights."""
    model, transfer = load_published(folder, layout, LtgBertForMaskedLM)
    if transfer.fresh:
        raise UserError(
            f"{folder} has no masked-LM head ({next(iter(transfer.fresh))} is not in it): load it with load_published "
            "as what it is, for example LtgBertForSequenceClassification"
        )
    return model


def _weights(folder: Path) -> State:
    safe, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)
        if old.is_file():
            state: State = torch.load(old, map_location="cpu", weights_only=True)
            return state
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({str(error).splitlines()[0]})") from error
    raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _masked(
    folder: Path, texts: Sequence[str], tokens: int, seed: int, vocabulary: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids with 15% of the tokens masked, labels there and -100 elsewhere, and the attention mask, [B, T]."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has no tokenizer.json: the layout cannot be told from text")
    tokenizer = _tokenizer(folder)
    mask_id = tokenizer.token_to_id("[MASK]")
    if mask_id is None or tokenizer.get_vocab_size() > vocabulary:
        raise UserError(f"{path} does not belong to this model: {_disagreement(tokenizer, mask_id, vocabulary)}")
    rows = [torch.tensor(e.ids[:tokens]) for e in tokenizer.encode_batch(list(texts))]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    chosen = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.15) & real.bool()
    chosen[:, 0] = False
    return ids.masked_fill(chosen, mask_id), torch.where(chosen, ids, -100), real


def _disagreement(tokenizer: Tokenizer, mask_id: int | None, vocabulary: int) -> str:
    if mask_id is None:
        return "it has no [MASK]"
    return f"it has {tokenizer.get_vocab_size()} tokens, the model {vocabulary}"
