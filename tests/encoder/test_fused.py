"""Fused parts compute what stock ones do; on a GPU the kernels too. Without one, stock functions stand in for them."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from tests.tiny.models import tiny_model
from torch import nn
from transformers import LayoutLMConfig, LayoutLMForSequenceClassification
from transformers.models.bert.modeling_bert import BertOutput

from tinyhat.encoder import interface
from tinyhat.encoder.fused import attention as attention_module
from tinyhat.encoder.fused import install, parts, whole
from tinyhat.encoder.fused.attention import Pack
from tinyhat.encoder.fused.launch import available
from tinyhat.encoder.fused.layer import Facts, Weights, post_norm_layer
from tinyhat.encoder.fused.ops import branch
from tinyhat.encoder.load import enable_checkpointing
from tinyhat.encoder.long import local_attention
from tinyhat.encoder.path import install_packing

FIRST_POSITION = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}
POST_NORM = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not available(), reason="needs a GPU")


@pytest.fixture
def everywhere(monkeypatch):
    """Fused parts run on the processor, with the stock functions that `launch` has there."""
    monkeypatch.setattr(install, "available", lambda: True)
    for module in (parts, whole):
        monkeypatch.setattr(module, "on_a_gpu", lambda hidden: True)
        monkeypatch.setattr(module, "is_proven", lambda *_: True)


def pack(first_position: int) -> dict:
    lengths = [9, 30, 3, 9, 1, 17]
    random = np.random.default_rng(1)
    return {
        "input_ids": torch.from_numpy(random.integers(5, 200, sum(lengths)))[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None] + first_position,
        "cu_seqlens": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
        "max_seqlen": max(lengths),
        "gather": True,
    }


def packed(model: nn.Module, first_position: int = 0) -> nn.Module:
    assert install_packing(model.eval(), first_position, 64, {0, 1, 2, 3}) == ""
    return model


def pair(family: str = "bert") -> tuple[nn.Module, nn.Module]:
    """Return a packed model that is stock, and the same one fused."""
    stock = packed(tiny_model(family), FIRST_POSITION.get(family, 0))
    fused = copy.deepcopy(stock)
    # four parts a layer, but the last is whole no more
    assert install.install_fused(fused) == 4 * stock.config.num_hidden_layers - 1
    return stock, fused


def logits_and_gradients(model: nn.Module, inputs: dict) -> list[torch.Tensor]:
    model.zero_grad()
    logits = model(**inputs).logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(fused, stock, inputs):
    for got, expected in zip(logits_and_gradients(fused, inputs), logits_and_gradients(stock, inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("family", POST_NORM)
def test_logits_and_gradients_of_packs_and_batches(everywhere, family):
    stock, fused = pair(family)
    batch = {"input_ids": torch.randint(5, 200, (3, 8)), "attention_mask": torch.ones(3, 8, dtype=torch.int64)}
    batch["attention_mask"][1, 5:] = 0
    for inputs in (pack(FIRST_POSITION.get(family, 0)), batch):
        assert_same(fused, stock, inputs)


@pytest.mark.parametrize("family", ["distilbert", "modernbert", "albert"])
def test_other_layers_stay_as_they_are(everywhere, family):
    model = tiny_model(family)
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    install.install_fused(model)
    touched = [n for n, m in model.named_modules() if {"forward", "feed_forward_chunk"} & (vars(m).keys() - before[n])]
    assert not touched


def test_a_part_of_the_same_names_that_computes_something_else_stays(everywhere):
    class Scaled(BertOutput):
        def forward(self, hidden_states, input_tensor):
            return 2 * super().forward(hidden_states, input_tensor)

    model = tiny_model("bert")
    for layer in model.bert.encoder.layer:
        layer.output.__class__ = Scaled
    install.install_fused(model)
    assert all("forward" not in vars(layer.output) for layer in model.bert.encoder.layer)
    assert all("forward" in vars(layer.attention.output) for layer in model.bert.encoder.layer)


def test_without_a_gpu_nothing_is_replaced(monkeypatch):
    monkeypatch.setattr(install, "available", lambda: False)
    assert install.install_fused(tiny_model("bert")) == 0


def test_on_a_processor_replaced_methods_run_the_stock_ones(monkeypatch):
    monkeypatch.setattr(install, "available", lambda: True)
    stock = tiny_model("bert").eval()
    model = copy.deepcopy(stock)
    assert install.install_fused(model) > 0
    ids = torch.randint(5, 200, (2, 9))
    assert torch.equal(model(input_ids=ids).logits, stock(input_ids=ids).logits)


def test_a_copy_computes_with_its_own_weights(everywhere):
    model = tiny_model("bert").eval()
    install.install_fused(model)
    ids = torch.randint(5, 200, (2, 9))
    before = model(input_ids=ids).logits
    for parameter in copy.deepcopy(model).parameters():
        parameter.data.zero_()
    assert torch.equal(model(input_ids=ids).logits, before)


def test_adapters_and_frozen_weights(everywhere):
    class Adapted(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) + 1

    stock = packed(tiny_model("bert"))
    for parameter in stock.bert.encoder.layer[0].parameters():
        parameter.requires_grad_(False)
    fused = copy.deepcopy(stock)
    install.install_fused(fused)
    for model in (stock, fused):
        model.bert.encoder.layer[1].attention.self.key.__class__ = Adapted
        model.bert.encoder.layer[1].intermediate.dense.__class__ = Adapted
    assert_same(fused, stock, pack(0))


def test_the_gradient_of_a_branch():
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 3), (4, 3))]
    assert torch.autograd.gradcheck(branch, inputs)


@pytest.mark.parametrize("window", [2, 8, 64])
def test_local_attention_stays_local(everywhere, window):
    """The comparison at loading has five tokens: a window of eight looks like none there."""
    stock = packed(tiny_model("bert"))
    fused = copy.deepcopy(stock)
    for model in (stock, fused):
        local_attention(model, window)
    install.install_fused(fused)
    assert_same(fused, stock, pack(0))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for names of before
@pytest.mark.parametrize("targets", ["all-linear", ["dense"], ["query", "value"]])
def test_lora_of_peft(everywhere, targets):
    peft = pytest.importorskip("peft")
    stock, fused = pair()
    adapted = []
    for model in (stock, fused):
        torch.manual_seed(0)
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False)
        adapted.append(peft.get_peft_model(model, config).eval())
    assert_same(adapted[1], adapted[0], pack(0))


def test_a_wrapped_module_and_one_without_bias(everywhere):
    stock, fused = pair()
    for model in (stock, fused):
        first, second = model.bert.encoder.layer
        first.attention.output.dense.bias = None
        second.output.dense.bias = None
    assert_same(fused, stock, pack(0))

    class Wrapped(nn.Module):
        def __init__(self, attention):
            super().__init__()
            self.inner = attention

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    for model in (stock, fused):
        model.bert.encoder.layer[0].attention = Wrapped(model.bert.encoder.layer[0].attention)
    assert_same(fused, stock, pack(0))


def test_dropout_is_on_where_its_own_module_says_so(everywhere):
    """Monte Carlo dropout leaves it on in evaluation."""
    _, model = pair()

    def differ():
        return not torch.equal(model(**pack(0)).logits, model(**pack(0)).logits)

    drops = [m for m in model.bert.encoder.modules() if isinstance(m, nn.Dropout)]
    model.eval()
    assert not differ()
    for module in drops:
        module.train()
    assert differ()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    assert not differ()


def test_a_backward_pass_under_autocast(everywhere):
    stock, fused = pair()
    gradients = []
    for model in (stock, fused):
        loss = model(**pack(0)).logits.square().sum()
        with torch.autocast("cpu", torch.bfloat16):
            loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm()) < 0.05 * float(gradients[0].norm())


def layer_shapes():
    """Seven tokens of width 8, and a layer's weights."""
    wide = {"up": (16, 8), "down": (8, 16), "up_bias": (16,)}
    return [(7, 8), *(wide.get(name, (8, 8) if i < 6 else (8,)) for i, name in enumerate(Weights._fields))]


@pytest.mark.parametrize("frozen", ["", "hidden", "query", "key_bias", "out", "up", "down", "first_norm"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_gradient_of_a_whole_layer(rate, frozen):
    torch.manual_seed(0)
    names = ["hidden", *Weights._fields]
    inputs = [torch.randn(shape, dtype=torch.float64) / 2 for shape in layer_shapes()]
    inputs = [x.requires_grad_(name != frozen) for name, x in zip(names, inputs, strict=True)]
    boundaries = Pack(torch.tensor([0, 5, 7], dtype=torch.int32), 5)

    def layer(hidden, *weights):
        torch.default_generator.manual_seed(4)
        return post_norm_layer(
            hidden, boundaries, Facts(4, 0.5, (1e-5, 1e-3), (rate, rate), flash=False), Weights(*weights)
        )

    assert torch.autograd.gradcheck(layer, inputs)
    with torch.no_grad():
        assert torch.equal(layer(*inputs), layer(*inputs))


def named(operator, args, kwargs):
    """Bind a call to what torch says the operator takes."""
    arguments = operator._schema.arguments
    assert {a.name for a in arguments if a.kwarg_only} >= set(kwargs)
    given = [a.name for a in arguments if not a.kwarg_only]
    assert len(given) == len(args)  # none of these has a default
    return dict(zip(given, args, strict=True)) | kwargs


def test_flash_kernels_are_called_as_torch_declares_them(monkeypatch):
    """Stand-ins that compute the same from the arguments' names: kernels and gradients in a whole layer."""
    aten = torch.ops.aten
    declared = aten._flash_attention_forward.default, aten._flash_attention_backward.default
    called = []

    def attention(x):
        cu, longest = x["cum_seq_q"], x["max_q"]
        assert (x["dropout_p"], x["is_causal"], x["max_k"]) == (0.0, False, longest)
        return interface.attend(x["query"], x["key"], x["value"], cu, x["cum_seq_k"], longest, longest, x["scale"])

    def forward(*args, **kwargs):
        called.append("forward")
        x = named(declared[0], args, kwargs)
        return attention(x), torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0)

    def backward(*args, **kwargs):
        called.append("backward")
        x = named(declared[1], args, kwargs)
        assert [float(x[name]) for name in ("logsumexp", "rng_state", "unused")] == [1, 2, 3]
        with torch.enable_grad():
            asked = [x[name].detach().requires_grad_() for name in ("query", "key", "value")]
            out = attention(x | dict(zip(("query", "key", "value"), asked, strict=True)))
        assert torch.equal(out, x["out"])
        return torch.autograd.grad(out, asked, x["grad_out"])

    def run(flash):
        torch.manual_seed(0)
        tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in layer_shapes()]
        facts = Facts(4, 0.5, (1e-5, 1e-5), (0.2, 0.2), flash)
        out = post_norm_layer(
            tensors[0], Pack(torch.tensor([0, 5, 7], dtype=torch.int32), 5), facts, Weights(*tensors[1:])
        )
        return [out, *torch.autograd.grad(out.square().sum(), tensors)]

    stock = run(False)
    monkeypatch.setattr(attention_module, "takes_varlen", lambda *_: True)
    monkeypatch.setattr(aten, "_flash_attention_forward", forward)
    monkeypatch.setattr(aten, "_flash_attention_backward", backward)
    for got, expected in zip(run(True), stock, strict=True):
        torch.testing.assert_close(got, expected)
    assert called == ["forward", "backward"]


def test_a_checkpointed_layer_and_one_with_hooks_keep_their_parts(everywhere, monkeypatch):
    _, model = pair()
    run = []
    monkeypatch.setattr(whole, "fused_whole", lambda *args, **kwargs: run.append(1) or args[1])
    count = model.config.num_hidden_layers - 1  # the last computes first rows only
    model(**pack(0))
    assert len(run) == count
    handle = model.bert.encoder.layer[0].attention.output.LayerNorm.register_forward_hook(lambda *_: None)
    model(**pack(0))
    assert len(run) == 2 * count - 1
    handle.remove()
    enable_checkpointing(model)
    model.train()(**pack(0))
    assert len(run) == 2 * count - 1
    model.eval()(**pack(0))
    assert len(run) == 3 * count - 1


def test_a_pickled_model_comes_back(everywhere):
    model = tiny_model("bert").eval()
    install.install_fused(model)
    ids = torch.randint(5, 200, (2, 9))
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(input_ids=ids).logits, model(input_ids=ids).logits)


def test_layers_that_return_something_else_stay(everywhere):
    """LayoutLM's attention has BERT's names, takes the mask by keyword and returns no pair."""
    shape = {"vocab_size": 200, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "num_labels": 3}
    config = LayoutLMConfig(**shape, intermediate_size=64, max_position_embeddings=64)
    stock = packed(LayoutLMForSequenceClassification(config))
    fused = copy.deepcopy(stock)
    assert install.install_fused(fused) > 0
    assert_same(fused, stock, pack(0))


def test_equal_lengths_are_a_rectangle():
    torch.manual_seed(0)
    query, key, value = (torch.randn(8 * 128, 2, 8, dtype=torch.float64) for _ in range(3))
    even = torch.arange(0, 8 * 128 + 1, 128, dtype=torch.int32)
    uneven = even.clone()
    uneven[1] += 1
    assert interface._uniform(query, key, even, 128, 128)
    assert not interface._uniform(query, key, uneven, 129, 129)
    assert not interface._uniform(query[: 7 * 128], key[: 7 * 128], even[:8], 128, 128)  # seven of them
    assert not interface._uniform(query[:8], key, even, 1, 128)  # first rows
    assert not interface._uniform(query[: 8 * 16], key[: 8 * 16], even // 8, 16, 16)  # too short to plan for
    expected = interface._sdpa_by_length(query, key, value, even, even, 0.3)
    torch.testing.assert_close(interface._dense(query, key, value, 128, 128, 0.3), expected)


@needs_gpu
@pytest.mark.parametrize("family", POST_NORM)
def test_logits_and_gradients_on_a_gpu(family):
    stock, fused = pair(family)
    inputs = pack(FIRST_POSITION.get(family, 0))
    on_gpu = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    expected = logits_and_gradients(stock, inputs)
    fused.cuda().zero_grad()
    logits = fused(**on_gpu).logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3)).cuda()).sum().backward()
    got = [logits.detach(), *(p.grad for p in fused.parameters() if p.grad is not None)]
    for a, b in zip(got, expected, strict=True):
        assert float((a.cpu() - b).norm()) <= 1e-4 * float(b.norm()) + 1e-6
