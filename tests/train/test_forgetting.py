"""What is measured of forgetting: known values on known changes; replay's gradient against a second computation."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny.ltg_bert import save_ltg
from tests.tiny.models import save_tiny, tiny_config, tiny_tokenizer
from tests.train.strategies import lesson
from transformers import AutoModelForMaskedLM

from tinyhat.config import EncoderConfig, ReadingConfig
from tinyhat.data.packing import build_pack
from tinyhat.data.passages import neighbours, parted, read_passages
from tinyhat.data.reading import Reader, Reading
from tinyhat.encoder.hidden import hidden_states, load_masked_lm
from tinyhat.encoder.layers import stack_of
from tinyhat.encoder.load import backend_tokenizer, load_encoder
from tinyhat.errors import UserError
from tinyhat.train.forgetting import PROBE, Forgetting, linear_cka, mean_cosine
from tinyhat.train.precision import choose_train_plan
from tinyhat.train.replay import Replay, asked, masked
from tinyhat.types import NOT_ASKED

WORDS = ["law", "court", "market", "fish", "tax", "trade", "milk", "ship", "union", "state", "rule", "year"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def text(tmp_path):
    """Paragraphs, each about three words: neighbours share them."""
    dice = random.Random(0)
    lines = []
    for _ in range(60):
        topic = dice.sample(WORDS, 3)
        lines.append(" ".join(" ".join(dice.choices(topic, k=7)).capitalize() + "." for _ in range(8)))
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))
    return path


def save_with_head(folder, family):
    """Save a tiny checkpoint with its masked-LM head, and a tokenizer."""
    if family == "ltg":
        return save_ltg(folder)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(tiny_config(family)).save_pretrained(folder)
    tiny_tokenizer("bpe" if family == "roberta" else "wordpiece").save_pretrained(folder)
    return folder


def load(folder, **settings):
    return load_encoder(str(folder), "single", ["a", "b", "c"], EncoderConfig(**settings), 48, 0)


def test_cka_is_one_after_a_rotation_and_falls_with_noise():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(500, 8)).astype(np.float32) + 3
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    assert linear_cka(a, 2.5 * a @ rotation - 7) == pytest.approx(1)
    assert linear_cka(a, rng.normal(size=(500, 8)).astype(np.float32)) < 0.1
    centred = a - a.mean(0)
    gram_a, gram_b = (x @ x.T for x in (centred, centred**3 - (centred**3).mean(0)))  # HSIC of two Gram matrices
    expected = np.sum(gram_a * gram_b) / np.sqrt(np.sum(gram_a**2) * np.sum(gram_b**2))
    assert linear_cka(a, centred**3) == pytest.approx(expected, rel=1e-4)


def test_cosine_is_a_mean_over_tokens():
    a = np.array([[1, 0], [1, 0], [2, 2]], dtype=np.float32)
    b = np.array([[3, 0], [0, 1], [-1, -1]], dtype=np.float32)
    assert mean_cosine(a, b) == pytest.approx((1 + 0 - 1) / 3)


@pytest.mark.parametrize(("family", "path"), [("bert", "auto"), ("bert", "padded"), ("ltg", "auto")])
def test_hidden_states_are_those_of_one_sequence_at_a_time(tmp_path, family, path):
    encoder = load(save_with_head(tmp_path / "m", family), path=path)
    reading = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=32)).read(
        ["law court", "fish", "tax trade milk ship union"]
    )
    pack = build_pack(reading, np.arange(3), encoder.first_position)
    with torch.no_grad():
        encoder.model.eval()
        found = hidden_states(encoder, pack, CPU)
        for begin, end in zip(pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
            ids = torch.from_numpy(pack.input_ids[begin:end])[None]
            alone = encoder.model.base_model(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            ).hidden_states
            assert len(found) == len(alone)
            for layer, state in zip(found, alone, strict=True):
                torch.testing.assert_close(layer[begin:end], state[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "ltg"])
def test_the_masked_lm_head_reads_the_classifiers_body(tmp_path, family):
    folder = save_with_head(tmp_path / "m", family)
    encoder = load(folder)
    head = load_masked_lm(encoder)
    assert head is not None
    ids = np.array([5, 6, 7, 8, 9, 10, 11, 12], dtype=np.int64)
    targets = np.where(np.arange(8) % 2, ids, NOT_ASKED)
    reading = Reading(ids.astype(np.int32), np.array([0, 3, 8]), np.zeros(2, np.int64), np.zeros(2, np.int64))
    pack = replace(build_pack(reading, np.arange(2), encoder.first_position), token_targets=targets)
    stock = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    head.model.eval()
    with torch.no_grad():
        found = head.loss(encoder, pack, CPU)
        expected = 0.0
        for begin, end in ((0, 3), (3, 8)):
            logits = stock(input_ids=torch.from_numpy(ids[begin:end])[None]).logits[0]
            expected += torch.nn.functional.cross_entropy(
                logits, torch.from_numpy(targets[begin:end]), ignore_index=-100, reduction="sum"
            )
        torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-4, atol=1e-4)
        words = encoder.model.get_input_embeddings().weight  # one body, one tied matrix
        words.add_(torch.randn(words.shape, generator=torch.Generator().manual_seed(0)))
        assert abs(float(head.loss(encoder, pack, CPU)) - float(found)) > 1e-3
    body = {id(p) for p in encoder.model.base_model.parameters()}
    assert all(p.requires_grad == (id(p) in body) for p in head.model.parameters())


def test_a_checkpoint_without_the_head_has_none(tmp_path):
    assert load_masked_lm(load(save_tiny(tmp_path / "m", "bert"))) is None


def test_replay_without_a_head_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="needs the masked-LM head"):
        lesson(tmp_path, replay=str(text))


@pytest.mark.parametrize("family", ["bert", "ltg"])
def test_replay_adds_the_gradient_of_the_masked_lm_loss(tmp_path, text, family):
    save_with_head(tmp_path / f"model-{family}", family)
    one = lesson(tmp_path, family, replay=str(text), replay_weight=0.7, replay_tokens=200)
    replay = next(s for s in one.trainer.strategies if isinstance(s, Replay))
    model = one.encoder.model
    for module in [*model.modules(), *replay.head.model.modules()]:
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = torch.get_rng_state()
    replay.after_backward(5)
    assert torch.equal(torch.get_rng_state(), state)
    first = {n: p.grad.clone() for n, p in model.named_parameters()}
    assert all(torch.equal(first[n], torch.ones_like(first[n])) for n in stack_of(model).head)
    # the same passages and masks, through stock attention, by backward
    generator = np.random.default_rng([one.config.train.seed, 5, 1])
    rows = replay._rows(generator)
    pack = build_pack(replay.reading, rows, one.encoder.first_position)
    assert 60 < pack.tokens <= 200
    pack = masked(pack, replay.masking, generator)
    ids, targets = pack.input_ids, pack.token_targets
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / f"model-{family}", attn_implementation="sdpa").eval()
    total = 0.0
    for begin, end in zip(pack.cu_seqlens[:-1], pack.cu_seqlens[1:], strict=True):
        logits = stock(input_ids=torch.from_numpy(ids[begin:end])[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits, torch.from_numpy(targets[begin:end]), ignore_index=-100, reduction="sum"
        )
    (0.7 * total / asked(pack)).backward()
    expected = {n: p.grad for n, p in stock.named_parameters() if p.grad is not None}
    body = set(stack_of(model).body)
    compared = 0
    for name in body & set(expected):
        torch.testing.assert_close(first[name] - 1, expected[name], rtol=1e-3, atol=2e-6, msg=name)
        compared += 1
    assert compared >= len(body) - 3  # a pooler is not in the masked-LM model


def test_replay_keeps_the_masked_lm_loss_low(tmp_path, text):
    def loss_after(**settings):
        one = lesson(tmp_path, "ltg", **settings)
        measured = Forgetting(one.encoder, str(text), CPU, 0)
        for _ in range(25):
            one.trainer.train_step()
        facts = measured.report()["masked_lm_loss"]
        return facts["before"], facts["after"]

    save_with_head(tmp_path / "model-ltg", "ltg")
    before, forgotten = loss_after()
    same, kept = loss_after(replay=str(text), replay_weight=1.0, replay_tokens=400)
    assert same == before
    assert kept < forgotten
    assert kept < before


@pytest.mark.parametrize("family", ["bert", "ltg"])
def test_an_encoder_that_did_not_change_forgot_nothing(tmp_path, text, family):
    encoder = load(save_with_head(tmp_path / "m", family))
    measured = Forgetting(encoder, str(text), CPU, 0)
    facts = measured.report()
    assert [layer["layer"] for layer in facts["layers"]] == list(range(1 + encoder.model.config.num_hidden_layers))
    for layer in facts["layers"]:
        assert layer["cosine"] == pytest.approx(1)
        assert layer["cka"] == pytest.approx(1)
    assert facts["probe"]["task"] == PROBE
    assert facts["probe"]["before"] == facts["probe"]["kept"] == facts["probe"]["refitted"]
    assert facts["probe"]["before"] > 0.7  # chance is 0.5: neighbours share their words
    assert facts["masked_lm_loss"]["before"] == facts["masked_lm_loss"]["after"]


def test_a_layer_that_changed_shows_from_there_on(tmp_path, text):
    encoder = load(save_with_head(tmp_path / "m", "bert"))
    measured = Forgetting(encoder, str(text), CPU, 0)
    encoder.model.train()
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if ".layer.1." in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    facts = measured.report()
    assert encoder.model.training
    assert [layer["cka"] == pytest.approx(1) for layer in facts["layers"]] == [True, True, False]
    assert facts["layers"][2]["cosine"] < 0.95


def test_passages_and_pairs(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(
        'One two three four five six. "He said so to the man." Short one.\n'
        "Seven eight nine ten eleven twelve! Is this the next of the sentences? Last words of this line here.\n"
    )
    passages = read_passages(str(path))
    assert len(passages) == 1
    pairs = neighbours(passages)
    assert ("One two three four five six.", '"He said so to the man."') in pairs
    assert len({s for pair in pairs for s in pair}) == 2 * len(pairs)
    many = [(f"a{i}", f"b{i}") for i in range(40)]
    mixed, together = parted(many, 0)
    assert together.sum() == 20
    assert [a for a, _ in mixed] == [a for a, _ in many]
    assert sorted(b for _, b in mixed) == sorted(b for _, b in many)
    assert all((a[1:] == b[1:]) == bool(t) for (a, b), t in zip(mixed, together, strict=True))


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is not a file"), ("", "is empty|holds no text"), ("Word.\n", "are needed")]
)
def test_a_text_that_cannot_serve_is_one_sentence(tmp_path, content, said):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content)
    encoder = load(save_tiny(tmp_path / "m", "bert"))
    with pytest.raises(UserError, match=said):
        Forgetting(encoder, str(path), CPU, 0)


def test_the_masked_lm_head_goes_where_its_body_is(tmp_path):
    encoder = load(save_with_head(tmp_path / "m", "bert"))
    head = load_masked_lm(encoder)
    encoder.model.to("meta")
    head._follow_body()
    assert {p.device.type for p in head.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("family", "plan"), [("ltg", "bf16_master"), ("ltg", "bf16_body_fp32_head"), ("bert", "bf16_pure")]
)
def test_what_was_forgotten_is_measured_of_weights_in_16_bits_too(tmp_path, text, family, plan):
    encoder = load(save_with_head(tmp_path / "m", family))
    measured = Forgetting(encoder, str(text), CPU, 0)
    choose_train_plan(plan, CPU).store(encoder.model)
    facts = measured.report()
    assert facts["layers"][-1]["cosine"] > 0.99
    assert facts["masked_lm_loss"]["after"] == pytest.approx(facts["masked_lm_loss"]["before"], rel=0.02)
