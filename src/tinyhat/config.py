"""The configuration: one frozen section per folder, YAML recipes, and ``--set a.b=c`` on top.

Sections are refused, with a suggestion, when they hold a key nobody knows. Defaults that depend on the model or the
data are None here and are derived, and printed, where they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyhat.errors import UserError, did_you_mean

Strategy = Literal["head", "tail", "head_tail", "middle", "random", "tfidf", "textrank", "windows"]
Vote = Literal["mean", "mean_probability", "max", "top_k", "majority", "attention", "transformer"]
Update = Literal["all", "head", "top", "gradual", "lora", "bias"]
Schedule = Literal["linear", "cosine", "constant", "inverse_sqrt", "wsd", "slanted_triangular", "one_cycle"]


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the documents are and which columns mean what. Empty column names are detected."""

    path: str = Field("", description="file, folder, corpus name (eurlex57k, pydocs) or hub:owner/name[:config]")
    source: str | None = Field(None, description="where a known corpus lies on this machine")
    task: Literal["auto", "single", "multi", "regression"] = "auto"
    text: tuple[str, ...] = Field((), description="text columns, joined by a newline")
    pair: tuple[str, str] | None = Field(None, description="two text columns read as a pair")
    label: str | None = Field(None, description="column with one label")
    labels: str | None = Field(None, description="column with a list of labels or a delimited string")
    target: tuple[str, ...] = Field((), description="numeric columns (regression)")
    delimiter: str | None = Field(
        None, min_length=1, description="separates labels in a string; detected among | ; , when None"
    )
    id: str | None = Field(None, description="column that names a document")
    group: str | None = Field(None, description="documents with equal values never part in a split")
    weight: str | None = Field(None, description="column with document weights (positive numbers)")
    label_list: str | None = Field(None, description="file with one label a line: the declared label space")
    limit: int | None = Field(None, ge=1, description="use at most this many documents of each split")
    dev_share: float = Field(0.1, gt=0, lt=1, description="share split off where there is no dev split")
    test_share: float = Field(0.1, gt=0, lt=1, description="share split off where there is no test split")


class ReadingConfig(Section):
    """How a document longer than the encoder reads becomes tokens."""

    max_tokens: int = Field(512, ge=8, description="tokens per sequence, special tokens included")
    strategy: Strategy = "head"
    head_ratio: float = Field(0.25, ge=0, le=1, description="head_tail: the share taken from the beginning")
    stride: int | None = Field(None, ge=1, description="windows: tokens between their starts; None: no overlap")
    title_tokens: int = Field(0, ge=0, description="windows: of the first line, repeated in all further windows")
    max_windows: int = Field(16, ge=1, description="windows of a document in a training step; prediction reads all")
    vote: Vote = Field("mean", description="how windows become the document's logits")
    vote_k: int = Field(3, ge=1, description="vote=top_k: windows that count for each label")
    learn: Literal["windows", "document"] = Field(
        "windows", description="every window learns the document's label, or the vote does; learned votes: the vote"
    )


class EncoderConfig(Section):
    """Which encoder, and how it computes."""

    model: str = Field("minilm", description="hub name, local path, minilm, or linear")
    path: Literal["auto", "packed", "padded"] = Field("auto", description="auto packs what is proven to pack")
    attention_dropout: float | None = Field(None, ge=0, lt=1, description="None: 0 (packed); above 0: padded path")
    hidden_dropout: float | None = Field(None, ge=0, lt=1, description="None: what the checkpoint says")
    extend_positions: int | None = Field(None, ge=8, description="tokens to which learned positions are tiled")
    local_attention: int | None = Field(
        None, ge=2, description="packed: a token sees so many around it; the last layer's first token sees all"
    )
    gradient_checkpointing: bool = False
    compile: bool = False


class HeadConfig(Section):
    """The classifier on top of the encoder."""

    prior_bias: bool = Field(True, description="multi-label: start the output bias at the log prior odds")


class LoopConfig(Section):
    """What the one training loop needs, whatever it trains. Rates are per optimiser step, sizes in documents."""

    epochs: float = Field(3.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="overrides epochs")
    batch_size: int = Field(32, ge=1, description="documents per optimiser step, whatever the packs")
    pack_tokens: int = Field(8192, ge=16, description="token budget of one pack")
    learning_rate: float | None = Field(None, gt=0, description="None: 5e-5 x (768 / width)^2, at most 3e-4")
    head_rate: float = Field(10.0, gt=0, description="the head's rate as a multiple of the body's")
    weight_decay: float = Field(0.01, ge=0, description="on matrices only")
    schedule: Schedule = "linear"
    warmup_ratio: float = Field(0.06, ge=0, lt=1)
    final_ratio: float = Field(0.0, ge=0, lt=1, description="cosine: the rate at the end as a share of the full one")
    decay_ratio: float = Field(0.2, gt=0, le=1, description="wsd: share of steps that decay")
    grad_clip: float = Field(1.0, gt=0)
    plan: str = Field(
        "auto", description="docs/dtypes.md; auto: amp_bf16_fp32_head where the processor has bf16, else fp32"
    )
    evaluate_every: int | None = Field(None, ge=1, description="steps; None: four times a run, at least each epoch")
    evaluate_documents: int = Field(2000, ge=1, description="dev documents (a seeded sample) measured while training")
    patience: int | None = Field(None, ge=1, description="stop after this many evaluations without a better one")
    checkpoint_every: int | None = Field(None, ge=1, description="steps; None: at every evaluation")
    checkpoint_minutes: float = Field(10.0, gt=0, description="and at least this often")
    seed: int = Field(0, ge=0)
    tensorboard: bool = False


class TrainConfig(LoopConfig):
    """Fine-tuning: the loop's keys, what learns, what holds against forgetting, and how rare labels count."""

    update: Update = Field("all", description="all, the head only, the top layers, one part more at a time, adapters")
    top_layers: int = Field(2, ge=1, description="update=top: so many layers, with pooler and head")
    unfreeze_every: int | None = Field(None, ge=1, description="update=gradual: steps per part; None: an epoch")
    freeze_embeddings: bool = Field(False, description="embeddings stay as they are, whatever else learns")
    reinit_layers: int = Field(0, ge=0, description="so many top layers, and the pooler, start from random weights")
    layer_decay: float = Field(1.0, gt=0, le=1, description="the rate of a layer as a multiple of the one above it")
    lora_rank: int = Field(8, ge=1, description="update=lora: rank of the change of a matrix")
    lora_alpha: float = Field(16.0, gt=0, description="update=lora: the change counts alpha / rank")
    adapter_rate: float = Field(10.0, gt=0, description="lora, bias: their rate as a multiple of the body's")
    # against forgetting
    l2_sp: float = Field(0.0, ge=0, description="weight of half the squared distance to the pretrained weights")
    mixout: float = Field(0.0, ge=0, lt=1, description="share of matrix entries that compute with pretrained values")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the weight average that is kept")
    wise_ft: float | None = Field(None, ge=0, le=1, description="share of the fine-tuned body in the final weights")
    replay: str | None = Field(None, description="a text whose masked-LM loss is kept low")
    replay_weight: float = Field(0.1, gt=0, description="weight of that loss")
    replay_tokens: int = Field(1024, ge=16, description="tokens of that text in every step")
    forgetting: str | None = Field(None, description="a text on which forgetting is measured")
    # rare labels
    loss: Literal["auto", "focal", "asymmetric"] = "auto"
    focal_gamma: float = Field(2.0, ge=0)
    asymmetric_gamma: float = Field(4.0, ge=0, description="loss=asymmetric: focusing of the negatives")
    asymmetric_margin: float = Field(0.05, ge=0, lt=1, description="negatives below this probability cost nothing")
    class_weights: bool = Field(False, description="single: a document weighs as its label is rare")
    pos_weight: float | None = Field(
        None, ge=1, description="multi: a positive weighs negatives/positives, at most this"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    balanced_sampling: float = Field(0.0, ge=0, le=1, description="0: all documents alike; 1: all labels alike")


class PretrainConfig(LoopConfig):
    """Masked-LM training from nothing: the loop's keys with other defaults, and what is masked how.

    The published recipe has batches of 32,768 sequences; `batch_size` counts sequences of the first length.
    """

    size: Literal["xs", "small", "base"] = "small"
    tokenizer: str = Field("babylm", description="bnc or babylm: trained on the corpus; else a folder that holds one")
    vocabulary: int = Field(16384, ge=32, description="entries of a trained tokenizer")
    masking: Literal["span", "subword", "whole_word"] = "span"
    mask_share: float = Field(0.15, gt=0, lt=1, description="of the tokens")
    short_share: float = Field(0.1, ge=0, le=1, description="of the sequences, cut to a random length")
    lengths: tuple[int, ...] = Field((128, 512), min_length=1, description="tokens a sequence, stage by stage")
    switches: tuple[float, ...] = Field((0.9,), description="share of the steps after which the next stage begins")
    validation_share: float = Field(0.02, gt=0, lt=1, description="of the text, held out")
    validation_tokens: int = Field(65536, ge=128, description="at most so many held-out tokens are measured")
    max_steps: int | None = Field(10_000, ge=0, description="0 writes the model as it is initialised")
    batch_size: int = Field(256, ge=1, description="sequences of the first length per step; longer ones are fewer")
    learning_rate: float | None = Field(None, gt=0, description="None: 1e-2 (lamb), 1e-3 (adamw)")
    head_rate: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="on matrices other than embeddings")
    schedule: Schedule = "cosine"
    warmup_ratio: float = Field(0.016, ge=0, lt=1)
    grad_clip: float = Field(2.0, gt=0)
    optimizer: Literal["adamw", "lamb"] = "lamb"
    final_ratio: float = Field(0.1, ge=0, lt=1, description="cosine: share of the peak rate it ends at")


class TuneConfig(Section):
    """How scores become labels."""

    rule: Literal["auto", "thresholds", "global", "top_k", "argmax"] = "auto"
    top_k: int = Field(5, ge=1)
    shrink: float = Field(32.0, ge=0, description="positives at which a label's own threshold weighs as the global one")
    folds: int = Field(5, ge=2, description="cross-fitting folds of the reported dev figure")


class EvaluateConfig(Section):
    """What is measured, and how surely."""

    bootstrap: int = Field(1000, ge=0, description="resamples behind the 95% intervals; 0: no intervals")
    baseline: bool = Field(True, description="fit the linear baseline beside the encoder")
    frequent: int = Field(50, ge=1, description="training documents from which a label is called frequent")


class Config(Section):
    """Everything a run is made of."""

    data: DataConfig = DataConfig()
    reading: ReadingConfig = ReadingConfig()
    encoder: EncoderConfig = EncoderConfig()
    head: HeadConfig = HeadConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    pretrain: PretrainConfig = PretrainConfig()


def build_config(
    recipe: str | Path | None = None, flags: Mapping[str, Any] | None = None, assignments: Iterable[str] = ()
) -> Config:
    """Build a Config from a recipe file, then dotted `flags`, then ``a.b=c`` `assignments`, later ones winning.

    Args:
        recipe: a YAML file with any of the sections, or the name of a recipe that comes with tinyhat.
        flags: dotted path to value, for example ``{"train.epochs": 2}``; None values are not given.
        assignments: strings ``section.key=value``; the value is read as YAML.

    Raises:
        UserError: unknown section or key (with a suggestion), a value of the wrong type, an unreadable recipe.
    """
    tree: dict[str, Any] = _read_recipe(recipe) if recipe else {}
    for path, value in (flags or {}).items():
        if value is not None:
            _assign(tree, path, value)
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign:
            raise UserError(
                f"--set {text!r} has no '=': write --set section.key=value, for example --set train.epochs=2"
            )
        _assign(tree, path.strip(), _value(value))
    _check_keys(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where} = {first['input']!r}: {first['msg']}") from None


def changed(
    config: Config | Mapping[str, Mapping[str, Any]], values: Mapping[str, Any], assignments: Iterable[str] = ()
) -> Config:
    """Return `config` with dotted `values`, then `assignments`, on top; a value of None is the default again.

    Args:
        config: the configuration, or its sections as a manifest keeps them.
        values: dotted path to value.
        assignments: as for `build_config`.

    Raises:
        UserError: as `build_config`.
    """
    sections = config.model_dump(mode="json") if isinstance(config, Config) else config
    tree = {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
    return build_config(None, tree | dict(values), assignments)


def _value(text: str) -> Any:
    """Read a --set value as YAML; what YAML cannot read, or reads as nothing though it says something, is a string."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return _number(value) if value not in (None, "") or text.strip() in ("", "null", "~") else text


def _number(value: Any) -> Any:
    """YAML 1.1 reads 3e-4 as a string; users mean a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_recipe(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if not path.exists():
        known = Path(__file__).parent / "recipes"
        path = known / f"{recipe}.yaml"
        if not path.exists():
            names = sorted(p.stem for p in known.glob("*.yaml"))
            raise UserError(f"recipe {str(recipe)!r} is neither a file nor one of {', '.join(names) or '(none)'}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {path} is not readable YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values()):
        raise UserError(f"recipe {path} must hold sections with keys, for example 'train:' and below it '  epochs: 2'")
    return {section: {k: _number(v) for k, v in keys.items()} for section, keys in tree.items()}


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    section, dot, key = path.partition(".")
    if not dot:
        raise UserError(f"--set {path!r} names no section: write section.key, for example train.epochs")
    tree.setdefault(section, {})[key] = value


def _check_keys(tree: Mapping[str, Any]) -> None:
    for section, keys in tree.items():
        if section not in Config.model_fields:
            known = list(Config.model_fields)
            raise UserError(
                f"there is no section '{section}' (there are {', '.join(known)}){did_you_mean(section, known)}"
            )
        fields = type(getattr(Config(), section)).model_fields
        for key in keys:
            if key not in fields:
                hint = did_you_mean(key, fields)
                raise UserError(f"section '{section}' has no key '{key}' (it has {', '.join(fields)}){hint}")
