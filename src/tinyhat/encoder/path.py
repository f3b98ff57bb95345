"""Packed or padded: decided once per model, by proof: packed attention is installed, compared, taken out if wrong."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from tinyhat.config import EncoderConfig
from tinyhat.encoder.first_row import install_first_row, remove_first_row
from tinyhat.encoder.gather import install_gather
from tinyhat.encoder.interface import NAME
from tinyhat.encoder.stream import install_low_stream
from tinyhat.encoder.verify import packing_fault
from tinyhat.errors import UserError


def choose_path(
    name: str,
    model: PreTrainedModel,
    config: EncoderConfig,
    first_position: int,
    max_positions: int | None,
    avoid: set[int],
) -> tuple[bool, str]:
    """Install packed attention where `config` allows it and the proof holds.

    Args:
        name: as the user called the model, for messages.
        model: a stock ``*ForSequenceClassification`` in fp32.
        config: `path` and `attention_dropout` count here.
        first_position: position id of a first token.
        max_positions: most tokens of a sequence, or None.
        avoid: ids of special tokens, kept out of the proof's random sequences.

    Returns:
        Whether the model runs packed, and one sentence why.

    Raises:
        UserError: ``path="packed"`` with attention dropout, or for a model that fails the proof.
    """
    if config.path == "padded":
        return False, "padded by length: asked for"
    if config.attention_dropout:
        if config.path == "packed":
            raise UserError(
                f"encoder.path = 'packed' and encoder.attention_dropout = {config.attention_dropout:g} exclude each "
                "other: packed attention has no dropout"
            )
        return False, "padded by length: packed attention has no dropout, and encoder.attention_dropout asks for it"
    fault = install_packing(model, first_position, max_positions, avoid)
    if not fault:
        return True, "packed: no padding is computed and attention dropout is 0 (proven equal to one by one)"
    if config.path == "packed":
        raise UserError(f"encoder.path = 'packed': {name} cannot run packed ({fault}); leave it at auto")
    return False, f"padded by length: {fault}"


def install_packing(model: PreTrainedModel, first_position: int, max_positions: int | None, avoid: set[int]) -> str:
    """Make a stock model take packs; return an empty string, or why it cannot, leaving it as it was.

    Args:
        model: a stock ``*ForSequenceClassification`` in fp32.
        first_position: position id of a first token.
        max_positions: most tokens of a sequence, or None.
        avoid: ids of special tokens.
    """
    before = model.config._attn_implementation
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' attention interface"
    model.set_attn_implementation(NAME)
    layer = install_first_row(model)
    handle: Any = install_gather(model, layer is not None)
    fault = packing_fault(model, first_position, max_positions, avoid)
    if fault:
        handle.remove()
        if layer is not None:
            remove_first_row(layer)
        model.set_attn_implementation(before)
    elif layer is not None and hasattr(model.base_model, "embeddings"):
        # the layers first_row knows are post-norm, nothing adds up over depth; LTG-BERT's stream does and stays fp32
        install_low_stream(model)
    return fault
