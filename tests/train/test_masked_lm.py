"""The objective of pretraining: packs cost what their sequences cost one by one, and packs change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tinyhat.config import PretrainConfig
from tinyhat.data.masking import Masking
from tinyhat.data.sequences import Sequences, TokenStream
from tinyhat.data.wordpiece import train_wordpiece
from tinyhat.encoder.ltg_bert import LtgBertConfig, LtgBertForMaskedLM
from tinyhat.encoder.masked_lm import masked_lm_encoder, masked_lm_losses, start_at_frequencies, wrap_tokenizer
from tinyhat.encoder.precision import choose_plan
from tinyhat.run import Run
from tinyhat.train.loop import Trainer
from tinyhat.train.masked_lm import MaskedBatch, MaskedLM, Validation, unigram_entropy
from tinyhat.types import NOT_ASKED

V, MASK_ID = 60, 4
CPU = torch.device("cpu")
LENGTHS = (16, 40)


def tiny_encoder(dropout=0.0, **changes):
    settings = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    settings |= {"intermediate_size": 32, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LtgBertForMaskedLM(LtgBertConfig(**(settings | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    tokenizer = wrap_tokenizer(train_wordpiece(["a b c d"], "bnc", V), 40)
    return masked_lm_encoder(model, tokenizer, "tiny")


def tiny_sequences(seed=0):
    random = np.random.default_rng(seed)
    sizes = random.integers(3, 90, 30)
    ids = random.integers(7, V, sizes.sum()).astype(np.int32)
    return Sequences(TokenStream(ids, np.concatenate([[0], np.cumsum(sizes)])), LENGTHS, (1, 2))


def masking(strategy="span"):
    return Masking(strategy, 0.2, MASK_ID, np.arange(V) >= 7, np.arange(V) % 2 == 0)


def objective(**changes):
    config = PretrainConfig(
        **{"lengths": LENGTHS, "max_steps": 8, "batch_size": 10, "pack_tokens": 100, "plan": "fp32", "switches": (0.5,)}
        | changes
    )
    return MaskedLM(tiny_sequences(), masking(), config), config


def test_a_pack_costs_what_stock_transformers_says_one_by_one():
    encoder = tiny_encoder()
    stock = LtgBertForMaskedLM(LtgBertConfig.from_dict(encoder.model.config.to_dict()))
    stock.load_state_dict(encoder.model.state_dict())
    stock.set_attn_implementation("eager")
    found, config = objective()
    plan = found.step_plan(config, 1)
    for step in (0, 7):
        rows = plan.batch(step)
        asked = found.denominator(rows, step)
        pack = found.pack(rows, step)
        losses = masked_lm_losses(encoder, pack, CPU)
        expected, count = [], 0
        for i in range(pack.documents):
            part = slice(pack.cu_seqlens[i], pack.cu_seqlens[i + 1])
            ids, targets = (torch.from_numpy(x[part]) for x in (pack.input_ids, pack.token_targets))
            logits = stock(input_ids=ids[None]).logits[0]
            expected.append(functional.cross_entropy(logits, targets, ignore_index=NOT_ASKED, reduction="sum"))
            count += int((targets != NOT_ASKED).sum())
        torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-5, atol=1e-5)
        assert count == asked
        parameters = [p for p in encoder.model.parameters() if p.requires_grad]
        ours = torch.autograd.grad(losses.sum(), parameters)
        theirs = torch.autograd.grad(sum(expected), list(stock.parameters()))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_row_that_is_twice_in_a_batch_counts_as_it_is_packed():
    rows, cu_seqlens = np.array([3, 5, 3]), np.array([0, 4, 8, 12])
    targets = np.full(12, NOT_ASKED)
    targets[[0, 5, 8, 9, 10]] = 7  # one token of the first, one of the second, three of the first again
    batch = MaskedBatch(np.arange(12), targets, cu_seqlens, rows)
    packs = [batch.pack(part) for part in (rows[:2], rows[2:])]
    assert batch.asked == sum(int(np.count_nonzero(p.token_targets != NOT_ASKED)) for p in packs) == 3


def test_masks_are_those_of_the_step_however_the_batch_is_cut():
    found, config = objective()
    rows = found.step_plan(config, 1).batch(3)
    found.denominator(rows, 3)
    whole = found.pack(rows, 3)
    parts = [found.pack(rows[i : i + 3], 3) for i in range(0, len(rows), 3)]
    by_row = {
        int(row): part.input_ids[part.cu_seqlens[i] : part.cu_seqlens[i + 1]].tolist()
        for part in (whole, *parts)
        for i, row in enumerate(part.rows)
    }
    for i, row in enumerate(whole.rows):
        assert whole.input_ids[whole.cu_seqlens[i] : whole.cu_seqlens[i + 1]].tolist() == by_row[int(row)]
    assert sum(part.tokens for part in parts) == whole.tokens
    assert np.diff(whole.cu_seqlens).tolist() == sorted(np.diff(whole.cu_seqlens), reverse=True)
    fresh, _ = objective()
    fresh.denominator(rows, 3)
    assert np.array_equal(fresh.pack(rows, 3).input_ids, whole.input_ids)  # nothing remembered from other steps
    fresh.denominator(rows, 4)
    assert not np.array_equal(fresh.pack(rows, 4).input_ids, whole.input_ids)


def test_the_size_of_packs_changes_no_step(tmp_path):
    results = []
    for name, tokens in (("small", 60), ("large", 4000)):
        found, config = objective(pack_tokens=tokens, learning_rate=1e-2)
        encoder = tiny_encoder()
        (tmp_path / name).mkdir()
        trainer = Trainer(encoder, found, config, choose_plan("fp32", CPU), Run(tmp_path / name))
        lines = [trainer.train_step() for _ in range(8)]
        results.append((lines, [p.detach().clone() for p in encoder.model.parameters()]))
    small, large = results
    np.testing.assert_allclose([x["loss"] for x in small[0]], [x["loss"] for x in large[0]], rtol=1e-4)
    assert small[0][0]["documents_per_second"] > 0
    for a, b in zip(small[1], large[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


def test_it_learns_what_context_tells(tmp_path):
    # every document repeats one word: what is masked stands beside it
    words = np.repeat(np.arange(7, 27), 30).astype(np.int32)
    sequences = Sequences(TokenStream(words, np.arange(0, 601, 30)), (32,), (1, 2))
    config = PretrainConfig(
        lengths=(32,), switches=(), max_steps=60, batch_size=16, plan="fp32", optimizer="adamw", learning_rate=5e-3
    )
    encoder = tiny_encoder()
    validation = Validation(sequences, masking(), 600, 4096, 0)
    assert validation.unigram_entropy > 2.5
    (tmp_path / "run").mkdir()
    plan = choose_plan("fp32", CPU)
    trainer = Trainer(encoder, MaskedLM(sequences, masking(), config), config, plan, Run(tmp_path / "run"))
    before = validation.loss(encoder, plan, CPU)
    trainer.fit(False, pytest.fail)
    assert validation.loss(encoder, plan, CPU) < 0.7 * validation.unigram_entropy < before


def test_validation_is_the_same_every_time_and_covers_each_sequence_once():
    sequences = tiny_sequences()
    first, again = (Validation(sequences, masking(), 300, 100, 5) for _ in range(2))
    encoder, plan = tiny_encoder(dropout=0.3), choose_plan("fp32", CPU)
    assert first.loss(encoder, plan, CPU) == again.loss(encoder, plan, CPU)
    assert encoder.model.training
    packs = list(first.packs())
    rows = np.concatenate([pack.rows for pack in packs])
    assert len(set(rows.tolist())) == len(rows) == first.sequences
    assert sum(pack.tokens for pack in packs) == first.tokens <= 300
    assert (rows < sequences.counts[0]).all()
    assert sum((pack.token_targets != NOT_ASKED).sum() for pack in packs) == first.asked


def test_unigram_entropy_is_that_of_the_frequencies():
    assert unigram_entropy(np.array([7, 7, 7, 7])) == 0
    assert unigram_entropy(np.arange(8)) == pytest.approx(np.log(8))
    assert unigram_entropy(np.array([1, 1, 1, 2])) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))


def test_the_output_bias_starts_at_the_frequencies():
    encoder = tiny_encoder()
    counts = np.arange(V)
    start_at_frequencies(encoder.model, counts)
    bias = encoder.model.get_output_embeddings().bias.detach().double().exp().numpy()
    np.testing.assert_allclose(bias, (counts + 0.5) / (counts.sum() + V / 2), rtol=1e-5)


def test_a_batch_of_nothing_to_predict_is_a_step_without_loss():
    ids = np.full(20, 3, np.int32)  # special tokens only
    sequences = Sequences(TokenStream(ids, np.array([0, 20])), (12,), (1, 2))
    found = MaskedLM(sequences, masking(), PretrainConfig(lengths=(12,), switches=(), max_steps=2, batch_size=2))
    rows = np.array([0, 1])
    assert found.denominator(rows, 0) == 1
    losses = found.losses(tiny_encoder(), found.pack(rows, 0), CPU)
    assert losses.tolist() == [0.0, 0.0]
    losses.sum().backward()
