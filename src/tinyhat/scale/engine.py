"""One way to work through numbered shards: here, on Ray Data's actors, or by torchrun's ranks.

What is done is a callable made once a worker (it loads the model) and called with shard numbers. It leaves its result
in a file of its own, written atomically, so a worker that dies costs its shard and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tinyhat.errors import UserError, missing_extra
from tinyhat.train.ranks import rank, world_size

Work = Callable[[int], None]
"""Does one shard, and leaves its result under its final name only when it is complete."""

Engine = Literal["local", "ray"]


def run_shards(
    make: Callable[[], Work],
    shards: Sequence[int],
    engine: Engine = "local",
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Do all `shards`; returns when they are done. Under torchrun each rank does its share of them and returns.

    Args:
        make: loads what the work needs, once a worker; sent to the workers, so it must pickle.
        shards: their numbers.
        engine: ``local`` is this process (or torchrun's ranks), ``ray`` a cluster: the one at hand, or this machine.
        workers: Ray actors; where the cluster has GPUs, each has one, and there are no more of them than GPUs.
        progress: told how many more shards are done; under torchrun the other ranks are taken to be as far.

    Raises:
        UserError: Ray is not installed, or both Ray and torchrun are asked for; as the work.
    """
    ranks = world_size()
    if engine == "ray":
        if ranks > 1:
            raise UserError("--engine ray starts its own workers: leave torchrun out")
        _run_on_ray(make, shards, workers, progress)
        return
    mine = shards[rank() :: ranks]
    if mine:
        work = make()
        for i, shard in enumerate(mine):
            work(shard)
            if progress:
                progress(len(shards[i * ranks : (i + 1) * ranks]))


class _Actor:
    """The callable as Ray Data wants it: a class that is made once an actor and maps batches of rows.

    A user's mistake is handed back as a sentence: as an exception Ray would wrap it, and print where it was raised.
    """

    def __init__(self, make: Callable[[], Work]) -> None:
        self.error = ""
        self.work = self._caught(make)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for shard in batch["shard"]:
            if not self.error:
                self._caught(self.work, int(shard))
        return {"error": [self.error] * len(batch["shard"])}

    def _caught(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except UserError as error:
            self.error = str(error)
            return None


def _run_on_ray(
    make: Callable[[], Work], shards: Sequence[int], workers: int, progress: Callable[[int], None] | None
) -> None:
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("ray", "ray", "--engine ray") from None
    if not shards:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        rows = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        gpus = int(ray.cluster_resources().get("GPU", 0))  # an actor that asks for none does not see any
        actors = min(workers, len(shards), gpus or workers)
        share: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        # Ray restarts an actor that dies and gives its shard out again
        done = rows.map_batches(_Actor, fn_constructor_args=(make,), batch_size=1, concurrency=actors, **share)
        for row in done.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            if progress:
                progress(1)
    finally:
        context.enable_progress_bars = bars
        if started:
            ray.shutdown()
