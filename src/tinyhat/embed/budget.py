"""How many tokens one forward pass may hold, from the memory at hand."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedConfig

from tinyhat.encoder.attention import BLOCK_BYTES

MOST_CPU, MOST_CUDA = 4096, 1 << 17  # more is not faster: matrix products are large enough
LEAST = 512
SHARE = 0.4  # of the free memory


def find_budget(config: PreTrainedConfig, device: torch.device, workers: int, every_layer: bool) -> int:
    """Return the tokens of one forward pass, a power of two.

    A token needs its states before and after a layer, queries, keys, values, the feed-forward's inside twice, and every
    layer's state where those are kept: counted in fp32, of SHARE of what is free.

    Args:
        config: of the encoder.
        device: where it computes.
        workers: forward passes at the same time.
        every_layer: all hidden states are kept.
    """
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    kept = int(getattr(config, "num_hidden_layers", 12)) + 1 if every_layer else 0
    per_token = 4 * ((8 + kept) * hidden + 2 * inner)
    fixed = 4 * BLOCK_BYTES if device.type == "cpu" else 0
    room = SHARE * free_memory(device) / workers - fixed
    most = MOST_CPU if device.type == "cpu" else MOST_CUDA
    tokens = min(most, max(LEAST, int(room // per_token)))
    return 1 << (tokens.bit_length() - 1)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be had: of the GPU, or of this machine and its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = 1 << 32
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines.get("MemAvailable", f"{free >> 10} kB").split()[0]) << 10
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def is_out_of_memory(error: BaseException) -> bool:
    """Return True where `error` says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
