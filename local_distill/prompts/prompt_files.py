"""Prompts that somebody wrote down: text, JSON, CSV and Parquet files, and the built-in ones."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from local_distill.config.builtin import NAMED_SOURCES
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError, one_line
from local_distill.prompts.chats import decoded_chat, from_sharegpt, read_messages, read_tools, user_says, without_nulls
from local_distill.prompts.data_sets import kind_of, load_table
from local_distill.prompts.opening import PromptRecord
from local_distill.prompts.raw import RawPrompt, RawPrompts, read_answer

BUILTIN_FILE = "builtin.txt"
KEYS = ("prompt", "messages", "conversations")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
NO_TEXT = (
    ".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".pkl", ".pickle", ".npy", ".npz", ".pt", ".safetensors",
    ".gguf", ".zip", ".tar", ".docx", ".pdf", ".yaml", ".yml", ".html", ".xml", ".sqlite", ".db",
)  # fmt: skip
"""Files that would be trained on as text, line by line, or that cannot be read."""
PARQUET, ZIP = b"PAR1", b"PK\x03\x04"
"""How such files begin; a spreadsheet is a zip file."""
LONGEST_FIELD = 2**31 - 1
"""Of a CSV file; the library's own limit of 131,072 characters is less than some contexts hold."""


@dataclass(frozen=True)
class WrittenRow:
    """A file has this in one row: what stands there, or what is wrong with it.

    origin: its place, for people. where: the same behind the flag, for errors.
    """

    origin: str
    where: str
    content: Any

    def fields(self) -> dict[str, Any]:
        """Return the row as an object. Raises UserError where it is none."""
        if isinstance(self.content, UserError):
            raise self.content
        if not isinstance(self.content, dict):
            raise UserError(
                f'{self.where}: {type(self.content).__name__} given, needs a JSON object such as {{"prompt": "…"}}'
            )
        return self.content

    def _renamed(self, column: str | None) -> dict[str, Any]:
        """The row with its column under the name that it has here."""
        if isinstance(self.content, str):
            raise UserError(f"--prompt_column {column}: {self.where} is plain text, which has no columns; drop it")
        row = self.fields()
        if column is None:
            return row
        if column not in row:
            raise UserError(f"--prompt_column {column}: not a column of {self.where}; it has {', '.join(row)}")
        others = {key: value for key, value in row.items() if key not in KEYS}
        return {**others, "prompt": from_sharegpt(row[column])}

    def prompt(self, column: str | None = None) -> RawPrompt:
        """Return what the row asks. column: see _WrittenRows. Raises UserError where it asks nothing, or is none."""
        if isinstance(self.content, str) and column is None:
            return RawPrompt(user_says(self.content), self.origin)
        row = self._renamed(column)
        keys = [key for key in KEYS if key in row]
        if len(keys) != 1:
            given = f"both {' and '.join(keys)}" if keys else f"keys {', '.join(row) or '(none)'}"
            raise UserError(
                f"{self.where}: {given} given, needs one of prompt (text) and messages (a list); rename "
                "it, or name it with --prompt_column of train"
            )
        (key,) = keys
        value = row[key]
        if isinstance(value, str) and key != "prompt":
            value = decoded_chat(value) or value
        if not isinstance(value, list) and not (isinstance(value, str) and key == "prompt"):
            needed = "text, or a list of chat messages" if key == "prompt" else "a list of chat messages"
            raise UserError(f"{self.where}: {key} is {type(value).__name__}, needs to be {needed}")
        answer = read_answer(row.get("answer"))
        if answer is None and row.get("answer") is not None:
            raise UserError(f"{self.where}: answer is {type(row['answer']).__name__}, needs to be text or a number")
        messages = read_messages(from_sharegpt(value) if key == "conversations" else value, self.where)
        if not messages:
            raise UserError(f"{self.where}: {key} asks nothing; needs text, or a user message with text")
        return RawPrompt(messages, self.origin, answer, read_tools(row.get("tools"), self.where))


@dataclass(frozen=True)
class _WrittenRows:
    """The prompts of a file. column: that of the prompts where it has another name than KEYS."""

    rows: Sequence[WrittenRow]
    column: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> RawPrompt:
        return self.rows[index].prompt(self.column)


def read_prompts_file(path: str, column: str | None = None) -> RawPrompts:
    """Read one prompt a line; in JSON, CSV and Parquet files one a row: ``prompt``, ``messages`` or ``conversations``.

    column: where that is called otherwise. Raises UserError when the file cannot be read as that. A row that is no
    prompt raises it when it is asked for.
    """
    where = f"--prompts_file {path}"
    file = Path(path).expanduser()
    read = READERS.get(kind_of(file))
    rows = read(file, where) if read else _text_rows(_plain_text(file, where), file.name, where)
    if not rows:
        raise UserError(f"{where}: no prompt in it; write one prompt a line")
    return RawPrompts(_WrittenRows(rows, column), name=path, must_fit=True)


def _plain_text(file: Path, where: str) -> str:
    """Return the text of a file of one prompt a line. Raises UserError for what is a table under another name."""
    kind, needed = kind_of(file), "needs text with one prompt a line, or JSONL, JSON, CSV, TSV or Parquet"
    if kind in NO_TEXT and file.is_file():
        raise UserError(f"{where}: a {kind} file, {needed}; save it as one of these")
    if file.is_file():
        with file.open("rb") as stream:
            begins = stream.read(len(PARQUET))
        if begins == PARQUET:
            raise UserError(f"{where}: a Parquet file by its content; give it a name that ends in .parquet")
        if begins.startswith(ZIP):
            raise UserError(f"{where}: a spreadsheet or an archive by its content, {needed}; save it as one of these")
    text = _read_text(file, where)
    first = next((line for _, line in _lines(text)), "")
    if first.startswith(("{", "[")) and any(f'"{key}"' in first for key in KEYS):
        raise UserError(f"{where}: its first line is JSON; give the file a name that ends in .jsonl (or .json)")
    for suffix, delimiter in DELIMITERS.items():
        names = [name.strip().strip('"') for name in first.split(delimiter)]
        if len(names) > 1 and any(key in names for key in KEYS) and all(re.fullmatch(r"[\w-]+", n) for n in names):
            raise UserError(f"{where}: its first line names columns; give the file a name that ends in {suffix}")
    return text


def json_rows(file: Path, where: str) -> list[WrittenRow]:
    """Return the rows of a file of one JSON value a line, or of one JSON list.

    Raises UserError, beginning with ``where``, for a file that cannot be read.
    """
    text = _read_text(file, where)
    if text.lstrip().startswith("["):
        return _listed(_json(text, where, "write one JSON list, or one JSON object a line"), file, where)
    if kind_of(file) == ".json" and isinstance(whole := _json(text, where, ""), dict):  # an object over several lines
        return _listed([whole], file, where)
    return [
        WrittenRow(
            f"{file.name}:{n}", f"{where}: line {n}", _json(line, f"{where}: line {n}", "write one JSON object a line")
        )
        for n, line in _lines(text)
    ]


def _listed(rows: Any, file: Path, where: str) -> list[WrittenRow]:
    if isinstance(rows, UserError):
        raise rows
    return [WrittenRow(f"{file.name}[{i}]", f"{where}: row {i}", row) for i, row in enumerate(rows)]


def _json(text: str, where: str, remedy: str) -> Any:
    """What the text holds, or the UserError that says what is wrong with it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return UserError(f"{where}: not JSON ({one_line(error)}); {remedy}")


def _csv_rows(file: Path, where: str) -> list[WrittenRow]:
    text = io.StringIO(_read_text(file, where), newline="")
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(text, delimiter=DELIMITERS[kind_of(file)], strict=True)
    rows = []
    try:
        last = reader.line_num if reader.fieldnames else 0
        for row in reader:
            first, last = last + 1, reader.line_num
            place = f"{where}: line {first}"
            beyond = UserError(f"{place}: more fields than the header names; quote text that has a comma in it")
            rows.append(WrittenRow(f"{file.name}:{first}", place, beyond if None in row else row))
    except csv.Error as error:
        raise UserError(f"{where}: line {reader.line_num}: not CSV ({error}); mend the quotes there") from None
    return rows


def _parquet_rows(file: Path, where: str) -> list[WrittenRow]:
    if not file.exists():
        _read_text(file, where)
    return _listed([without_nulls(row) for row in load_table(str(file), "train", where)], file, where)


READERS: dict[str, Callable[[Path, str], list[WrittenRow]]] = {
    ".jsonl": json_rows, ".json": json_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows,
}  # fmt: skip


def _read_text(file: Path, where: str) -> str:
    if file.is_dir():
        raise UserError(f"{where}: a folder, needs a file; a data set in a folder goes to --dataset")
    try:
        data = file.read_bytes()
        data = gzip.decompress(data) if file.suffix.lower() == ".gz" else data
    except FileNotFoundError:
        raise UserError(f"{where}: no such file (looked in {Path.cwd()}); check the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{where}: not a whole gzip file ({error}); make it again") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise UserError(f"{where}: NUL byte in line {line}, not a text file in UTF-8; save it as UTF-8 text")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{where}: byte {error.start} (line {line}) is not UTF-8; save it as UTF-8, "
            "for example with iconv -f latin1 -t utf-8"
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without surrounding whitespace) of the lines that are not blank."""
    # Not str.splitlines: it also breaks at characters, such as U+2028, that are no line end to an editor.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield number, line.strip()


def _text_rows(text: str, name: str, where: str) -> list[WrittenRow]:
    return [WrittenRow(f"{name}:{number}", f"{where}: line {number}", line) for number, line in _lines(text)]


def builtin_prompts() -> RawPrompts:
    """Return the prompts that come with the package."""
    text = resources.files(__package__).joinpath(BUILTIN_FILE).read_text(encoding="utf-8")
    return RawPrompts(_WrittenRows(_text_rows(text, BUILTIN_FILE, BUILTIN_FILE)), name="the built-in prompts")


def check_no_data_set(settings: TrainFields) -> None:
    """Refuse what belongs to a data set, where the prompts come from none."""
    if settings.dataset_path:
        known = " or ".join(NAMED_SOURCES)
        raise UserError(
            f"--dataset_path: given without --dataset; name the set that it is a copy of ({known}), or give "
            "the path as --dataset with --prompt_column"
        )
    if settings.prompt_column and not settings.prompts_file:
        raise UserError(
            "--prompt_column: given without --dataset or --prompts_file, whose column it names; add one, or drop the "
            "column"
        )
    if settings.dataset_config:
        raise UserError("--dataset_config: given without --dataset, of which it is a part; add it, or drop it")


WRITTEN = PromptRecord(
    open=lambda settings: read_prompts_file(str(settings.prompts_file), settings.prompt_column),
    check=check_no_data_set,
    words=lambda settings: f"a file of prompts ({Path(str(settings.prompts_file)).name})",
)
BUILTIN = PromptRecord(open=lambda _: builtin_prompts(), check=check_no_data_set, words=lambda _: "built-in prompts")
