"""Vectors against the plain forward of transformers, one document at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.models import save_tiny
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import tinyhat
from tinyhat.embed import forward as forward_module
from tinyhat.embed.choice import choose_layers
from tinyhat.embed.embedder import Embedder, load_embedder
from tinyhat.errors import UserError

TEXTS = ["law court", "fish", "the milk of trade ships, and taxes", "market " * 7, "union state rules year law"]


def stock(folder, texts, tokens=64):
    """Hidden states [layers + 1, n, D] of each text, cut at `tokens`, by transformers alone."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=tokens)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            out = model(**inputs, output_hidden_states=True)
        found.append(torch.cat(out.hidden_states).numpy())
    return found


def pool(states, pooling):
    n = len(states)
    if pooling == "weighted":
        weights = np.arange(1, n + 1)[:, None]
        return (states * weights).sum(0) / weights.sum()
    by = {"mean": states.mean(0), "max": states.max(0), "cls": states[0], "last": states[-1]}
    return by.get(pooling, states.sum(0) / np.sqrt(n))


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "last", "mean_sqrt", "weighted"])
def test_poolings_are_those_of_one_document_alone(bert, pooling):
    expected = np.stack([pool(states[-1], pooling) for states in stock(bert, TEXTS)])
    found = load_embedder(bert, plan="fp32", pooling=pooling).embed(TEXTS)
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "albert", "modernbert", "deberta-v2"])
def test_families_packed_and_padded(tmp_path, family):
    folder = save_tiny(tmp_path / family, family)
    expected = np.stack([pool(states[-2:].mean(0), "mean") for states in stock(folder, TEXTS)])
    found = load_embedder(folder, plan="fp32", layers="-2:", max_tokens=62).embed(TEXTS)
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize(
    ("layers", "combine", "expected"),
    [
        ("last", "mean", lambda h: h[2]),
        ("first", "mean", lambda h: h[1]),
        ("middle", "mean", lambda h: h[1]),
        ("0", "mean", lambda h: h[0]),
        ("-1", "mean", lambda h: h[2]),
        ("1:", "mean", lambda h: (h[1] + h[2]) / 2),
        ("all", "concat", lambda h: np.concatenate(list(h), axis=1)),
    ],
)
def test_layers(bert, layers, combine, expected):
    states = stock(bert, TEXTS)
    for pooling in ("mean", "max"):
        embedder = load_embedder(bert, plan="fp32", layers=layers, combine=combine, pooling=pooling)
        found = embedder.embed(TEXTS)
        assert found.shape == (len(TEXTS), embedder.width)
        np.testing.assert_allclose(found, [pool(expected(h), pooling) for h in states], atol=2e-6)


def test_a_scalar_mix_and_the_best_choice_of_a_folder(bert, tmp_path):
    (tmp_path / "layers.json").write_text('{"layers": "1:", "pooling": "max", "weights": [0.25, 0.75]}')
    embedder = load_embedder(bert, plan="fp32", layers=f"best:{tmp_path}")
    expected = [pool(0.25 * h[1] + 0.75 * h[2], "max") for h in stock(bert, TEXTS)]
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=2e-6)
    with pytest.raises(UserError, match="there is no layers"):
        load_embedder(bert, layers="best")


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_pooled_is_what_the_last_linear_layer_sees(tmp_path, family):
    folder = save_tiny(tmp_path / family, family)
    embedder = load_embedder(folder, plan="fp32", layers="pooled", max_tokens=62)
    found = embedder.embed(TEXTS)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    layer = model.classifier.out_proj if family == "roberta" else model.classifier
    logits = found @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, row in zip(TEXTS, logits, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=62)
        inputs.pop("token_type_ids", None)
        np.testing.assert_allclose(model(**inputs).logits[0].detach(), row, atol=5e-6)
    with pytest.raises(UserError, match="one vector a document"):
        embedder.words(TEXTS)


def test_hidden_states_have_the_conventions_of_transformers(bert):
    states = tinyhat.load(bert, plan="fp32").hidden_states(TEXTS)
    assert len(states) == 3
    for b, expected in enumerate(stock(bert, TEXTS)):
        n = int(states.attention_mask[b].sum())
        assert n == expected.shape[1]
        for layer in range(3):
            np.testing.assert_allclose(states[layer][b, :n], expected[layer], atol=2e-6)
            assert not states[layer][b, n:].any()
    assert states.offsets[0][1].tolist() == [0, 3]
    assert TEXTS[0][:3] == "law"


def test_long_documents_are_read_by_windows_and_overlaps_averaged(bert):
    text = " ".join(["law", "court", "fish", "tax", "milk"] * 40)
    embedder = load_embedder(bert, plan="fp32", max_tokens=32, budget=64)
    windows = embedder.reader.read([text])
    assert (windows.lengths == 32).all()
    assert set(windows.slots) == set(range(int(windows.sizes[0])))
    model = AutoModel.from_pretrained(bert).eval()
    total, readers = np.zeros((windows.sizes[0], 32)), np.zeros(windows.sizes[0])
    for w in range(len(windows.lengths)):
        part = slice(windows.cu_windows[w], windows.cu_windows[w + 1])
        with torch.no_grad():
            states = model(torch.from_numpy(windows.input_ids[part].astype(np.int64))[None]).last_hidden_state[0]
        total[windows.slots[part]] += states.numpy()
        readers[windows.slots[part]] += 1
    states = total / readers[:, None]
    assert readers.max() > 1
    for pooling in ("mean", "max", "cls", "last", "mean_sqrt", "weighted"):
        embedder = load_embedder(bert, plan="fp32", max_tokens=32, budget=64, pooling=pooling)
        np.testing.assert_allclose(embedder.embed(["fish", text])[1], pool(states, pooling), atol=3e-6)
    head = load_embedder(bert, plan="fp32", max_tokens=32, long="truncate").embed([text])[0]
    np.testing.assert_allclose(head, pool(stock(bert, [text], 32)[0][-1], "mean"), atol=3e-6)


def test_out_of_memory_halves_the_batch_and_loses_nothing(bert, monkeypatch):
    embedder = load_embedder(bert, plan="fp32")
    expected = embedder.embed(TEXTS)
    whole, sizes = forward_module.layer_states, []

    def scarce(encoder, pack, device, every):
        sizes.append(len(pack.rows))
        if len(pack.rows) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return whole(encoder, pack, device, every)

    monkeypatch.setattr(forward_module, "layer_states", scarce)
    np.testing.assert_allclose(embedder.embed(TEXTS), expected, atol=1e-6)
    assert max(sizes) == len(TEXTS)

    def none(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(forward_module, "layer_states", none)
    with pytest.raises(UserError, match="tokens does not fit in memory"):
        embedder.embed(TEXTS)

    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(forward_module, "layer_states", broken)
    with pytest.raises(RuntimeError, match="something else"):
        embedder.embed(TEXTS)


def test_normalize_and_empty_lists(bert):
    embedder = load_embedder(bert, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(embedder.embed(TEXTS), axis=1), 1, atol=1e-6)
    assert embedder.embed([]).shape == (0, 32)
    assert embedder.words([]) == []


def test_bad_settings(bert):
    for settings, message in (
        ({"layers": "lst"}, "did you mean 'last'"),
        ({"layers": "7"}, "the model has 2 layers"),
        ({"layers": "5:9"}, "chooses none"),
        ({"pooling": "men"}, "did you mean 'mean'"),
        ({"max_tokens": 100}, "more than the 64 positions"),
        ({"max_tokens": 2}, "leaves no room"),
        ({"plan": "fp23"}, "fp32"),
    ):
        with pytest.raises(UserError, match=message):
            load_embedder(bert, **settings)
    with pytest.raises(UserError, match="weights for 1 hidden"):
        choose_layers("last", 2, weights=(0.5, 0.5))
    embedder = load_embedder(bert)
    with pytest.raises(UserError, match="a list of texts, not one text"):
        embedder.embed("law")
    with pytest.raises(UserError, match="document 1 is a int"):
        embedder.embed(["law", 3])
    assert isinstance(tinyhat.load(bert), Embedder)
    with pytest.raises(UserError, match="does not exist"):
        tinyhat.load("./nowhere")


def test_pooled_wants_a_trained_classifier(bert, tmp_path):
    AutoModel.from_pretrained(bert).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no trained classifier"):
        load_embedder(tmp_path, layers="pooled")


@pytest.mark.filterwarnings("ignore")  # of sentence-transformers' own imports
def test_poolings_are_those_of_sentence_transformers(bert):
    from sentence_transformers.models import Pooling

    states = load_embedder(bert, plan="fp32").hidden_states(TEXTS)
    names = {"mean": "mean", "max": "max", "cls": "cls", "last": "lasttoken", "mean_sqrt": "mean_sqrt_len_tokens"}
    for ours, theirs in (names | {"weighted": "weightedmean"}).items():
        batch = {
            "token_embeddings": torch.from_numpy(states[-1]),
            "attention_mask": torch.from_numpy(states.attention_mask),
        }
        expected = Pooling(32, pooling_mode=theirs)(batch)["sentence_embedding"].numpy()
        np.testing.assert_allclose(load_embedder(bert, plan="fp32", pooling=ours).embed(TEXTS), expected, atol=2e-6)
