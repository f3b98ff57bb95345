"""Optimiser states that are tensors of codes and scales are saved in parts; torchao itself is not needed."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from tinyhat.train.checkpoint import Progress, load_checkpoint, save_checkpoint


class Coded(torch.Tensor):
    """A tensor of codes and scales, as torchao's optimisers keep their states."""

    @staticmethod
    def __new__(cls, codes, scale, dtype):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=dtype)

    def __init__(self, codes, scale, dtype):
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self):
        return ["codes", "scale"], [self.dtype]

    @classmethod
    def __tensor_unflatten__(cls, parts, context, size, stride):
        return cls(parts["codes"], parts["scale"], *context)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function}: saving is to look at the parts alone")


def test_a_checkpoint_holds_the_parts_of_states_that_are_coded(monkeypatch, tmp_path):
    module = types.ModuleType("torchao.optim.subclass_fp8")
    module.OptimStateFp8 = Coded
    for name, stub in (("torchao", None), ("torchao.optim", None), ("torchao.optim.subclass_fp8", module)):
        monkeypatch.setitem(sys.modules, name, stub or types.ModuleType(name))
    layer = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    codes = torch.randn(3, 4).to(torch.float8_e4m3fn)
    optimizer.state[layer.weight] = {"step": torch.tensor(7.0), "exp_avg": Coded(codes, torch.rand(2), torch.float32)}
    save_checkpoint(tmp_path, layer, optimizer, Progress(7))
    kept = optimizer.state[layer.weight]["exp_avg"]
    again = torch.optim.AdamW(layer.parameters())
    assert load_checkpoint(tmp_path, layer, again, pytest.fail) is not None
    state = again.state[layer.weight]
    assert set(state) == {"step", "exp_avg"}
    assert float(state["step"]) == 7
    assert isinstance(state["exp_avg"], Coded)
    assert torch.equal(state["exp_avg"].codes.float(), kept.codes.float())
    assert torch.equal(state["exp_avg"].scale, kept.scale)
