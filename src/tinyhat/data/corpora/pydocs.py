"""pydocs: the docstrings of installed Python libraries, a multi-label corpus that is there on any machine.

A document is a docstring of 30 or more words; its labels are the library and the nested module path (``scipy``,
``scipy.sparse``, ``scipy.sparse.linalg``). Files are parsed by `ast`; nothing is imported. What gives the labels away
(dotted paths, label words) is taken out of the text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path

from tinyhat.config import DataConfig
from tinyhat.data.duplicates import clusters, signatures, similar_pairs
from tinyhat.data.raw import RawDataset, RawSplit
from tinyhat.errors import UserError

COMMON = ("torch", "transformers", "scipy", "sklearn", "numpy", "pandas")
LIBRARIES = (
    *COMMON,
    "matplotlib",
    "sympy",
    "networkx",
    "accelerate",
    "pydantic",
    "pyarrow",
    "huggingface_hub",
    "joblib",
)
DISTRIBUTIONS = {"sklearn": "scikit-learn"}
OTHER_NAMES = {"sklearn": ("scikit-learn", "scikit"), "transformers": ("huggingface", "hugging face")}
SKIPPED = {"tests", "test", "conftest", "_vendor", "externals", "third_party"}
WORDS = 30
DEPTH = 3
# A label with fewer training documents can neither be learnt nor measured, and which labels these are changes with
# every release of a library; its documents keep the labels above it.
LABEL_DOCUMENTS = 5
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}
SPARE = 1.05  # a limit is on train documents: read a little more than it needs, as the shares are only expected ones
Found = tuple[str, str, tuple[str, ...]]
"""Dotted path, text, labels."""


def read(config: DataConfig) -> RawDataset:
    """Read the docstrings of the libraries that are installed.

    With ``config.limit`` only files of the six commonest libraries are parsed, in the order of a hash of their module
    path, until the limit is met.

    Raises:
        UserError: none of the libraries is installed.
    """
    libraries = COMMON if config.limit is not None else LIBRARIES
    needed = None if config.limit is None else int(config.limit / SHARES["train"] * SPARE)
    found = _collect(libraries, needed)
    if not found:
        raise UserError(f"pydocs: none of {', '.join(libraries)} is installed: pip install 'tinyhat[demo]'")
    found.sort()
    splits = _by_hash(found)
    train_counts = Counter(label for _, _, labels in splits["train"] for label in labels)
    kept = {label for label, count in train_counts.items() if count >= LABEL_DOCUMENTS}
    raw = {name: _raw_split(documents, kept) for name, documents in splits.items() if documents}
    used = sorted({path.split(".")[0] for path, _, _ in found})
    note = f"pydocs: docstrings of {', '.join(map(_version, used))}; other versions give other figures"
    return RawDataset("multi", raw, notes=[note])


def _collect(libraries: tuple[str, ...], needed: int | None) -> list[Found]:
    """Docstrings without exact repetitions, at most about `needed`."""
    files = sorted(chain.from_iterable(map(_module_files, libraries)), key=lambda item: _hash(item[0]))
    found: list[Found] = []
    paths: set[str] = set()
    texts: set[str] = set()
    for module, file in files:
        for path, docstring in _docstrings(module, file):
            labels = _labels(module)
            text = _strip(docstring, labels)
            key = " ".join(text.split())
            if path in paths or key in texts or len(key.split()) < WORDS:
                continue
            paths.add(path)
            texts.add(key)
            found.append((path, text, labels))
        if needed is not None and len(found) >= needed:
            break
    return found


def _module_files(library: str) -> Iterator[tuple[str, Path]]:
    """Yield dotted module path and file; finding the folder of a top-level package does not import it."""
    spec = importlib.util.find_spec(library)
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location)
        for file in root.rglob("*.py"):
            parts = [library, *file.relative_to(root).with_suffix("").parts]
            if not SKIPPED.intersection(parts):
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


def _docstrings(module: str, file: Path) -> Iterator[tuple[str, str]]:
    """Yield dotted path and docstring of a module, its classes and its functions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    waiting: list[tuple[str, ast.AST]] = [(module, tree)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 3 * WORDS:
                yield path, docstring
            for child in node.body:
                if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    waiting.append((f"{path}.{child.name}", child))


def _labels(module: str) -> tuple[str, ...]:
    """The library and the public part of the module path, at most three levels."""
    parts: list[str] = []
    for part in module.split(".")[:DEPTH]:
        if part.startswith("_"):
            break
        parts.append(part)
    return tuple(".".join(parts[: k + 1]) for k in range(len(parts)))


def _strip(docstring: str, labels: tuple[str, ...]) -> str:
    return _giveaways(labels[-1]).sub(" ", docstring).strip()


@cache
def _giveaways(label: str) -> re.Pattern[str]:
    """Dotted paths of the library, words that hold its name (PyTorch), and words that begin with a label word."""
    library, *words = label.split(".")
    names = "|".join(map(re.escape, (library, *OTHER_NAMES.get(library, ()))))
    patterns = [rf"[\w.]*(?:{names})[\w.]*"]
    for word in words:
        # a short word (io, nn, fx) only as a whole: many others begin with it
        stem = word.rstrip("s") if len(word) > 4 else word
        patterns.append(rf"(?<![A-Za-z0-9]){re.escape(stem)}" + (r"\w*" if len(stem) > 3 else r"(?![A-Za-z0-9])"))
    return re.compile("|".join(patterns), re.IGNORECASE)


def _by_hash(found: list[Found]) -> dict[str, list[Found]]:
    """A cluster of near-duplicate documents goes where the hash of its first path says."""
    pairs = similar_pairs(signatures([text for _, text, _ in found]))
    member = clusters(len(found), pairs)
    first: dict[int, str] = {}
    splits: dict[str, list[Found]] = {name: [] for name in SHARES}
    for cluster, document in zip(member.tolist(), found, strict=True):
        place = _hash(first.setdefault(cluster, document[0])) / 2**64
        name = "train" if place < SHARES["train"] else "dev" if place < SHARES["train"] + SHARES["dev"] else "test"
        splits[name].append(document)
    return splits


def _hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big")


def _raw_split(documents: list[Found], kept: set[str]) -> RawSplit:
    return RawSplit(
        ids=[path for path, _, _ in documents],
        texts=[text for _, text, _ in documents],
        labels=[[label for label in labels if label in kept] for _, _, labels in documents],
    )


def _version(library: str) -> str:
    try:
        return f"{library} {metadata.version(DISTRIBUTIONS.get(library, library))}"
    except metadata.PackageNotFoundError:
        return library
