"""LTG-BERT with its masked-LM head, run packed; the vocabulary layer computes only the rows that are asked for.

T tokens of a pack, M of them asked for, B sequences, V entries of the vocabulary, D width.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tinyhat.encoder.cross_entropy import token_losses
from tinyhat.encoder.dropout import install_fast_dropout
from tinyhat.encoder.interface import NAME
from tinyhat.encoder.load import Encoder
from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM
from tinyhat.errors import UserError
from tinyhat.types import NOT_ASKED, IntArray, Pack

SIZES = {  # hidden size, intermediate size, heads; all have 12 layers (Samuel et al. 2023, table 6)
    "xs": (192, 512, 3),
    "small": (384, 1024, 6),
    "base": (768, 2048, 12),
}
NEEDED = ("cls", "sep", "mask", "pad", "unk")


def new_masked_lm(size: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> Encoder:
    """Return an LTG-BERT with random weights, ready for packs.

    Args:
        size: xs, small or base.
        tokenizer: its number of entries is V.
        seed: of the weights.
    """
    width, inner, heads = SIZES[size]
    config = LtgBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LtgBertForMaskedLM(config)
    return masked_lm_encoder(model, tokenizer, f"ltg_bert {size}")


def masked_lm_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> Encoder:
    """Make a masked LM of our own take packs (see `masked_lm_losses`)."""
    model.set_attn_implementation(NAME)
    install_fast_dropout(model)
    last = model.base_model.transformer.layers[-1]
    last.forward = MethodType(_last_layer, last)
    return Encoder(
        model,
        tokenizer,
        name,
        packed=True,
        reason="packed: no padding is computed and attention dropout is 0",
        notes=[],
        first_position=0,
        max_positions=None,
        pad_token_id=int(tokenizer.pad_token_id),
        takes_token_types=False,
    )


def start_at_frequencies(model: LtgBertForMaskedLM, counts: IntArray) -> None:
    """Set the output bias to the log frequency of every token, so that no step is spent on learning them.

    The loss begins near the unigram entropy instead of log V (9.7 for 16,384 entries); all it gains from there is
    context. The published models begin at 0.

    Args:
        model: with random weights.
        counts: int64 [V] how often each token occurs in the text; one half is added.
    """
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    with torch.no_grad():
        model.lm_head.out_proj.bias.copy_(torch.from_numpy(np.log(shares).astype(np.float32)))


def _last_layer(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Compute behind the last attention only the states [1, M, D] that the keyword `rows` (int64 [M]) names.

    The feed-forward part is two thirds of a layer's products: with 15% of the places asked for this saves 5% of 12
    layers.
    """
    rows = kwargs.get("rows")
    if rows is None:
        return type(layer).forward(layer, hidden_states, *args, **kwargs)
    attended, _ = layer.attention(hidden_states, *args, **kwargs)
    states = (hidden_states + attended)[:, rows]
    return states + layer.mlp(states)


def masked_lm_losses(encoder: Encoder, pack: Pack, device: torch.device) -> torch.Tensor:
    """Return the summed cross-entropy of the tokens asked for in every sequence of `pack`, in nats, fp32 [B].

    Args:
        encoder: by `masked_lm_encoder`; `model` may be a DDP wrapper.
        pack: with token targets.
        device: where the model is.
    """
    assert pack.token_targets is not None
    places = np.flatnonzero(pack.token_targets != NOT_ASKED)
    owner = np.repeat(pack.sequence_doc, np.diff(pack.cu_seqlens))[places]
    logits_MV = encoder.model(
        input_ids=torch.from_numpy(pack.input_ids).to(device)[None],
        cu_seqlens=torch.from_numpy(pack.cu_seqlens).to(device),
        max_seqlen=pack.max_seqlen,
        rows=torch.from_numpy(places).to(device),
    ).logits[0]
    targets_M = torch.from_numpy(pack.token_targets[places]).to(device)
    losses_M = token_losses(logits_MV, targets_M)
    return losses_M.new_zeros(pack.documents).index_add(0, torch.from_numpy(owner).to(device), losses_M)


def wrap_tokenizer(backend: Any, length: int) -> PreTrainedTokenizerFast:
    """Return a trained tokenizer as transformers has it; `length` is its ``model_max_length`` in tokens."""
    names = {f"{key}_token": f"[{key.upper()}]" for key in NEEDED}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=length,
        extra_special_tokens=["[PAR]", "[TAB]"],
        **names,
    )


def load_full_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer for masked-LM training from a folder (a run's own is in its model folder).

    Raises:
        UserError: there is none, or it has no token for [CLS], [SEP], [MASK], [PAD] or [UNK].
    """
    path = Path(name)
    places = (path, path / "model", path / "tokenizer")
    source = next((p for p in places if (p / "tokenizer.json").is_file()), path)
    if not (source / "tokenizer.json").is_file():
        raise UserError(
            f"pretrain.tokenizer = {name!r} is neither bnc, babylm nor a folder with tokenizer.json: check the path"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"pretrain.tokenizer = {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = [key for key in NEEDED if getattr(tokenizer, f"{key}_token_id") is None]
    if missing or not isinstance(tokenizer, PreTrainedTokenizerFast):
        what = f"a {missing[0]} token" if missing else "a fast form"
        raise UserError(f"pretrain.tokenizer = {name!r} lacks {what}, which masked-LM training needs: take another")
    highest = max(tokenizer.get_vocab().values())
    if highest >= len(tokenizer):
        raise UserError(
            f"pretrain.tokenizer = {name!r} has {len(tokenizer)} entries and the id {highest}, for which a model of as "
            "many entries has no row: number its entries without gaps"
        )
    return tokenizer
