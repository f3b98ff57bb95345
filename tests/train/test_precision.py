"""Every plan is what it says, from building to loading; a plan that is not stops with the difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.corpus import tiny_dataset
from tests.tiny.models import save_tiny, tiny_model

from tinyhat.config import TrainConfig, build_config
from tinyhat.encoder.precision import PLANS, choose_plan
from tinyhat.errors import UserError
from tinyhat.head.learned_vote import attach_vote, learned_logits, vote_of, with_vectors
from tinyhat.head.output import compute_in_fp32, low_while_training, output_layer
from tinyhat.predict import PACK_TOKENS, load
from tinyhat.run import Run
from tinyhat.train import update as updates
from tinyhat.train.classifier import prepare, train_classifier
from tinyhat.train.loop import Trainer
from tinyhat.train.optim import build_optimizer
from tinyhat.train.precision import (
    ALIASES,
    MINIMUM,
    TRAIN_PLANS,
    TrainPlan,
    as_train_plan,
    choose_train_plan,
    describe,
    missing_need,
)
from tinyhat.train.update import Update

CPU = torch.device("cpu")
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
RUNNABLE = [
    name
    for name in TRAIN_PLANS
    if not missing_need(choose_train_plan(name, CPU), CPU) and name not in ("bf16_compile", "fp16_naive")
]
REFERENCE = [
    "fp32_true", "fp32_baseline", "amp_fp16", "amp_bf16", "bf16_pure", "fp16_naive", "bf16_naive",
    "amp_fp16_8bit_adam", "amp_bf16_8bit_adam", "bf16_no_compile", "fp32_tf32_matmul", "amp_bf16_fp32_head",
    "bf16_body_fp32_head", "fp32", "tf32", "fp32_bf16x1", "amp_fp16_fp32_head", "amp_bf16_8bit", "amp_fp16_8bit",
    "amp_bf16_fp8opt", "bf16_pure_fused", "bf16_fp32_states", "bf16_master", "bf16_split_master", "bf16_kahan",
    "bf16_sr", "bf16_fp32_norms", "bf16_softmax_lowp", "bf16_fp32_softmax", "fp16_static", "fp16_master",
    "fp8_tensorwise", "fp8_rowwise", "fp8_rowwise_gw_hp", "cpu_amp_bf16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYHAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plans")
    return tiny_dataset(folder / "data", "multi", train=24, dev=8, test=0), save_tiny(folder / "model", "roberta")


def settings(model, plan, **changes):
    base = {
        "encoder.model": str(model), "reading.max_tokens": 48, "train.plan": plan, "train.batch_size": 8,
        "train.learning_rate": 1e-3, "train.max_steps": 3, "train.evaluate_every": 100, "train.pack_tokens": 100,
    }  # fmt: skip
    return build_config(None, base | changes)


def fit(corpus, folder, plan, **changes):
    dataset, model = corpus
    config = settings(model, plan, **changes)
    run = Run(folder)
    run.path.mkdir()
    return train_classifier(prepare(config, dataset, lambda _: None), config, dataset, run, False, lambda _: None), run


@pytest.mark.parametrize("name", REFERENCE)
def test_every_name_of_the_reference_is_accepted(name):
    plan = choose_train_plan(name, CPU)
    assert plan.name == ALIASES.get(name, name)
    assert "another name" in plan.reason or name not in ALIASES


def test_the_table_is_whole():
    assert set(MINIMUM) <= set(TRAIN_PLANS)
    for name in TRAIN_PLANS:
        plan = choose_train_plan(name, CPU)
        assert plan.predicts in PLANS
        assert not (plan.master != "none" and plan.rounding != "once")
        assert plan.autocast == (plan.compute != plan.body)
        assert set(describe(plan)) == set(describe(choose_train_plan("fp32", CPU)))
    with pytest.raises(UserError, match=r"train.plan = 'bf16_kahn' .*did you mean 'bf16_kahan'"):
        choose_train_plan("bf16_kahn", CPU)


@pytest.mark.parametrize("name", RUNNABLE)
def test_dtypes_while_training_and_in_the_saved_model(corpus, tmp_path, name):
    trained, run = fit(corpus, tmp_path / name, name)  # asserts storage, gradients, states and logits itself
    plan = choose_train_plan(name, CPU)
    model = trained.predictor.encoder.model
    head = {f"classifier.{part}" for part in ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")}
    saved = load_file(run.model / "model.safetensors")
    for key, parameter in model.named_parameters():
        norm = "LayerNorm" in key and plan.norms is not None
        expected = torch.float32 if norm else plan.head if key in head else plan.body
        assert parameter.dtype == saved[key].dtype == expected, key
    lines = [json.loads(x) for x in run.log.read_text().splitlines()]
    assert all(0 < x["loss"] < 100 for x in lines if "loss" in x)
    assert all(("loss_scale" in x) == (plan.scale != "none") for x in lines if "loss" in x)


@pytest.mark.parametrize("name", ["bf16_master", "bf16_body_fp32_head", "amp_bf16"])
def test_a_reloaded_model_keeps_its_plan(corpus, tmp_path, name):
    from tinyhat.conclude import decide_run
    from tinyhat.evaluate.scores import write_scores
    from tinyhat.types import Scores

    dataset, model = corpus
    trained, run = fit(corpus, tmp_path / name, name)
    dev = dataset.splits["dev"]
    trained.predictor.pack_tokens = PACK_TOKENS  # other packs round differently
    logits = trained.predictor.logits(trained.predictor.reader.read(dev.texts))
    write_scores(run.scores, "dev", Scores(dev.ids, logits, dev.targets, trained.predictor.plan))
    manifest = {
        "task": "multi", "labels": list(dataset.labels.names), "data": {"name": "x", "sha256": "x"},
        "train_counts": dataset.labels.train_counts.tolist(),
    }  # fmt: skip
    decide_run(run, settings(model, name), manifest)
    again = load(run.path)
    assert again.decision.plan == choose_train_plan(name, CPU).predicts
    assert (again.logits(dev.texts) == logits).all()
    again.predictor.numeric_plan.check(again.predictor.encoder.model, "after loading")


def test_a_folder_with_fewer_bits_than_its_decision_says_is_refused(tmp_path):
    from tinyhat.encoder.precision import check_file

    model = tiny_model("bert")
    model.bfloat16().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"plan fp32 is not what it says in .*bfloat16, not float32"):
        check_file(choose_plan("fp32", CPU), tiny_model("bert"), tmp_path)
    check_file(choose_plan("bf16", CPU), tiny_model("bert"), tmp_path)


def logits_dtype(plan, low):
    model = tiny_model("bert")
    layer = output_layer(model, 3)
    compute_in_fp32(layer)
    low_while_training(model, low)
    seen = []
    layer.register_forward_hook(lambda _m, _a, out: seen.append(out.dtype))
    with plan.context(CPU):
        model(input_ids=torch.randint(5, 100, (2, 7)))
    return seen[0]


def test_the_fp32_head_is_fp32_under_autocast_and_the_low_one_is_not():
    assert logits_dtype(choose_train_plan("amp_bf16_fp32_head", CPU), low=False) == torch.float32
    assert logits_dtype(choose_train_plan("amp_bf16", CPU), low=True) == torch.bfloat16


def test_an_fp32_head_that_is_none_is_caught():
    plan = choose_train_plan("amp_bf16_fp32_head", CPU)
    with pytest.raises(UserError, match=r"amp_bf16_fp32_head .*the head's output is bfloat16, not float32"):
        plan.check_logits(torch.zeros(1, dtype=torch.bfloat16), "in the first step")


def test_a_wrong_plan_is_caught_at_every_check():
    plan = choose_train_plan("bf16_pure_fused", CPU)
    model = tiny_model("bert")
    with pytest.raises(UserError, match=r"bf16_pure_fused is not what it says after building: .*float32, not bfloat16"):
        plan.check_model(model, "after building")
    update = Update(model, TrainConfig(), plan, 32)
    model.classifier.float()  # what somebody's .to() does
    with pytest.raises(UserError, match=r"classifier.weight is float32, not bfloat16"):
        plan.check_model(model, "in the first step")
    model.classifier.bfloat16()
    sum(p.float().square().sum() for p in model.parameters()).backward()
    update.optimizer.step()
    plan.check_states(update.optimizer, model, "after the first step")
    with pytest.raises(UserError, match="exp_avg of"):
        replace(plan, states="fp32").check_states(update.optimizer, model, "after the first step")
    with pytest.raises(UserError, match="the master of"):
        replace(plan, master="fp32").check_states(update.optimizer, model, "after the first step")


@pytest.mark.parametrize("family", ["modernbert", "bert", "distilbert"])
def test_fp32_norms_compute_where_the_head_has_a_norm_too(family):
    model = tiny_model(family)
    plan = choose_train_plan("bf16_fp32_norms", CPU)
    Update(model, TrainConfig(), plan, 32)
    with plan.context(CPU):
        loss = model(input_ids=torch.randint(5, 100, (2, 7))).logits.float().square().sum()
    loss.backward()
    plan.check_model(model, "in the first step")
    norms = {n: p.dtype for n, p in model.named_parameters() if "norm" in n.lower()}
    assert norms == {n: torch.bfloat16 if n.startswith("head.") else torch.float32 for n in norms}


@pytest.mark.parametrize("vote", ["attention", "transformer"])
@pytest.mark.parametrize("low", [True, False])
def test_the_logits_of_a_model_with_a_learned_vote_are_its_output_layers(vote, low):
    model = tiny_model("bert")
    attach_vote(model, 3, vote, 0)
    layer = output_layer(model, 3)
    plan = choose_train_plan("amp_bf16", CPU)
    Update(model, TrainConfig(), plan, 32)
    low_while_training(model, low)

    def step():
        with plan.context(CPU), with_vectors(layer):
            both = model(input_ids=torch.randint(5, 100, (3, 7))).logits
        return learned_logits(vote_of(model), layer, both, torch.tensor([0, 0, 1]), 2)

    if low:
        assert step().shape == (2, 3)
    else:
        with pytest.raises(UserError, match="in the first step: the head's output is float32, not bfloat16"):
            step()


def test_a_head_that_computes_otherwise_stops_the_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("tinyhat.train.update.low_while_training", lambda model, low: None)
    with pytest.raises(UserError, match="in the first step: the head's output is float32, not bfloat16"):
        fit(corpus, tmp_path / "run", "amp_bf16")


def test_weights_that_were_cast_after_building_stop_the_run(corpus, tmp_path, monkeypatch):
    kept = Trainer.train_step

    def cast(self):
        self.bare.model.classifier.out_proj.bfloat16()
        return kept(self)

    monkeypatch.setattr(Trainer, "train_step", cast)
    with pytest.raises(UserError, match=r"in the first step: classifier.out_proj.weight is bfloat16, not float32"):
        fit(corpus, tmp_path / "run", "amp_bf16")


def test_moments_in_another_dtype_stop_the_run(corpus, tmp_path, monkeypatch):
    build = updates.build_optimizer

    def other(model, config, width, plan, originals):
        return build(model, config, width, replace(plan, states="bf16", rounding="Kahan"), originals)

    monkeypatch.setattr(updates, "build_optimizer", other)
    with pytest.raises(UserError, match=r"after the first step: exp_avg of .* is torch.bfloat16"):
        fit(corpus, tmp_path / "run", "bf16_fp32_states")


def after_a_step(plan):
    model = tiny_model("bert")
    update = Update(model, TrainConfig(), plan, 32)
    sum(p.float().square().sum() for p in model.parameters()).backward()
    update.optimizer.step()
    return model, update.optimizer


def test_8_bit_states_that_are_none_are_caught():
    plan = choose_train_plan("amp_bf16_8bit", CPU)
    model, optimizer = after_a_step(plan)
    plan.check_states(optimizer, model, "after the first step")
    kept = plan.states_in_fp32(optimizer, model)
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert kept == [n for n, size in sizes.items() if size < 4096]
    assert len(kept) < len(sizes)
    model, optimizer = after_a_step(choose_train_plan("amp_bf16", CPU))
    with pytest.raises(UserError, match=r"exp_avg of bert.embeddings.word_embeddings.weight is torch.float32"):
        plan.check_states(optimizer, model, "after the first step")
    assert choose_train_plan("amp_bf16", CPU).states_in_fp32(optimizer, model) == []


def test_8_bit_states_where_the_plan_has_none_are_caught():
    model, optimizer = after_a_step(choose_train_plan("amp_bf16_8bit", CPU))
    with pytest.raises(UserError, match=r"state1 of .*uint8"):
        choose_train_plan("amp_bf16", CPU).check_states(optimizer, model, "after the first step")


@pytest.mark.parametrize("small", [1e-2, 1e-3, 1e-5])
def test_8_bit_states_never_move_a_weight_further_than_fp32(small):
    """A gradient far below the block's largest, and then none: fp8 states store its square as 0 and divide by eps."""

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, 4096))

    moved = {}
    for name in ("amp_bf16_8bit", "amp_bf16"):
        model = Body()
        optimizer = build_optimizer(
            model, TrainConfig(learning_rate=3e-3, weight_decay=0.0, head_rate=1), 384, choose_train_plan(name, CPU)
        )
        for step in range(6):
            model.weight.grad = torch.zeros(2, 4096)
            model.weight.grad[0, :2] = torch.tensor([1.0, small if step < 2 else 0.0])
            optimizer.step()
        moved[name] = model.weight[0, :2].detach().abs()
    assert torch.allclose(moved["amp_bf16_8bit"][0], moved["amp_bf16"][0], rtol=1e-3)
    assert 0 < moved["amp_bf16_8bit"][1] <= 1.05 * moved["amp_bf16"][1]


def test_fp8_states_are_those_of_their_codes():
    plan = choose_train_plan("amp_bf16_fp8opt", CPU)
    model = torch.nn.ModuleDict({"whole": torch.nn.Linear(64, 64, False), "odd": torch.nn.Linear(64, 65, False)})
    states = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters())
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {"exp_avg": states[name]}
    with pytest.raises(UserError, match=r"exp_avg of whole.weight is torch.float32"):
        plan.check_states(optimizer, model, "after the first step")
    states["whole.weight"].codes = torch.zeros(4096, dtype=torch.float8_e4m3fn)  # as torchao's tensors have them
    plan.check_states(optimizer, model, "after the first step")
    assert plan.states_in_fp32(optimizer, model) == ["odd.weight"]  # 4,160 values are no whole number of blocks


def test_a_plan_of_prediction_leaves_the_head_to_its_objective():
    plan = as_train_plan(choose_plan("amp_bf16", CPU))
    assert isinstance(plan, TrainPlan)
    assert plan.fp32_head is None
    assert plan.predicts == plan.name == "amp_bf16"


def test_what_a_processor_cannot_run_says_why(corpus, tmp_path):
    with pytest.raises(UserError, match="tf32 is fp32 here: set to 'high'"):
        fit(corpus, tmp_path / "run", "tf32")


@pytest.mark.parametrize("name", ["amp_bf16_8bit", "amp_bf16_fp8opt", "bf16_master", "bf16_sr", "amp_fp16"])
def test_low_plans_resume_to_the_same_bits(corpus, tmp_path, name):
    if need := missing_need(choose_train_plan(name, CPU), CPU):
        pytest.skip(need)
    dataset, model = corpus
    changes = {"train.max_steps": 6, "train.checkpoint_every": 3}
    whole, _ = fit(corpus, tmp_path / "whole", name, **changes)
    run = Run(tmp_path / "cut")
    run.path.mkdir()
    config = settings(model, name, **changes)
    prepared = prepare(config, dataset, lambda _: None)

    class StopError(Exception):
        pass

    def stop(self, *_):
        if self.progress.step == 5:
            raise StopError
        return kept(self, *_)

    kept = Trainer.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        with pytest.raises(StopError):
            train_classifier(prepared, config, dataset, run, False, lambda _: None)
    again = train_classifier(prepare(config, dataset, lambda _: None), config, dataset, run, True, lambda _: None)
    a, b = (dict(t.predictor.encoder.model.named_parameters()) for t in (whole, again))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_page_has_the_table_as_it_is():
    page = (Path(__file__).parent.parent.parent / "docs" / "dtypes.md").read_text()
    for name in TRAIN_PLANS:
        row = describe(choose_train_plan(name, CPU))
        cells = [f"`{name}`", *(text for column, text in row.items() if column not in ("plan", "softmax", "compile"))]
        assert "| " + " | ".join(cells) + " |" in page, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_fp8_products_take_any_number_of_tokens(monkeypatch, recipe):
    """A GPU's want a multiple of 16 (torch's own check, which runs on tensors without values too)."""
    pytest.importorskip("torchao.float8")
    monkeypatch.setattr("torch._meta_registrations.device_hint", lambda _: "cuda")
    model = tiny_model("bert").to("meta", torch.bfloat16)
    updates._fp8_products(model, recipe)
    layer = model.bert.encoder.layer[0].intermediate.dense
    assert type(layer) is not torch.nn.Linear
    layer(torch.empty(57, layer.in_features, device="meta", dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
