"""An export from the first check to the last upload, into a folder that is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import HfApi

from local_distill.errors import UserError
from local_distill.export.card import CURVE_FILE, curve_svg, model_card
from local_distill.export.gguf import compare_gguf, convert, find_converter
from local_distill.export.hub import check_hub, push
from local_distill.export.merging import Distance, compare_with_trained, probe_logprobs, write_model
from local_distill.export.origin import origin_of
from local_distill.models.quantization import check_dense
from local_distill.models.trained import Trained, open_trained
from local_distill.process.launch import DTYPES
from local_distill.runs.claim import LOCK, claimed
from local_distill.runs.whole_files import expanded, whole_folder, writing

if TYPE_CHECKING:
    from local_distill.export.export_config import ExportSettings

CARD_FILE = "README.md"


def export(settings: ExportSettings, say: Callable[[str], None], api: HfApi | None = None) -> Path:
    """Export, and say what was done. Returns the folder. Raises UserError before anything is loaded where possible."""
    trained = open_trained("RUN", settings.run, settings.trust_remote_code, settings.step)
    check_dense("RUN", trained.files.path, trained.files.config, "to be exported")
    target = _target(trained, settings)
    converter = find_converter(settings.gguf_converter) if settings.gguf != "none" else None
    api = api or HfApi()
    if settings.push_to_hub is not None:
        check_hub(settings.push_to_hub, api)
    origin = origin_of(trained)
    _check_space(target, trained, settings)
    with _claimed_and_whole(target) as folder:
        dtype = DTYPES[settings.dtype]
        expected = probe_logprobs(trained.files, trained.load(torch.float32))
        write_model(trained, dtype, folder, settings.max_shard_size)
        difference = compare_with_trained(expected, folder, dtype, settings.trust_remote_code)
        say(f"written in {settings.dtype}, loaded again: {_in_words(difference)}")
        curve = curve_svg(origin.evaluations)
        title = (settings.push_to_hub or target.resolve().name).rsplit("/", 1)[-1]
        card = model_card(title, origin, settings.dtype, difference, curve is not None)
        with writing(target):
            if curve is not None:
                (folder / CURVE_FILE).write_text(curve, encoding="utf-8")
            card.save(folder / CARD_FILE)
        if converter is not None:
            file = convert(converter, folder, settings.gguf)
            found = compare_gguf(expected, file, settings.gguf)
            said = f"not compared: {found}" if isinstance(found, str) else f"loaded again: {_in_words(found)}"
            say(f"{file.name}, {said}")
    say(f"exported to {target}; the card, {target / CARD_FILE}, has TODO lines for you")
    if settings.push_to_hub is not None:
        say(f"pushed to {push(target, settings.push_to_hub, settings.private, api)}")
    return target


def _check_space(target: Path, trained: Trained, settings: ExportSettings) -> None:
    numbers = sum(p.numel() for p in trained.files.skeleton().parameters())
    needed = numbers * DTYPES[settings.dtype].itemsize
    if settings.gguf != "none":
        needed += numbers * {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 1.07}[settings.gguf]
    home = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(home).free
    if needed > free:
        raise UserError(
            f"--output_dir {target}: {free / 1e9:.1f} GB free, needs {needed / 1e9:.1f} GB; free some, or choose "
            "another disk"
        )


@contextmanager
def _claimed_and_whole(target: Path) -> Iterator[Path]:
    with ExitStack() as holding:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            holding.enter_context(claimed(target.with_name(f".{target.name}{LOCK}"), f"--output_dir {target}"))
            folder = holding.enter_context(whole_folder(target))
        except OSError as error:
            raise UserError(f"--output_dir {target}: cannot be written ({error.strerror}); choose another") from error
        yield folder


def _target(trained: Trained, settings: ExportSettings) -> Path:
    if settings.output_dir is not None:
        target = Path(expanded(settings.output_dir))
    elif trained.run is not None:
        target = trained.run / f"export-step-{trained.step}"
    else:
        raise UserError(f"--output_dir: not given, and {settings.run} is no run that it could go into; name a folder")
    if target.exists() and not target.is_dir():
        raise UserError(f"--output_dir {target}: a file, needs a folder; choose another")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"--output_dir {target}: is not empty; choose another, or empty it")
    return target


def _in_words(difference: Distance) -> str:
    return (
        f"log-probs within {difference.mean:.2g} nats of the trained model on average, {difference.largest:.2g} at most"
    )
