"""Prompts of data sets: two known by name, any other from the hub, local folders and files.

No code that comes with a data set is run, and nothing is unpickled: ``datasets`` ≥ 4 reads data files only.
"""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from local_distill.config.builtin import BUILTIN_SOURCES, NAMED_SOURCES
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError, one_line
from local_distill.models.loading_errors import check_caches
from local_distill.packages import installed
from local_distill.prompts.chats import from_sharegpt, read_messages, read_tools, without_nulls
from local_distill.prompts.opening import PromptRecord
from local_distill.prompts.raw import RawPrompt, RawPrompts, read_answer

FILE_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
TOOLS_COLUMN = "tools"
CHOICES = re.compile(r"(?:available configs|Available): \[(.*?)\]")
"""Of configurations, in the words of ``datasets``."""
ANSWER_COLUMNS = ("final_answer", "answer")
"""Columns with reference answers, in upper or lower case. Where a set has both, ``answer`` is the whole solution."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
NO_SUCH_SPLIT = re.compile(r"unknown split|bad split|instruction format", re.IGNORECASE)
NO_ROWS = "corresponds to no data"


@dataclass(frozen=True)
class _DataSetRows:
    """The prompts of a loaded table; a row is read when it is asked for.

    where: the flag and its value, for errors. label: the set's short name, for origins.
    """

    table: Any
    column: str
    answer_column: str | None
    first_turn: bool
    where: str
    label: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int, /) -> RawPrompt:
        row, where = without_nulls(self.table[index]), f"{self.where}: row {index}"
        messages = read_messages(from_sharegpt(row.get(self.column)), f"{where}, column {self.column}")
        if self.first_turn:
            messages = tuple(m for m in messages if m["role"] == "user")[:1]
        answer = read_answer(row.get(self.answer_column)) if self.answer_column else None
        return RawPrompt(messages, f"{self.label}[{index}]", answer, read_tools(row.get(TOOLS_COLUMN), where))


def kind_of(file: Path) -> str:
    """Return a file's suffix in lower case; of a compressed one that of its content."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def open_data_set(settings: TrainFields, *, column: str | None = None, first_turn: bool = False) -> RawPrompts:
    """Return the prompts of a data set from the hub, or from a local file or folder.

    column: that of the prompts where --prompt_column does not say it. first_turn: ask the first user message alone, not
    the whole chat. Raises UserError when it cannot be loaded, lacks the split or the column, or is empty.
    """
    dataset, path, split = str(settings.dataset), settings.dataset_path, settings.dataset_split
    where = f"--dataset_path {path}" if path else f"--dataset {dataset}"
    hub_id = BUILTIN_SOURCES[settings.prompts_kind].hub_id
    place = path or hub_id or dataset
    local = Path(place).expanduser()
    if path and not local.exists():
        raise UserError(f"{where}: no such file or folder; give the folder or file that holds the copy of {dataset}")
    if not hub_id:
        _check_name(dataset)
    column = settings.prompt_column or column
    if column is None and not local.exists():
        raise UserError(f"{where}: needs --prompt_column, the column with the prompts; its page on the hub shows them")
    table = load_table(place, split, where, settings.dataset_config)
    columns = ", ".join(table.column_names)
    if column is None:
        raise UserError(f"{where}: needs --prompt_column, the column with the prompts; it has {columns}")
    if column not in table.column_names:
        raise UserError(f"--prompt_column {column}: not a column of {where}; it has {columns}")
    if len(table) == 0:
        raise _no_rows(split, where)
    label = local.name if local.exists() and not path else dataset
    answer = answer_column([name for name in table.column_names if name != column])
    # Other columns, such as DeepMath's long solutions, would be decoded with each row.
    tools = [name for name in table.column_names if name == TOOLS_COLUMN != column]
    table = table.select_columns([column, *([answer] if answer else []), *tools])
    return RawPrompts(_DataSetRows(table, column, answer, first_turn, where, label), name=dataset)


DEEPMATH = PromptRecord(partial(open_data_set, column="question"))
TULU3 = PromptRecord(partial(open_data_set, column="messages", first_turn=True))
OTHER = PromptRecord(open_data_set)


def load_table(place: str, split: str, where: str, config: str | None = None) -> Any:
    """Return the rows of a data set's split, from a local file or folder where there is one, else from the hub.

    config: for a set that is several; a local copy names them in its README.md, or has a folder for each.
    Raises UserError, beginning with ``where``, when they cannot be loaded.
    """
    local = Path(place).expanduser()
    if local.exists():
        return _load_local(local, split, where, config)
    remedy = (
        f"with no network, run `hf download {place} --repo-type dataset --local-dir DIR` where there is one, "
        "and give --dataset_path DIR"
    )
    return _load(place, {"name": config} if config else {}, split, where, remedy)


def answer_column(names: Iterable[str]) -> str | None:
    """Return the column that training and evaluation take the reference answers from, or None where there is none."""
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in ANSWER_COLUMNS if name in lower), None)


def _check_name(dataset: str) -> None:
    """Raise UserError unless ``dataset`` is a local path or could be a hub id."""
    path = Path(dataset).expanduser()
    if path.exists():
        return
    if kind_of(path) in FILE_READERS or dataset.startswith((".", "/", "~")):
        raise UserError(f"--dataset {dataset}: no such file or folder; check the path")
    if HUB_ID.fullmatch(dataset):
        return
    near = difflib.get_close_matches(dataset.lower(), NAMED_SOURCES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"--dataset {dataset}: unknown data set; {hint}"
        f"needs {', '.join(NAMED_SOURCES)}, a hub id (owner/name), or a local file or folder"
    )


def _load_local(path: Path, split: str, where: str, config: str | None) -> Any:
    # Absolute, because a folder called "json" or "csv" would be taken for the reader of that name.
    path = path.absolute()
    if path.is_dir():
        return _load_folder(path, split, where, config)
    if config:
        raise UserError(f"--dataset_config {config}: {where} is a file, which has no configurations; drop it")
    reader = FILE_READERS.get(kind_of(path))
    if reader is None:
        raise UserError(
            f"{where}: a {path.suffix or 'nameless'} file, needs one of {', '.join(FILE_READERS)}; "
            "a text file with one prompt a line goes to --prompts_file"
        )
    if path.stat().st_size == 0:
        raise UserError(f"{where}: an empty file; needs at least one row")
    # Brackets and stars in a path are its own, no pattern of several.
    options = {"data_files": glob.escape(str(path)), **({"sep": "\t"} if kind_of(path) == ".tsv" else {})}
    return _load(reader, options, split, where, "mend the file")


def has_configurations(folder: Path) -> bool:
    """Tell whether a local copy says which configurations it has, as the hub does."""
    cards = (folder / name for name in ("README.md", ".huggingface.yaml"))
    return any(card.is_file() and b"\nconfigs:" in b"\n" + card.read_bytes() for card in cards)


def _load_folder(path: Path, split: str, where: str, config: str | None) -> Any:
    options: dict[str, Any] = {}
    if config and has_configurations(path):
        options["name"] = config
    elif config:
        if not (path / config).is_dir():
            raise UserError(
                f"--dataset_config {config}: {where} has no configurations and no folder of that name; drop it"
            )
        path = path / config
    if any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
        return _load_from_disk(path, split, where)
    if glob.has_magic(str(path)) and has_configurations(path):
        raise UserError(f"{where}: has configurations, and one of *?[ in its path; rename the folder")
    remedy = "needs data files (Parquet, JSONL, CSV) in it or in data/, or a folder made by save_to_disk"
    return _load(str(path), options, split, where, remedy)


def _load(name: str, options: dict[str, Any], split: str, where: str, remedy: str) -> Any:
    datasets = _library(where)
    try:
        datasets.disable_progress_bars()  # they would fill a log file
        if glob.has_magic(name):
            options = {**options, "data_files": _files_of(name)}
        return datasets.load_dataset(name, split=split, **options)
    # Each file format and the hub client have exceptions of their own, and all of them mean this one thing.
    except Exception as error:
        check_caches(error)
        if isinstance(error, ValueError) and NO_SUCH_SPLIT.search(str(error)):
            raise UserError(f"--dataset_split {split}: not a split of {where}: {one_line(error)}") from None
        if isinstance(error, ValueError) and (choices := CHOICES.search(str(error))):
            names = choices[1].replace("'", "")
            if "name" in options:
                raise UserError(f"--dataset_config {options['name']}: not there in {where}; it has {names}") from None
            raise UserError(f"{where}: has several configurations; add --dataset_config, one of {names}") from None
        if NO_ROWS in str(error):
            raise _no_rows(split, where) from None
        # This one says only that it failed; what it wraps says why.
        wrapper = isinstance(error, datasets.exceptions.DatasetGenerationError)
        reason = one_line(error.__cause__ if wrapper and error.__cause__ else error)
        raise UserError(f"{where}: cannot be loaded: {reason}; {remedy}") from None


def _files_of(folder: str) -> dict[str, list[str]]:
    """Patterns of a folder's files by split, as ``load_dataset`` makes them, where its path looks like one itself."""
    from datasets.data_files import get_data_patterns

    escaped = glob.escape(folder)
    return {split: [f"{escaped}/{each}" for each in found] for split, found in get_data_patterns(escaped).items()}


def _load_from_disk(path: Path, split: str, where: str) -> Any:
    datasets = _library(where)
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # as above
        raise UserError(f"{where}: cannot be loaded: {one_line(error)}; save it again with save_to_disk") from None
    # A lone table that was saved without a name is what load_dataset would call "train".
    tables = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    if split not in tables:
        raise UserError(f"--dataset_split {split}: not a split of {where}; it has {', '.join(tables)}")
    return tables[split]


def _library(where: str) -> Any:
    if not installed("datasets"):
        raise UserError(f"{where}: needs the package datasets; run `pip install datasets`")
    import datasets

    return datasets


def _no_rows(split: str, where: str) -> UserError:
    return UserError(f"{where}: the split {split} has no rows; needs at least one")
