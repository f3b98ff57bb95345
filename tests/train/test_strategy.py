"""The hooks of the loop: called in order around every step, and what they keep survives a stop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.corpus import tiny_dataset
from tests.tiny.models import save_tiny

from tinyhat.config import EncoderConfig, ReadingConfig, TrainConfig
from tinyhat.data.reading import Reader
from tinyhat.encoder.load import backend_tokenizer, load_encoder
from tinyhat.encoder.precision import choose_plan
from tinyhat.run import Run
from tinyhat.train.loop import Trainer
from tinyhat.train.objective import Classify, Material
from tinyhat.train.strategy import Strategy


class Recorder(Strategy):
    """Writes down what it is called for, doubles gradients, and keeps a sum over steps."""

    def __init__(self):
        self.calls, self.total, self.model = [], torch.zeros(1), None

    def prepare(self, encoder):
        self.model = encoder.model
        self.calls.append("prepare")

    def before_step(self, step):
        assert all(p.grad is None for p in self.model.parameters())
        self.calls.append(f"before {step}")

    def after_backward(self, step):
        assert any(p.grad is not None for p in self.model.parameters())
        self.calls.append(f"backward {step}")

    def after_step(self, step):
        self.total += step
        self.calls.append(f"after {step}")

    def finish(self):
        self.calls.append("finish")

    def state(self):
        return {"total": self.total}

    def load_state(self, state):
        self.total = state["total"].clone()


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))
    dataset = tiny_dataset(tmp_path / "data", "multi")
    model = save_tiny(tmp_path / "model")
    (tmp_path / "run").mkdir()

    def build(steps, strategy):
        encoder = load_encoder(str(model), "multi", dataset.labels.names, EncoderConfig(), 48, 0)
        split = dataset.splits["train"]
        reading = Reader(backend_tokenizer(encoder), ReadingConfig(max_tokens=48)).read(split.texts)
        objective = Classify(encoder, Material(reading, split.targets))
        config = TrainConfig(max_steps=steps, batch_size=8, schedule="constant", warmup_ratio=0)
        return Trainer(
            encoder,
            objective,
            config,
            choose_plan("fp32", torch.device("cpu")),
            Run(tmp_path / "run"),
            None,
            [strategy],
        )

    return build


def test_hooks_are_called_in_order_and_their_state_goes_through_checkpoints(trainer):
    first, second = Recorder(), Recorder()
    trainer(3, first).fit(False, pytest.fail)
    steps = [f"{when} {step}" for step in range(3) for when in ("before", "backward", "after")]
    assert first.calls == ["prepare", *steps, "finish"]
    trainer(5, second).fit(True, pytest.fail)
    steps = [f"{when} {step}" for step in (3, 4) for when in ("before", "backward", "after")]
    assert second.calls == ["prepare", *steps, "finish"]
    np.testing.assert_array_equal(second.total.numpy(), [0 + 1 + 2 + 3 + 4])
