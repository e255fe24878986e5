"""The one door to every source of prompts."""

from __future__ import annotations

from pathlib import Path

from local_distill.config.builtin import is_outside
from local_distill.errors import UserError
from local_distill.prompts.data_sets import open_data_set
from local_distill.prompts.prompt_files import builtin_prompts, read_prompts_file
from local_distill.prompts.raw import RawPrompts
from local_distill.prompts.registry import SOURCES


def open_prompts(
    *,
    dataset: str | None = None,
    dataset_path: str | None = None,
    dataset_split: str = "train",
    dataset_config: str | None = None,
    prompt_column: str | None = None,
    prompts_file: str | None = None,
) -> RawPrompts:
    """The prompts of a data set or of a file; the built-in ones only when neither is named.

    A source from elsewhere is named as package.module:name.
    Raises UserError when the named source cannot be read: it is never replaced by another.
    """
    if dataset and prompts_file:
        raise UserError("--dataset and --prompts_file: both given; prompts come from one source, drop one of them")
    if dataset_path and not dataset:
        raise UserError("--dataset_path: given without --dataset; name the set that it is a copy of")
    if dataset_config and not dataset:
        raise UserError("--dataset_config: given without --dataset, of which it is a part; add it, or drop it")
    if dataset and is_outside(dataset) and not Path(dataset).exists():
        return SOURCES.get(dataset).open(dataset_split)
    if dataset:
        return open_data_set(
            dataset, path=dataset_path, split=dataset_split, column=prompt_column, config=dataset_config
        )
    if prompts_file:
        return read_prompts_file(prompts_file)
    return builtin_prompts()
