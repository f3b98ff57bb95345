"""The checks of benchmarks/gpu.py: packed equals stock one by one, attention and fused parts float64, steps repeat."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from tinyhat.config import EncoderConfig
from tinyhat.data.packing import build_pack
from tinyhat.data.reading import Reading
from tinyhat.encoder.forward import forward_pack
from tinyhat.encoder.fused.launch import available
from tinyhat.encoder.fused.proof import TOLERANCE, Kernel, fused_error
from tinyhat.encoder.interface import VARLEN_DTYPES, attend
from tinyhat.encoder.load import Encoder, wrap_model
from tinyhat.types import IntArray, Pack

FAMILIES = ("bert", "roberta", "modernbert", "distilbert")
LENGTHS = np.array([70, 9, 33, 33, 128, 5], dtype=np.int64)
EQUAL = np.full(8, 128, dtype=np.int64)
LABELS = 11
FP32, BF16 = 2e-5, 2.0  # of the largest value; and bf16's error as a multiple of the one-by-one bf16 error


def run_checks(device: torch.device) -> list[str]:
    """Run every check, print a line each, and return those that failed."""
    checks: list[tuple[str, Callable[[torch.device], str]]] = [
        ("attention against float64", _attention),
        ("attention with a window against float64", _window),
        ("attention of equal lengths against float64", _equal),
        ("fused dropout, sum and norm against float64", lambda device: _fused("norm", device)),
        ("fused bias and GELU against float64", lambda device: _fused("gelu", device)),
        ("sums over rows against float64", lambda device: _fused("sums", device)),
        ("flash kernels of a whole layer", lambda device: _fused("attention", device, 64, 3001, VARLEN_DTYPES)),
        *((f"{family} packed against one by one", _family(family)) for family in FAMILIES),
        ("the same step twice", _twice),
    ]
    faults = []
    for name, check in checks:
        try:
            found = check(device)
            failed = found.startswith("FAILED")
        except Exception as error:
            found, failed = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:200]}", True
        print(f"check: {name}: {found}", file=sys.stderr, flush=True)
        if failed:
            faults.append(f"{name}: {found}")
    return faults


def _attention(device: torch.device) -> str:
    return _attention_error(device, LENGTHS, window=0)


def _equal(device: torch.device) -> str:
    return _attention_error(device, EQUAL, window=0)


def _window(device: torch.device) -> str:
    return _attention_error(device, LENGTHS, window=17)


def _attention_error(device: torch.device, lengths: IntArray, window: int) -> str:
    """Compare output and gradients of `attend` in bf16 with float64; as good as plain softmax in bf16 is enough."""
    torch.manual_seed(0)
    inputs = [torch.randn(int(lengths.sum()), 4, 64) for _ in range(4)]  # query, key, value, gradient of the output
    cu = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)

    def run(dtype: torch.dtype, plain: bool) -> list[torch.Tensor]:
        low = [x.to(device, torch.bfloat16).to(dtype) for x in inputs]
        q, k, v = (x.clone().requires_grad_() for x in low[:3])
        longest = int(lengths.max())
        out = _plain(q, k, v, lengths, window) if plain else attend(q, k, v, cu, cu, longest, longest, 0.125, window)
        out.backward(low[3])
        return [x.detach().double() for x in (out, q.grad, k.grad, v.grad) if x is not None]

    exact, stock, ours = run(torch.float64, True), run(torch.bfloat16, True), run(torch.bfloat16, False)
    errors = [(_off(a, e), _off(s, e)) for a, s, e in zip(ours, stock, exact, strict=True)]
    text = ", ".join(f"{a:.1e} (plain bf16 {s:.1e})" for a, s in errors)
    return text if all(a <= 1.5 * s for a, s in errors) else f"FAILED: {text}"


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: IntArray, window: int) -> torch.Tensor:
    parts = []
    begin = 0
    for length in lengths.tolist():
        rows = slice(begin, begin + length)
        scores = torch.einsum("qhd,khd->hqk", q[rows] * 0.125, k[rows])
        if window:
            place = torch.arange(length, device=q.device)
            scores = scores.masked_fill((place[:, None] - place).abs() >= window, float("-inf"))
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[rows]))
        begin += length
    return torch.cat(parts)


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _family(family: str) -> Callable[[torch.device], str]:
    def check(device: torch.device) -> str:
        """Logits and gradients: fp32 within rounding, bf16 as good as one by one in bf16."""
        encoder, model = _encoder(family)
        if not encoder.packed:
            return f"FAILED: {encoder.reason}"
        exact = _one_by_one(model, encoder, device, None)
        packed = _packed(encoder, device, None)
        off = [_off(a, b) for a, b in zip(packed, exact, strict=True)]
        low = _packed(encoder, device, torch.bfloat16)
        stock = _one_by_one(model, encoder, device, torch.bfloat16)
        errors = [(_off(a, e), _off(s, e)) for a, s, e in zip(low, stock, exact, strict=True)]
        text = f"fp32 {max(off):.1e}; bf16 " + ", ".join(f"{a:.1e} (one by one {s:.1e})" for a, s in errors)
        good = all(o <= FP32 for o in off) and all(a <= BF16 * s for a, s in errors)
        return text if good else f"FAILED: {text}"

    return check


def _encoder(family: str) -> tuple[Encoder, PreTrainedModel]:
    """Return a small encoder as the package runs it, and the same model as transformers does."""
    shape = {"vocab_size": 300, "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
    shape |= {"intermediate_size": 256, "max_position_embeddings": 200, "pad_token_id": 0, "num_labels": LABELS}
    if family == "roberta":
        shape |= {"pad_token_id": 1}
    if family == "distilbert":
        shape |= {"dim": 128, "n_heads": 2, "n_layers": 3, "hidden_dim": 256}
    if family == "modernbert":
        shape |= {"global_attn_every_n_layers": 3, "local_attention": 32, "cls_token_id": 2, "sep_token_id": 3}
        shape |= {"bos_token_id": 2, "eos_token_id": 3}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **shape))
    words = Tokenizer(WordLevel({"[PAD]": int(shape["pad_token_id"]), "[UNK]": 4}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    stock = copy.deepcopy(model)
    return wrap_model(family, model, tokenizer, EncoderConfig()), stock


def _pack(encoder: Encoder, rows: IntArray) -> Pack:
    ids = np.random.default_rng(0).integers(5, 300, LENGTHS.sum()).astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    return build_pack(Reading(ids, ends, LENGTHS, LENGTHS), rows, encoder.first_position)


def _packed(encoder: Encoder, device: torch.device, low: torch.dtype | None) -> list[torch.Tensor]:
    encoder.model.to(device)

    def logits() -> torch.Tensor:
        return forward_pack(encoder, _pack(encoder, np.arange(len(LENGTHS))), device)

    return _logits_and_gradients(encoder.model, logits, device, low)


def _one_by_one(
    model: PreTrainedModel, encoder: Encoder, device: torch.device, low: torch.dtype | None
) -> list[torch.Tensor]:
    packs = [_pack(encoder, np.array([i])) for i in range(len(LENGTHS))]
    ids = [torch.from_numpy(p.input_ids).to(device)[None] for p in packs]
    model.to(device)

    def logits() -> torch.Tensor:
        return torch.cat([model(input_ids=x, attention_mask=torch.ones_like(x)).logits for x in ids])

    return _logits_and_gradients(model, logits, device, low)


def _logits_and_gradients(
    model: PreTrainedModel, compute: Callable[[], torch.Tensor], device: torch.device, low: torch.dtype | None
) -> list[torch.Tensor]:
    """Return the logits [S, L] of all sequences, and all gradients of a fixed combination of them, laid end to end."""
    model.eval().zero_grad(set_to_none=True)
    with nullcontext() if low is None else torch.autocast(device.type, low):
        logits = compute()
    factors = torch.from_numpy(np.random.default_rng(1).standard_normal(tuple(logits.shape))).to(device)
    (logits.double() * factors).sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [logits.detach().double(), gradients.double()]


def _fused(
    kernel: Kernel,
    device: torch.device,
    width: int = 768,
    rows: int = 10_007,
    dtypes: Iterable[torch.dtype] = TOLERANCE,
) -> str:
    if not available():
        return "no GPU: stock layers run"
    errors = {
        (dtype, stored): fused_error(kernel, device, width, dtype, stored, rows)
        for dtype in dtypes
        for stored in {dtype, torch.float32}
    }
    text = ", ".join(f"{dtype} with {stored} weights {off:.1e}" for (dtype, stored), off in errors.items())
    return text if all(off <= TOLERANCE[dtype] for (dtype, _), off in errors.items()) else f"FAILED: {text}"


def _twice(device: torch.device) -> str:
    encoder, _ = _encoder("roberta")
    first, again = (_packed(encoder, device, torch.bfloat16) for _ in range(2))
    if not torch.equal(first[0], again[0]):
        return f"FAILED: logits differ by {_off(first[0], again[0]):.1e}"
    same = torch.equal(first[1], again[1])
    return f"logits to the bit, gradients {'to the bit' if same else f'to {_off(first[1], again[1]):.1e} (atomics)'}"
