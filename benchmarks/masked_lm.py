"""A pretraining step packed, with only the places asked for in the vocabulary layer, against the stock padded form.

    python benchmarks/masked_lm.py [--size xs] [--sequences 32] [--length 128] [--steps 5] [--threads 1] [--record]

Both arms train the same LTG-BERT from the same weights on the same masked sequences (random ids, span masking, a tenth
cut short) with LAMB under bf16 autocast. The stock arm is what transformers does with a padded batch and `labels`:
SDPA attention with the relative bias, dropout of attention probabilities at 0.1 as published, logits everywhere. The
arms take turns; the rate is real tokens over the median step, in CPU seconds of the process on a CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from results import record

from tinyhat.data.masking import Masking, mask_tokens
from tinyhat.data.sequences import Sequences, TokenStream
from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM
from tinyhat.encoder.masked_lm import SIZES, masked_lm_encoder, masked_lm_losses
from tinyhat.encoder.precision import pick_device
from tinyhat.train.lamb import Lamb
from tinyhat.train.masked_lm import MaskedBatch
from tinyhat.types import Pack

VOCABULARY, SPECIAL, MASK_ID = 16384, 7, 4


class Tokenizer:
    """All that an Encoder asks of a tokenizer here."""

    pad_token_id = 3


def main() -> None:
    """Time both arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="xs")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5, help="measured, after one that is not")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--record", action="store_true", help="write the table into benchmarks/RESULTS.md")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = pick_device()
    arms = {"stock": stock_arm(arguments.size, device), "packed": packed_arm(arguments.size, device)}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    losses: dict[str, list[float]] = {name: [] for name in arms}
    packs = make_packs(arguments.sequences, arguments.length, arguments.steps + 1)
    for pack in packs:
        for name, step in arms.items():
            taken, loss = timed(step, pack, device)
            seconds[name].append(taken)
            losses[name].append(loss)
    tokens = statistics.mean(pack.tokens for pack in packs[1:])
    rates = {name: tokens / statistics.median(times[1:]) for name, times in seconds.items()}
    unit = "tokens/s" if device.type == "cuda" else "tokens per CPU second"
    lines = [f"{arguments.size}, {arguments.sequences} sequences of up to {arguments.length} tokens, {device.type}"]
    lines += [f"{name:<8}{rate:>10.0f} {unit}, last loss {losses[name][-1]:.3f}" for name, rate in rates.items()]
    lines.append(f"packed is {rates['packed'] / rates['stock']:.2f}x")
    print("\n".join(lines))
    if arguments.record:
        record("masked_lm", "\n".join(lines))


def make_packs(sequences: int, length: int, steps: int) -> list[Pack]:
    """Return one masked pack a step."""
    random = np.random.default_rng(0)
    ids = random.integers(SPECIAL, VOCABULARY, sequences * steps * (length - 2)).astype(np.int32)
    source = Sequences(TokenStream(ids, np.array([0, len(ids)])), (length,), (1, 2))
    masking = Masking("span", 0.15, MASK_ID, np.arange(VOCABULARY) >= SPECIAL, np.ones(VOCABULARY, bool))
    packs = []
    for step in range(steps):
        rows = np.arange(step * sequences, (step + 1) * sequences)
        tokens, cu_seqlens = source.tokens(rows, 0.1, random)
        packs.append(MaskedBatch(*mask_tokens(tokens, cu_seqlens, masking, random), cu_seqlens, rows).pack(rows))
    return packs


def new_model(size: str, attention_dropout: float, device: torch.device) -> LtgBertForMaskedLM:
    """Return the model both arms begin with."""
    width, inner, heads = SIZES[size]
    torch.manual_seed(0)
    config = LtgBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=heads,
        attention_probs_dropout_prob=attention_dropout,
    )
    model: LtgBertForMaskedLM = LtgBertForMaskedLM(config).train().to(device)
    return model


def stock_arm(size: str, device: torch.device) -> Callable[[Pack], float]:
    """Return a step on padded batches with labels."""
    model = new_model(size, 0.1, device)
    model.set_attn_implementation("sdpa")
    optimizer = Lamb(model.parameters())

    def step(pack: Pack) -> float:
        lengths = np.diff(pack.cu_seqlens)
        real = np.arange(pack.max_seqlen) < lengths[:, None]
        assert pack.token_targets is not None
        ids, labels = np.full(real.shape, 3), np.full(real.shape, -100)
        ids[real], labels[real] = pack.input_ids, pack.token_targets
        inputs = {"input_ids": ids, "labels": labels, "attention_mask": real.astype(np.int64)}
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(**{name: torch.from_numpy(x).to(device) for name, x in inputs.items()}).loss
        return move(loss, optimizer)

    return step


def packed_arm(size: str, device: torch.device) -> Callable[[Pack], float]:
    """Return a step on packs."""
    encoder = masked_lm_encoder(new_model(size, 0.1, device), Tokenizer(), "packed")  # type: ignore[arg-type]
    optimizer = Lamb(encoder.model.parameters())

    def step(pack: Pack) -> float:
        asked = int((pack.token_targets != -100).sum())
        with torch.autocast(device.type, torch.bfloat16):
            losses = masked_lm_losses(encoder, pack, device)
        return move(losses.sum() / asked, optimizer)

    return step


def move(loss: torch.Tensor, optimizer: Lamb) -> float:
    """Take one step down; return the loss."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def timed(step: Callable[[Pack], float], pack: Pack, device: torch.device) -> tuple[float, float]:
    """Return the seconds of one step (of CPU time where it runs there), and its loss."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    loss = step(pack)  # reading the loss waits for the device
    return clock() - begin, loss


if __name__ == "__main__":
    main()
