"""`tinyhat layers`: which hidden states, under which pooling, know most about labelled documents."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyhat.config import Config, build_config
from tinyhat.data.dataset import Split
from tinyhat.data.read import read_dataset
from tinyhat.embed.choice import CHOICE_FILE, POOLINGS, choose_layers
from tinyhat.embed.embedder import Embedder, load_embedder
from tinyhat.embed.features import SUMS, layer_features
from tinyhat.embed.mix import learn_mix, mixed
from tinyhat.errors import UserError
from tinyhat.evaluate.probe import FOLDS, Probe, Probed, paired_difference
from tinyhat.report.layers import draw_layers
from tinyhat.run import write_json

MIX_FILE = "mix.json"
"""The learned scalar mix as a choice of its own: ``--layers best:FOLDER/mix.json``."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """One choice of layers and pooling with what the probe found.

    Attributes:
        layers: as `--layers` takes it.
        pooling: of a document's tokens.
        probed: the probe's folds and penalty.
        weights: of a scalar mix, else None.
    """

    layers: str
    pooling: str
    probed: Probed
    weights: tuple[float, ...] | None = None

    def choice(self) -> dict[str, Any]:
        """Return what `read_choice` reads."""
        return {"layers": self.layers, "pooling": self.pooling, "combine": "mean", "weights": self.weights}

    @property
    def name(self) -> str:
        """How people call it."""
        several = {"-4:": "the mean of the last four layers", "all": "the mean of all layers"}
        what = several.get(self.layers, f"layer {self.layers}")
        return f"{what if self.weights is None else 'the scalar mix of all layers'} under {self.pooling}"


@dataclass(frozen=True)
class LayerTable:
    """What `tinyhat layers` found.

    Attributes:
        metric: accuracy, r_precision or pearson.
        documents: labelled documents probed.
        layer_count: layers of the encoder; hidden states are numbered 0 (embeddings) to this.
        candidates: all that was tried: first layer by layer and pooling by pooling, then the mixtures.
    """

    metric: str
    documents: int
    layer_count: int
    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The candidate with the highest mean; among equals the last layer, and mean before other poolings."""
        return max(self.candidates, key=lambda c: (c.probed.score, c.layers == str(self.layer_count)))

    @property
    def default(self) -> Candidate:
        """What `tinyhat embed` takes where nothing is said: the mean over the last layer."""
        return next(c for c in self.candidates if (c.layers, c.pooling) == (str(self.layer_count), "mean"))

    @property
    def mix(self) -> Candidate:
        """The learned scalar mix."""
        return next(c for c in self.candidates if c.weights is not None)

    def facts(self) -> dict[str, Any]:
        """Return the table for JSON."""
        rows = [
            c.choice() | {"score": c.probed.score, "error": c.probed.error} | asdict(c.probed) for c in self.candidates
        ]
        return {"metric": self.metric, "documents": self.documents, "folds": FOLDS, "table": rows}


def layers(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    max_tokens: int | None = None,
    settings: Mapping[str, Any] | None = None,
    say: Say = print,
) -> LayerTable:
    """Probe every layer and pooling of an encoder: ``tinyhat.layers("minilm", "laws.csv", "layers/laws")``.

    Args:
        model: a run, a folder, a hub name, or ``minilm``.
        data: labelled documents, as `train` takes them; the training split is probed, dev and test are left alone.
        out: a new or empty folder for layers.json (which ``embed --layers best:FOLDER`` reads), mix.json, layers.png.
        max_tokens: of a sequence; None is 512, or the encoder's positions if fewer. Longer documents are windows.
        settings: dotted configuration keys of ``data``, and ``train.seed``.
        say: where remarks go.

    Raises:
        UserError: whatever is wrong with the data, the model or the folder, in one sentence.
    """
    config = build_config(None, {**(settings or {}), "data.path": str(data)})
    return layers_config(str(model), config, Path(out), max_tokens, say)


def layers_config(model: str, config: Config, out: Path, max_tokens: int | None, say: Say) -> LayerTable:
    """As `layers`, with the configuration at hand."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already and not empty: name a new folder")
    dataset = read_dataset(config.data, config.train.seed)
    split = dataset.splits["train"]
    if split.pairs is not None:
        raise UserError("layers are probed on single texts and this data has text pairs: name one column with --text")
    probe = Probe(split.targets, config.train.seed, split.groups)
    embedder = load_embedder(model, layers="all", max_tokens=max_tokens)
    say(
        f"{len(split):,} train documents, {embedder.layer_count} layers, {len(POOLINGS)} poolings, {embedder.plan.name}"
    )
    with tempfile.TemporaryDirectory(prefix="tinyhat-layers-") as folder:
        features = layer_features(embedder, split.texts, Path(folder) / "features.npy")
        table = probe_features(features, split, probe, config.train.seed)
        del features  # the memory map is closed before its file goes
    _write(table, embedder, config, out)
    for line in (*render(table).splitlines(), *conclusions(table)):
        say(line)
    say(f"written to {out}; use it with: tinyhat embed {model} INPUT --to OUT --layers best:{out}")
    return table


def probe_features(features_KPND: npt.NDArray[np.float32], split: Split, probe: Probe, seed: int) -> LayerTable:
    """Probe each layer and pooling, then three mixtures under the best pooling that is a weighted sum.

    The mixtures are the mean of the last four layers, the mean of all, and the learned scalar mix, whose weights are
    learned anew without each held-out fold for the figure, and from all documents for the choice.

    Args:
        features_KPND: float32 [K, P, N, D] of `layer_features`.
        split: the N documents.
        probe: of their targets.
        seed: of the mix.
    """
    count = len(features_KPND) - 1
    found = [
        Candidate(str(k), pooling, probe(features_KPND[k, p]))
        for k in range(count + 1)
        for p, pooling in enumerate(POOLINGS)
    ]
    pooling = max((c for c in found if c.pooling in SUMS), key=lambda c: c.probed.score).pooling
    own = features_KPND[:, POOLINGS.index(pooling)]
    for name in ("-4:", "all"):
        chosen = choose_layers(name, count).indices
        equal = [1 / len(chosen)] * len(chosen)
        found.append(Candidate(name, pooling, probe(mixed(own[list(chosen)], equal))))
    found.append(_probe_mix(own, pooling, split, probe, seed))
    return LayerTable(probe.metric, len(split), count, tuple(found))


def _probe_mix(own: npt.NDArray[np.float32], pooling: str, split: Split, probe: Probe, seed: int) -> Candidate:
    """Learn the mix without each fold and measure it there."""
    folds, penalties = [], []
    for fold in range(FOLDS):
        weights = learn_mix(own, split.targets, np.flatnonzero(probe.fold != fold), seed)
        probed = probe(mixed(own, weights))
        folds.append(probed.folds[fold])
        penalties.append(probed.penalty)
    weights = learn_mix(own, split.targets, np.arange(len(split)), seed)
    return Candidate("all", pooling, Probed(tuple(folds), float(np.median(penalties))), tuple(weights))


def render(table: LayerTable) -> str:
    """Return the table as text: a row a layer, a column a pooling, the best marked with a star, then the mixtures."""
    cells = {(c.layers, c.pooling): c for c in table.candidates if c.layers.isdigit()}
    best = table.best

    def cell(c: Candidate) -> str:
        return f"{c.probed.score:.4f}{'*' if c is best else ' '}".rjust(11)

    lines = [
        f"{table.metric} of a linear probe, mean of {FOLDS} folds",
        "layer".ljust(6) + "".join(p.rjust(11) for p in POOLINGS),
    ]
    for k in range(table.layer_count + 1):
        lines.append(str(k).ljust(6) + "".join(cell(cells[str(k), p]) for p in POOLINGS))
    lines += [f"{c.name}: {cell(c).strip()}" for c in table.candidates if not c.layers.isdigit()]
    return "\n".join(lines)


def conclusions(table: LayerTable) -> list[str]:
    """Return what the table says, in sentences."""
    best, default, mix = table.best, table.default, table.mix
    said = [f"best: {best.name}, {table.metric} {best.probed.score:.4f} (standard error {best.probed.error:.4f})"]
    if best is not default:
        gap, error = paired_difference(best.probed, default.probed)
        weight = "more than chance" if gap > 2 * error else "no more than chance, so the default will do"
        said.append(
            f"the default, the mean over the last layer, has {default.probed.score:.4f}: {gap:.4f} less "
            f"(standard error {error:.4f} over folds), {weight}"
        )
    weights = ", ".join(f"{w:.2f}" for w in mix.weights or ())
    said.append(f"the scalar mix weighs hidden states 0 to {table.layer_count} by {weights}")
    return said


def _write(table: LayerTable, embedder: Embedder, config: Config, out: Path) -> None:
    """Write the plot first and the choice last: where layers.json is, everything is."""
    draw_layers(
        out / "layers.png",
        table.metric,
        {p: [c.probed for c in table.candidates if c.layers.isdigit() and c.pooling == p] for p in POOLINGS},
        {c.name: c.probed.score for c in table.candidates if not c.layers.isdigit()},
    )
    about = {
        "model": embedder.encoder.name,
        "model_sha256": embedder.fingerprint(),
        "max_tokens": embedder.max_tokens,
        "plan": embedder.plan.name,
        "data": config.data.path,
    }
    write_json(out / MIX_FILE, table.mix.choice() | about)
    write_json(out / CHOICE_FILE, table.best.choice() | about | table.facts())
