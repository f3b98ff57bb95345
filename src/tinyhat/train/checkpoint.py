"""Checkpoints: weights and optimiser state in safetensors, the rest in JSON, written atomically; no pickle.

A folder `step_00000123` holds `state.safetensors` and `state.json`; the JSON carries the sha256 of the tensors, so a
torn folder is found out and the one before it is used. Random numbers need no saving: every step seeds them from
(seed, step, rank).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tinyhat.run import atomic_path, file_sha256, remove

KEEP = 2  # the newest, and the one before it in case the newest is torn


@dataclass
class Progress:
    """Where training stands, beside weights and optimiser.

    Attributes:
        step: optimiser steps done.
        best_value: the best dev metric so far, None before the first evaluation.
        best_step: the step it was reached at.
        worse: evaluations since then.
        stopped: early stopping has ended training.
        documents: documents seen by this run.
        tokens: tokens computed by this run.
        seconds: training seconds so far, over all sessions.
    """

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    worse: int = 0
    stopped: bool = False
    documents: int = 0
    tokens: int = 0
    seconds: float = 0.0


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return every parameter once, by name (shared ones under their first name), detached."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    kept: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Path:
    """Write the checkpoint of ``progress.step`` into `folder` and remove all but the newest KEEP.

    `kept` are further tensors by name, what strategies need to go on.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model_tensors(model).items()}
    tensors |= {f"kept.{name}": tensor for name, tensor in kept.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            # plain ints (LowAdamW, bitsandbytes) become int64 scalars, which no optimiser here keeps as tensors
            for part, tensor in _parts(torch.as_tensor(value)).items():
                tensors[f"optimizer.{names[id(parameter)]}.{key}{part}"] = tensor.detach()
    path = folder / f"step_{progress.step:08d}"
    with atomic_path(path) as temporary:
        temporary.mkdir()
        save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, temporary / "state.safetensors")
        state = asdict(progress) | {"sha256": file_sha256(temporary / "state.safetensors")}
        (temporary / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False))
    for old in _checkpoints(folder)[:-KEEP]:
        remove(old)
    return path


def _parts(value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return a tensor, or what one of torchao's is made of: codes and scales."""
    if not is_traceable_wrapper_subclass(value):
        return {"": value}
    return {f":{name}": getattr(value, name) for name in value.__tensor_flatten__()[0]}


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, warn: Callable[[str], None]
) -> tuple[Progress, dict[str, torch.Tensor]] | None:
    """Load the newest whole checkpoint into `model` and `optimizer`, skipping torn ones with a warning.

    Returns:
        Where training stood and the further tensors, or None when there is no whole checkpoint.
    """
    for path in reversed(_checkpoints(folder)):
        found = _read(path)
        if found is None:
            warn(f"checkpoint {path.name} is torn (its contents do not match its sha256); the one before it is used")
            remove(path)  # or it would count among the newest ones that are kept
            continue
        tensors, state = found
        _restore(tensors, model, optimizer)
        return Progress(**state), {k.removeprefix("kept."): t for k, t in tensors.items() if k.startswith("kept.")}
    return None


def save_best(folder: Path, model: nn.Module) -> None:
    """Keep the present weights as the best ones."""
    with atomic_path(folder / "best.safetensors") as temporary:
        save_file({name: t.contiguous().cpu() for name, t in model_tensors(model).items()}, temporary)


def load_best(folder: Path, model: nn.Module) -> None:
    """Put the best weights back into `model`."""
    _copy(load_file(folder / "best.safetensors"), model)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step_*") if p.is_dir())


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text())
        if file_sha256(path / "state.safetensors") != state.pop("sha256"):
            return None
        return load_file(path / "state.safetensors"), state
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _copy(tensors: dict[str, torch.Tensor], model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def _restore(tensors: dict[str, torch.Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    _copy({name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}, model)
    names = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            name, _, field_name = key.removeprefix("optimizer.").rpartition(".")
            parameter = names[name]
            # AdamW keeps its step count beside the weights when fused, on the CPU otherwise
            plain = value.dtype == torch.int64 and value.ndim == 0
            optimizer.state[parameter][field_name] = int(value) if plain else value.to(parameter.device)
    for weight, state in optimizer.state.items():
        _rebuild(state, weight.dtype)


def _rebuild(state: dict[str, Any], dtype: torch.dtype) -> None:
    """Put torchao's tensors together again, see `_parts`."""
    for key in [name.removesuffix(":codes") for name in state if name.endswith(":codes")]:
        from torchao.optim.subclass_fp8 import OptimStateFp8  # type: ignore[import-not-found,unused-ignore]

        state[key] = OptimStateFp8(state.pop(f"{key}:codes"), state.pop(f"{key}:scale"), dtype)
