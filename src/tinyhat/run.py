"""A run folder: its paths, atomic writes, and the manifest that says how it came about.

Nothing under its final name is ever half written: write to a temporary name beside it, fsync, rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tinyhat.errors import UserError

LATER = ("tune", "evaluate")  # configuration sections that weights and scores do not depend on: free to change
PACKAGES = ("tinyhat", "torch", "transformers", "tokenizers", "accelerate", "numpy", "scipy", "scikit-learn", "pyarrow")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path (for a file or a folder) that replaces `path` when the block ends without an error.

    Raises:
        UserError: `path` is a folder and what was written is a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        _sync(temporary)
        if path.is_dir() and not temporary.is_dir():
            raise UserError(f"{path} is a folder and would be replaced by a file: name a file")
        if path.is_dir():
            retired = path.with_name(f".{path.name}.{os.getpid()}.old")
            remove(retired)
            os.rename(path, retired)
            os.rename(temporary, path)
            remove(retired)
        else:
            os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        remove(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically. NaN and infinity are refused (they are not JSON)."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON from `path`.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it was cut off or edited") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of log.jsonl; one cut off by a killed run is passed over, and so is a file that is not there."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, or nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    mask = os.umask(0)
    os.umask(mask)
    for file in files:
        file.chmod(0o666 & ~mask)  # safetensors writes for the owner alone; a shared run is read by others
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Run:
    """The paths of one run folder."""

    path: Path

    @property
    def model(self) -> Path:
        """The Hugging Face checkpoint with tokenizer, decision.json and model card (or the linear model)."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """The evaluation, one JSON object."""
        return self.path / "metrics.json"

    @property
    def log(self) -> Path:
        """One JSON line per optimiser step."""
        return self.path / "log.jsonl"

    @property
    def manifest(self) -> Path:
        """Configuration, versions, hardware, data hash, seeds."""
        return self.path / "manifest.json"

    @property
    def scores(self) -> Path:
        """Saved logits and targets per split."""
        return self.path / "scores"

    @property
    def report(self) -> Path:
        """The self-contained HTML page."""
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Where training goes on from."""
        return self.path / "checkpoints"

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest.

        Raises:
            UserError: this folder is not a tinyhat run.
        """
        if not self.path.is_dir():
            raise UserError(f"{self.path} does not exist: give the folder that 'tinyhat train --out' wrote")
        if not self.manifest.exists():
            raise UserError(f"{self.path} is not a tinyhat run (it has no manifest.json)")
        manifest = read_json(self.manifest)
        if not isinstance(manifest, dict) or not {"config", "data", "labels", "train_counts"} <= manifest.keys():
            raise UserError(
                f"{self.manifest} is damaged: it lacks the configuration, the data or the labels of the run"
            )
        return manifest


def open_run(path: Path, config: dict[str, Any], resume: bool) -> Run:
    """Open `path` for training: a new or empty folder, or with `resume` this very run stopped half-way.

    Raises:
        UserError: the folder holds something else, or `resume` finds nothing to resume or another configuration.
    """
    run = Run(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file; name a folder")
    occupied = path.is_dir() and any(p for p in path.iterdir() if not p.name.endswith(".tmp"))
    if not resume:
        if occupied and run.manifest.exists():
            raise UserError(f"--out {path} already holds a run; add --resume to go on with it or name another folder")
        if occupied:
            raise UserError(f"--out {path} is not empty and is not a tinyhat run; name a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        return run
    if not run.manifest.exists():
        raise UserError(f"--resume: there is nothing to resume in {path} (no manifest.json); leave --resume out")
    for leftover in path.rglob(".*.[to][ml][pd]"):
        remove(leftover)  # .tmp and .old of a killed process: its last write never came to its final name
    before = run.read_manifest()["config"]
    if any(before.get(section) != config[section] for section in config if section not in LATER):
        raise UserError(
            f"--resume: the configuration differs from the one {path} began with ({_difference(before, config)}); "
            "resume with the same flags or start a new run in another folder"
        )
    return run


@contextmanager
def freed_if_refused(run: Run, new: bool, resume: bool) -> Iterator[None]:
    """Leave the folder as it was found where a mistake ends a run before its first checkpoint: free for another try.

    Args:
        run: just opened.
        new: the folder was not there before.
        resume: the run began earlier; nothing of it is removed.
    """
    try:
        yield
    except UserError:
        if not resume and not run.checkpoints.exists():
            for item in run.path.iterdir():
                remove(item)
            if new:
                run.path.rmdir()
        raise


def _difference(before: Any, now: Any) -> str:
    """Name the first settings in which two configurations differ."""
    found = []
    for section in (name for name in now if name not in LATER):
        for key, value in now[section].items():
            old = (before or {}).get(section, {}).get(key)
            if old != value:
                found.append(f"{section}.{key} was {old!r}, is {value!r}")
    return ", ".join(found[:3]) or "sections differ"


def environment() -> dict[str, Any]:
    """Return versions of the packages and facts of the machine, for the manifest."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def process_memory_gb() -> float:
    """Return the most memory this process has held so far, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
