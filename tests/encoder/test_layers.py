"""Every parameter has one place in the stack, in every family."""

from __future__ import annotations

import pytest
from tests.tiny.models import PACKED, PADDED, tiny_model

from tinyhat.encoder.layers import stack_of
from tinyhat.head.output import head_names

OTHERS = ("mpnet", "longformer")


@pytest.mark.parametrize("family", [*PACKED, *PADDED, *OTHERS])
def test_a_stack_holds_every_parameter_once(family):
    changes = {"attention_window": 4, "sep_token_id": 3} if family == "longformer" else {}
    model = tiny_model(family, "single", 4, **changes)
    stack = stack_of(model)
    names = [name for name, _ in model.named_parameters()]
    assert sorted((*stack.body, *stack.head)) == sorted(names)
    assert sorted(stack.head) == sorted(head_names(model))
    assert len(stack.layers) == (1 if family == "albert" else model.config.num_hidden_layers)
    assert sorted(name for group in stack.groups() for name in group) == sorted(names)
    shapes = [sorted(n.split(f".{i}.", 1)[-1] for n in layer) for i, layer in enumerate(stack.layers)]
    if family != "modernbert":  # its first layer has no attention norm
        assert all(shape == shapes[0] for shape in shapes)
    words = [n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight]
    assert set(words) <= set(stack.embeddings)


@pytest.mark.parametrize(
    ("family", "embeddings", "pooler"),
    [
        ("bert", "bert.embeddings.LayerNorm.weight", "bert.pooler.dense.weight"),
        ("modernbert", "model.embeddings.norm.weight", "model.final_norm.weight"),
        ("electra", "electra.embeddings_project.weight", None),
        ("deberta-v2", "deberta.encoder.rel_embeddings.weight", None),
        ("mpnet", "mpnet.encoder.relative_attention_bias.weight", None),
        ("albert", "albert.encoder.embedding_hidden_mapping_in.weight", "albert.pooler.weight"),
    ],
)
def test_what_stands_beside_the_layers(family, embeddings, pooler):
    stack = stack_of(tiny_model(family, "single", 4))
    assert embeddings in stack.embeddings
    assert pooler in stack.pooler if pooler else not stack.pooler


def test_depth_counts_from_the_top_layer_down():
    stack = stack_of(tiny_model("bert", "single", 4))
    depth = stack.depth()
    assert depth["classifier.weight"] == -1
    assert depth["bert.pooler.dense.weight"] == depth["bert.encoder.layer.1.output.dense.weight"] == 0
    assert depth["bert.encoder.layer.0.output.dense.weight"] == 1
    assert depth["bert.embeddings.word_embeddings.weight"] == 2
