"""Which column means what: named by flags, or detected where only one reading is possible."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tinyhat.config import DataConfig
from tinyhat.errors import UserError, did_you_mean

Kind = Literal["label", "labels", "target"]

TEXT = ("text", "document", "content", "sentence", "body", "article", "review", "utterance", "query", "tweet")
LABEL = ("label", "class", "category", "intent", "sentiment")
LABELS = ("labels", "classes", "categories", "concepts", "tags", "topics")
TARGET = ("target", "score", "rating", "value")
ID = ("id", "doc_id", "document_id", "docid", "uid", "guid", "idx")
KINDS: dict[str, Kind] = {"single": "label", "multi": "labels", "regression": "target"}
SHOWN = 12


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        text: text columns, joined by a newline; with `pair` empty.
        pair: two text columns read as a pair, or None.
        kind: label (one), labels (a list or a delimited string), target (numbers); None when nothing is to be learnt.
        answers: the label column, the labels column or the target columns.
        id, group, weight: their columns, or None.
        id_named: True when the user named the id column.
    """

    text: tuple[str, ...]
    pair: tuple[str, str] | None = None
    kind: Kind | None = None
    answers: tuple[str, ...] = ()
    id: str | None = None
    group: str | None = None
    weight: str | None = None
    id_named: bool = False

    def used(self) -> list[str]:
        """Return every column that must be there."""
        optional = [c for c in (self.id if self.id_named else None, self.group, self.weight) if c]
        return [*self.text, *(self.pair or ()), *self.answers, *optional]


def find_columns(config: DataConfig, sample: Sequence[dict[str, Any]], where: str, labelled: bool = True) -> Columns:
    """Return the columns to read, named in `config` or detected.

    Args:
        config: the flags; empty names are detected.
        sample: the first rows of the file.
        where: the file, for sentences.
        labelled: False when only the text is read.

    Raises:
        UserError: a named column is missing, or a column cannot be detected without a doubt; the sentence names the
            columns there are and the flag to use.
    """
    names = list(dict.fromkeys(name for row in sample for name in row))
    pair = config.pair
    text = config.text or (() if pair else (_detect(TEXT, names, where, "text column", "--text"),))
    ids = [name for known in ID for name in names if name.lower() == known]
    id_named = config.id is not None
    columns = Columns(text, pair, id=config.id or next(iter(ids), None), id_named=id_named)
    if labelled:
        kind, answers = _find_answers(config, sample, names, {*text, *(pair or ())}, where)
        columns = Columns(text, pair, kind, answers, columns.id, config.group, config.weight, id_named)
    require_columns(columns.used(), names, where)
    return columns


def require_columns(used: Sequence[str], names: Collection[str], where: str) -> None:
    """Raise a UserError with the columns there are when one of `used` is not among `names`."""
    for name in used:
        if name not in names:
            raise UserError(f"{where} has no column '{name}' (it has {_list(names)}){did_you_mean(name, names)}")


def _list(names: Collection[str]) -> str:
    shown = [name if len(name) <= 40 else name[:37] + "..." for name in list(names)[:SHOWN]]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(shown) + more


def _detect(known: Sequence[str], names: Sequence[str], where: str, what: str, flag: str) -> str:
    found = [name for name in names if name.lower() in known]
    if len(found) == 1:
        return found[0]
    problem = f"could take {_list(found)} as its {what}" if found else f"has no column that is plainly the {what}"
    raise UserError(f"{where} {problem} (it has {_list(names) or 'no other column'}): name it with {flag}")


def _find_answers(
    config: DataConfig, sample: Sequence[dict[str, Any]], names: Sequence[str], taken: set[str], where: str
) -> tuple[Kind, tuple[str, ...]]:
    wanted = KINDS.get(config.task)
    flags: dict[Kind, tuple[str, ...]] = {
        "label": (config.label,) if config.label else (),
        "labels": (config.labels,) if config.labels else (),
        "target": config.target,
    }
    given = [kind for kind, columns in flags.items() if columns]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} exclude each other: give one of them")
    if given:
        if wanted not in (None, given[0]):
            raise UserError(f"--task {config.task} contradicts --{given[0]}: use --{wanted} or leave --task out")
        return given[0], flags[given[0]]
    free = [name for name in names if name not in taken | {config.group, config.weight, config.id}]
    known = {None: (*LABEL, *LABELS, *TARGET), "target": (*TARGET, *LABEL)}.get(wanted, (*LABEL, *LABELS))
    flag = f"--{wanted}" if wanted else "--label, --labels or --target"
    name = _detect(known, free, where, "target column" if wanted == "target" else "label column", flag)
    return wanted or _guess_kind(name, [row.get(name) for row in sample], where), (name,)


def _guess_kind(name: str, values: Sequence[Any], where: str) -> Kind:
    """Guess by the name of the column and what its first values look like."""
    values = [value for value in values if value not in (None, "")]
    if any(isinstance(value, list) for value in values):
        return "labels"
    numbers = [_number(value) for value in values]
    numeric = bool(values) and all(number is not None for number in numbers)
    if numeric and any(number is not None and number % 1 for number in numbers):
        return "target"
    if name.lower() in LABELS and not numeric and any(isinstance(value, str) for value in values):
        return "labels"
    if name.lower() in TARGET and numeric:
        raise UserError(
            f"{where}: column '{name}' holds whole numbers: say --label {name} for classes or "
            f"--target {name} for numbers"
        )
    return "label"


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
