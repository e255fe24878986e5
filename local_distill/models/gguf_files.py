"""Models in llama.cpp's format: one file that holds settings, tokenizer and weights, which are dequantised at load.

Unless it is asked for dense weights, transformers may leave them packed, and refuses to train and to save the model
even where it did not. And it reads the tokenizer of whatever model lies beside the file.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import quantization_config as quantization_settings

from local_distill.errors import UserError
from local_distill.packages import installed

OLDEST_TRANSFORMERS = (5, 23)
"""5.17 reads another end token than the file's; 5.22 draws weights that do not fit at random without a word."""
SUFFIX = ".gguf"
MAGIC = b"GGUF"
PART_OF_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
FILES_READ_INSTEAD = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")


def find_gguf(flag: str, path: Path) -> Path | None:
    """Return the file that ``path`` names or, as a folder without a config.json, holds; None where it is another model.

    Raises UserError when it is not clear which one, or when that one cannot be read.
    """
    if path.is_dir():
        found = [] if (path / "config.json").is_file() else sorted(path.glob(f"*{SUFFIX}"))
    else:
        found = [path] if path.is_file() and path.suffix == SUFFIX else []
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise UserError(f"{flag} {path}: has several GGUF files, {names}; name one, such as {found[0]}")
    for file in found:
        _check(flag, file)
    return found[0].absolute() if found else None


def _check(flag: str, file: Path) -> None:
    if not installed("gguf"):
        raise UserError(
            f"{flag} {file}: needs the package gguf, which is not installed; pip install 'local-distill[gguf]'"
        )
    if not transformers_read_it_right():
        oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise UserError(
            f"{flag} {file}: needs transformers {oldest} or newer, {transformers.__version__} is installed and reads "
            "such files wrongly; pip install -U transformers"
        )
    if PART_OF_SPLIT.search(file.stem):
        raise UserError(
            f"{flag} {file}: one part of a model in several files, needs a whole one; join them with "
            "llama-gguf-split --merge"
        )
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{flag} {file}: not a GGUF file, or a damaged one; download it again")


def transformers_read_it_right() -> bool:
    """Say whether the transformers here give the file's own tokens, and miss what is not there."""
    return tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= OLDEST_TRANSFORMERS


def where_to_read(file: Path) -> tuple[str, dict[str, str]]:
    """Return the file as transformers' loaders take it: a folder, and the option that names it.

    In full, because a name alone is looked for in the working folder first.
    """
    return str(file.parent), {"gguf_file": str(file.absolute())}


def read_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that is in the file, whatever lies beside it."""
    if not any(any(file.parent.glob(pattern)) for pattern in FILES_READ_INSTEAD):
        return _tokenizer(file)
    with tempfile.TemporaryDirectory() as alone:
        link = Path(alone) / file.name
        link.symlink_to(file.absolute())
        return _tokenizer(link)


def _tokenizer(file: Path) -> PreTrainedTokenizerBase:
    folder, name = where_to_read(file)
    return AutoTokenizer.from_pretrained(folder, **name)


def generation_settings(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Read from the file's tokenizer when to stop; ``config`` is put right as well.

    The configuration that is made from the file has the family's usual ids where it should have the file's. A list
    of end tokens is what transformers knows of a family besides.
    """
    if not isinstance(config.eos_token_id, list):
        config.eos_token_id = tokenizer.eos_token_id
    config.bos_token_id = tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return GenerationConfig.from_model_config(config)


def dense_weights() -> dict[str, Any]:
    """Ask for an ordinary model, which can be trained and saved; older transformers make no other."""
    settings = getattr(quantization_settings, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}
