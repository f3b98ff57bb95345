"""SIGKILL `tinyhat embed` at random moments, resume until it is done, and compare every file with an undisturbed run.

python benchmarks/embed_kill.py [--kills 20] [--documents 6000]
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["law", "court", "market", "fish", "tax", "trade", "milk", "ship", "union", "state", "rule", "year"]
SUFFIXES = ("npy", "h5", "parquet", "safetensors", "faiss")


def main() -> None:
    """Each store: one undisturbed run and one killed `--kills` times; print what differs, exit with 1 if anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "in.jsonl").open("w") as stream:
            for i in range(options.documents):
                text = " ".join(dice.choices(WORDS, k=dice.randint(3, 12)))
                stream.write(json.dumps({"id": f"d{i}", "text": text}) + "\n")
        for suffix in SUFFIXES:
            bad += not _one(folder, suffix, options, dice)
    sys.exit(bool(bad))


def _one(folder: Path, suffix: str, options: argparse.Namespace, dice: random.Random) -> bool:
    def command(out: str) -> list[str]:
        flags = ["embed", options.model, str(folder / "in.jsonl"), "--to", str(folder / out), "--resume"]
        return [sys.executable, "-m", "tinyhat", *flags]

    whole, torn = f"whole.{suffix}", f"torn.{suffix}"
    begin = time.perf_counter()
    subprocess.run(command(whole), check=True, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    moments: list[str] = []
    while len(moments) - moments.count("end") < options.kills:
        moment = dice.uniform(0, seconds)
        process = subprocess.Popen(command(torn), stderr=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done = len(list((folder / f"{torn}.parts").glob("part-*.npy")))
            moments.append(f"{moment:.1f}:{done}")
        else:
            moments.append("end")
            for path in folder.glob(f"{torn}*"):  # it was done: begin anew
                path.unlink()
    subprocess.run(command(torn), check=True, stderr=subprocess.DEVNULL)
    same = all(
        (folder / f"{torn}{e}").read_bytes() == (folder / f"{whole}{e}").read_bytes() for e in ("", ".ids.jsonl")
    )
    manifests = [json.loads((folder / f"{name}.manifest.json").read_text()) for name in (whole, torn)]
    for manifest in manifests:
        for shard in manifest["shards"]:
            shard["file"] = shard["file"].partition(".")[2]
    same = same and manifests[0] == manifests[1]
    left = [p.name for p in folder.glob(f".{torn}*")] + [p.name for p in folder.glob(f"{torn}.parts")]
    print(f"{suffix:12} {'same bytes' if same and not left else 'DIFFERENT'}  left over: {left}  "
          f"killed at (seconds:parts) {' '.join(moments)}", flush=True)  # fmt: skip
    return same and not left


if __name__ == "__main__":
    main()
