"""Memory and time of `tinyhat embed` for 1,000, 10,000 and 100,000 documents, each in a process of its own.

    python benchmarks/embed_scale.py [--counts 1000 10000 100000] [--words 20 60]

Documents are made up, of 20 to 60 words: 1,000 of them already fill a pack, so that the smallest count holds in memory
what every later one does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import record

WORDS = ("law", "court", "market", "fish", "tax", "trade", "milk", "ship", "union", "state", "rule", "year")


def main() -> None:
    """Embed made-up documents and print seconds, peak memory and documents a second for each count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--words", type=int, nargs=2, default=[20, 60], help="fewest and most words of a document")
    parser.add_argument("--suffix", default="npy")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args()
    lines = [f"{'documents':>10}{'seconds':>10}{'embedding':>11}{'documents/s':>13}{'peak MiB':>10}"]
    with tempfile.TemporaryDirectory() as folder:
        for count in options.counts:
            lines.append(_measure(Path(folder), options, count))
            print("\n".join(lines[-2:] if len(lines) == 2 else lines[-1:]), flush=True)
    if options.record:
        record("embed_scale", "\n".join(lines))


def _measure(folder: Path, options: argparse.Namespace, count: int) -> str:
    source, out = folder / f"{count}.jsonl", folder / f"{count}.{options.suffix}"
    dice = random.Random(0)
    with source.open("w") as stream:
        for i in range(count):
            text = " ".join(dice.choices(WORDS, k=dice.randint(*options.words)))
            stream.write(json.dumps({"id": f"d{i}", "text": text}) + "\n")
    command = [sys.executable, "-m", "tinyhat", "embed", options.model, str(source), "--to", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    started = 0.0  # the first part is there: loading is over
    parts = out.with_name(out.name + ".parts") / "facts.json"
    ended = 0
    while not ended:  # os.wait4 also tells the peak memory
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        started = started or (time.perf_counter() if parts.exists() else 0.0)
        time.sleep(0.01)
    if status:
        raise SystemExit(f"tinyhat embed ended with {status}")
    seconds = time.perf_counter() - begin
    work = time.perf_counter() - started
    return f"{count:>10,}{seconds:>10.1f}{work:>11.1f}{count / work:>13.1f}{usage.ru_maxrss / 1024:>10.0f}"


if __name__ == "__main__":
    main()
