"""Adapters: LoRA and bias-only training. What is learned is merged into the model, and kept beside it for peft."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tinyhat.encoder.layers import layer_list, stack_of
from tinyhat.encoder.load import Encoder
from tinyhat.errors import UserError, missing_extra
from tinyhat.run import atomic_path
from tinyhat.train.freeze import Freeze
from tinyhat.train.ranks import is_first
from tinyhat.train.strategy import Strategy

NAME = "default"  # peft's name of an adapter nobody named


class Lora(Strategy):
    """Every matrix of the layers learns a change of low rank, B A x alpha / rank; the head learns as usual.

    Hu et al. 2022, who change queries and values; all matrices at the same number of parameters do better (Dettmers et
    al. 2023, QLoRA, figure 2).

    Args:
        rank: of the change.
        alpha: see above.
        folder: where the adapter is kept.
        seed: of A; B starts at 0, so training starts from the pretrained model.
    """

    def __init__(self, rank: int, alpha: float, folder: Path, seed: int) -> None:
        self.rank, self.alpha, self.folder, self.seed = rank, alpha, folder, seed
        self._tuner: Any = None
        self._encoder: Encoder | None = None
        self._learned: dict[str, nn.Parameter] = {}

    def prepare(self, encoder: Encoder) -> None:
        """Put the adapter into the model, which stays the same object, and freeze the rest of its body.

        Raises:
            UserError: peft is not installed, or the layers hold no linear module.
        """
        peft = require_peft("train.update = 'lora'")
        model, head = encoder.model, stack_of(encoder.model).head
        targets = linear_names(model)
        if not targets:
            raise UserError(f"train.update = 'lora': the layers of {encoder.name} hold no linear module; take 'top'")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._tuner = peft.LoraModel(model, self._settings(peft, targets), NAME)
        self._encoder = encoder
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or name in head)

    def finish(self) -> None:
        """Merge the adapter and leave a stock model behind."""
        assert self._encoder is not None
        model = self._encoder.model
        self._learned = {n.replace(f".{NAME}.", "."): p for n, p in model.named_parameters() if p.requires_grad}
        self._tuner.merge_and_unload()
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    def save(self) -> None:
        """Write the adapter, with the head as it is in the saved model."""
        assert self._encoder is not None
        model = self._encoder.model
        settings = self._settings(
            require_peft("train.update = 'lora'"), linear_names(model), _head_modules(model), self._encoder.name
        )
        write_adapter(self.folder, settings, self._learned)

    def _settings(self, peft: Any, targets: list[str], head: list[str] | None = None, name: str | None = None) -> Any:
        return peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, target_modules=targets, modules_to_save=head,
            base_model_name_or_path=name, task_type="SEQ_CLS" if head else None, inference_mode=head is not None,
        )  # fmt: skip


class BiasOnly(Freeze):
    """Only biases and the head learn (Ben Zaken et al. 2022, BitFit). They are parts of the model: nothing to merge.

    Args:
        folder: where they are kept as an adapter that peft loads: a LoRA whose one matrix is zero, with all biases.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("bias")
        self.folder = folder
        self._encoder: Encoder | None = None
        self._learned: dict[str, nn.Parameter] = {}

    def prepare(self, encoder: Encoder) -> None:
        """Freeze the rest.

        Raises:
            UserError: the body has no bias, or peft is not installed.
        """
        require_peft("train.update = 'bias'")
        super().prepare(encoder)
        self._encoder = encoder
        if not any(p.requires_grad for p in encoder.model.base_model.parameters()):
            raise UserError(f"train.update = 'bias': the body of {encoder.name} has no bias; take 'head' or 'lora'")

    def finish(self) -> None:
        """Leave a stock model behind."""
        assert self._encoder is not None
        model = self._encoder.model
        self._learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    def save(self) -> None:
        """Write the adapter, with the head as it is in the saved model."""
        assert self._encoder is not None
        peft, model = require_peft("train.update = 'bias'"), self._encoder.model
        target = linear_names(model)[0]
        settings = peft.LoraConfig(
            r=1, lora_alpha=1, target_modules=[target], bias="all", modules_to_save=_head_modules(model),
            base_model_name_or_path=self._encoder.name, task_type="SEQ_CLS", inference_mode=True,
        )  # fmt: skip
        learned = dict(self._learned)
        layer = model.get_submodule(target)
        assert isinstance(layer, nn.Linear)
        if f"{target}.bias" in learned:  # peft moves the layer it changes one level down
            learned[f"{target}.base_layer.bias"] = learned.pop(f"{target}.bias")
        learned[f"{target}.lora_A.weight"] = nn.Parameter(torch.zeros(1, layer.in_features))
        learned[f"{target}.lora_B.weight"] = nn.Parameter(torch.zeros(layer.out_features, 1))
        write_adapter(self.folder, settings, learned)


def linear_names(model: Any) -> list[str]:
    """Return the names of all linear modules in the layers of a classifier, wrapped by peft or not."""
    body = model.base_model
    prefix = next(name for name, module in model.named_modules() if module is body)
    place, layers = layer_list(body)
    start = ".".join(part for part in (prefix, place) if part)
    found = []
    for i, layer in enumerate(layers):
        for name, module in layer.named_modules():
            if type(module) is nn.Linear and ".lora_" not in f".{name}":
                found.append(f"{start}.{i}.{name.removesuffix('.base_layer')}")
    return found


def write_adapter(folder: Path, settings: Any, learned: dict[str, nn.Parameter]) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as ``PeftModel.from_pretrained`` reads them.

    Of several ranks the first one writes.

    Args:
        folder: replaced as a whole.
        settings: a peft config.
        learned: parameters by their name in the model.
    """
    if not is_first():
        return
    tensors = {f"base_model.model.{name}": p.detach().cpu().contiguous() for name, p in learned.items()}
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        settings.save_pretrained(temporary)
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})


def _head_modules(model: Any) -> list[str]:
    """Return the top-level modules outside the encoder that hold parameters."""
    return sorted({name.partition(".")[0] for name in stack_of(model).head})


def require_peft(wanted_by: str) -> Any:
    """Import peft.

    Raises:
        UserError: it is not installed, and `wanted_by` needs it.
    """
    noisy = logging.getLogger("bitsandbytes")  # peft imports it where it is installed, and it reports its kernels
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        import peft
    except ImportError:
        raise missing_extra("peft", "lora", wanted_by) from None
    finally:
        noisy.setLevel(level)
    return peft
