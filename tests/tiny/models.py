"""Two-layer encoders with random weights and tokenizers trained on generated text, in memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PACKED = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "modernbert", "camembert", "ernie")
PADDED = ("mobilebert", "deberta-v2")
BYTE_LEVEL = ("roberta", "xlm-roberta", "camembert")  # padding id 1, as in the real ones
PROBLEM_TYPES = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
WIDTH, HEADS, LAYERS, POSITIONS, VOCABULARY = 32, 4, 2, 64, 200


def tiny_config(family: str, **changes: object) -> PreTrainedConfig:
    """Return the config of a two-layer, 32-wide model; `family` is a transformers model type."""
    settings: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    if family in BYTE_LEVEL:
        settings |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": POSITIONS + 2}
        settings |= {"type_vocab_size": 1}
    if family == "distilbert":
        settings |= {"dim": WIDTH, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": 2 * WIDTH}
    if family in ("electra", "albert"):
        settings |= {"embedding_size": WIDTH // 2}
    if family == "mobilebert":
        settings |= {"embedding_size": WIDTH, "intra_bottleneck_size": WIDTH, "true_hidden_size": WIDTH}
    if family == "modernbert":
        # layer 0 sees everything, layer 1 a window of 8
        settings |= {"global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 2, "sep_token_id": 3}
        settings |= {"bos_token_id": 2, "eos_token_id": 3}
    if family == "deberta-v2":
        settings |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    return AutoConfig.for_model(family, **(settings | changes))


def tiny_model(
    family: str, task: str = "multi", num_labels: int = 3, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """Return a classifier of `family` in training mode, large weights drawn from `seed`."""
    config = tiny_config(
        family,
        id2label={i: f"label {i}" for i in range(num_labels)},
        label2id={f"label {i}": i for i in range(num_labels)},
        problem_type=PROBLEM_TYPES[task],
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


@lru_cache(maxsize=2)
def _trained(kind: str) -> str:
    words = ["law", "court", "market", "fish", "tax", "trade", "milk", "ship", "union", "state", "rule", "year"]
    text = [" ".join(words[(i * j) % len(words)] + ("s" if j % 3 else "") for j in range(12)) for i in range(40)]
    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        # a vocabulary of its own: the library's WordPiece trainer breaks ties in another way in every process
        letters = sorted(set("".join(text)) - {" "})
        known = sorted({word for line in text for word in line.split()})
        entries = [*special, *letters, *(f"##{letter}" for letter in letters), *(w for w in known if len(w) > 1)]
        ids_of = {entry: i for i, entry in enumerate(entries)}
        tokenizer = Tokenizer(models.WordPiece(ids_of, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        tokenizer.add_special_tokens(special)
        first, last = "[CLS]", "[SEP]"
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    else:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(text, trainer)
        first, last = "<s>", "</s>"
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    ids = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return tokenizer.to_str()


def tiny_tokenizer(kind: str = "wordpiece") -> PreTrainedTokenizerFast:
    """Return a fast tokenizer of at most 200 tokens; `kind` is ``wordpiece`` (BERT) or ``bpe`` (RoBERTa)."""
    backend = Tokenizer.from_str(_trained(kind))
    if kind == "wordpiece":
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    else:
        names = {
            "pad": "<pad>",
            "unk": "<unk>",
            "cls": "<s>",
            "sep": "</s>",
            "mask": "<mask>",
            "bos": "<s>",
            "eos": "</s>",
        }
    tokens = {f"{key}_token": token for key, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=POSITIONS, **tokens)


def save_tiny(folder: Path, family: str = "bert", **settings: object) -> Path:
    """Write a tiny classifier (settings as for `tiny_model`) with its tokenizer into `folder`, and return `folder`."""
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        tiny_model(family, **settings).save_pretrained(folder)  # type: ignore[arg-type]
    finally:
        if bars:
            transformers.logging.enable_progress_bar()
    tiny_tokenizer("bpe" if family in BYTE_LEVEL else "wordpiece").save_pretrained(folder)
    return folder
