"""A dataset as everything downstream sees it: splits of documents with targets and one label space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tinyhat.data.labels import LabelSpace
from tinyhat.types import Document, FloatArray, IntArray, Targets, Task


@dataclass(frozen=True)
class Split:
    """N documents of one split, column by column.

    Attributes:
        name: train, dev or test.
        ids: N document ids, unique within the split.
        texts: N texts.
        pairs: N second texts where the data has text pairs, else None.
        targets: N targets over the dataset's label space.
        weights: float32 [N] document weights, or None.
        groups: N group names, or None.
    """

    name: str
    ids: list[str]
    texts: list[str]
    targets: Targets
    pairs: list[str] | None = None
    weights: FloatArray | None = None
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order."""
        for i, (name, text) in enumerate(zip(self.ids, self.texts, strict=True)):
            yield Document(name, text, self.pairs[i] if self.pairs is not None else None)

    def take(self, rows: IntArray, name: str | None = None) -> Split:
        """Return the split made of `rows` (int64 [M]), optionally under another name."""

        def pick(column: list[str] | None) -> list[str] | None:
            return None if column is None else [column[i] for i in rows]

        return Split(
            name=name or self.name,
            ids=[self.ids[i] for i in rows],
            texts=[self.texts[i] for i in rows],
            targets=self.targets.take(rows),
            pairs=pick(self.pairs),
            weights=None if self.weights is None else self.weights[rows],
            groups=pick(self.groups),
        )


@dataclass(frozen=True)
class Dataset:
    """Splits over one label space.

    Attributes:
        name: how the user called it.
        task: single, multi or regression.
        labels: the label space (for regression: the target names, counts all N).
        splits: name (train, dev, test) to Split; test may be absent.
        sha256: of ids, texts, targets and weights of all splits, so that a resumed run can tell that the
            data is the same.
        notes: what the user should know, one sentence each (splits made, labels outside the space, counts that differ).
        descriptors: label name to a readable description, where the corpus has them.
    """

    name: str
    task: Task
    labels: LabelSpace
    splits: dict[str, Split]
    sha256: str
    notes: tuple[str, ...] = ()
    descriptors: dict[str, str] = field(default_factory=dict)
