"""`tinyhat pretrain CORPUS --size small --out RUN`: text in, an LTG-BERT checkpoint out, to be fine-tuned by train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import tinyhat.cli.options as o


def command(
    corpus: Annotated[
        str, typer.Argument(metavar="CORPUS", help="File, folder, corpus (eurlex57k, pydocs) or hub:owner/name.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="The run folder: new or empty.")],
    size: Annotated[Literal["xs", "small", "base"] | None, typer.Option("--size", help="Of the model (small).")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="bnc or babylm, trained on the corpus (babylm), or a folder that holds one."),
    ] = None,
    masking: Annotated[
        Literal["span", "subword", "whole_word"] | None, typer.Option("--masking", help="What is masked (span).")
    ] = None,
    optimizer: Annotated[
        Literal["lamb", "adamw"] | None, typer.Option("--optimizer", help="What moves the weights (lamb).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps (10000); 0 writes the model as initialised.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Sequences of 128 tokens per step (256).")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Its peak (lamb: 0.01, adamw: 0.001).")
    ] = None,
    text: o.Text = None,
    recipe: o.Recipe = None,
    assignments: o.Set = None,
    source: o.Source = None,
    limit: o.Limit = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of everything random (0).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with this run after an interruption.")] = False,
) -> None:
    """Train an LTG-BERT from nothing on any text, for train --model RUN."""
    rest = {
        "pretrain.size": size,
        "pretrain.tokenizer": tokenizer,
        "pretrain.masking": masking,
        "pretrain.optimizer": optimizer,
        "pretrain.max_steps": steps,
        "pretrain.batch_size": batch_size,
        "pretrain.learning_rate": learning_rate,
        "pretrain.seed": seed,
    }
    columns = {"text": text, "source": source, "limit": limit}
    config = o.config_from(corpus, columns, rest, recipe, assignments)
    from tinyhat.pretrain import pretrain_config
    from tinyhat.run import read_json

    run = pretrain_config(config, out, resume, o.say)
    metrics = read_json(run.metrics)
    if metrics["masked_lm_loss"] is None:
        print(f"{run.model}: weights as initialised")
    else:
        print(f"masked-LM loss {metrics['masked_lm_loss']:.4f}  unigram entropy {metrics['unigram_entropy']:.4f}  "
              f"{metrics['tokens_per_second']:.0f} tokens/s  {run.model}")  # fmt: skip
