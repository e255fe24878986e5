"""The model card: what a run knows of its model, and visible gaps for what only its owner knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from local_distill.export.facts import Facts, hub_id
from local_distill.export.merging import Difference
from local_distill.runs.evaluations import Evaluation
from local_distill.wording import fenced, number, percent, with_error

CURVE_FILE = "curve.svg"
MOST_ROWS = 12
"""Of the table of evaluations; of more, some in between are left out."""
TODO = "**TODO (owner):**"
TOLD = (
    "loss", "temperature", "top_p", "learning_rate", "lr_scheduler", "batch_size", "group_size", "max_new_tokens",
    "seed",
)  # fmt: skip
TOLD_OF_LORA = ("lora_r", "lora_alpha", "lora_target_modules")


def model_card(title: str, facts: Facts, dtype: str, difference: Difference, has_curve: bool) -> ModelCard:
    """The card, its front matter as the hub reads it. has_curve: whether the picture lies beside it."""
    data = ModelCardData(
        base_model=hub_id(facts.base),
        datasets=[facts.hub_data_set] if facts.hub_data_set else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation", "on-policy-distillation", "local-distill", *(["lora"] if facts.adapter else [])],
    )
    body = "\n".join(_body(title, facts, dtype, difference, has_curve))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _body(title: str, facts: Facts, dtype: str, difference: Difference, has_curve: bool) -> Iterator[str]:
    yield f"# {_inline(title)}"
    learned = f" by on-policy distillation from {_code(facts.teacher)}" if facts.teacher else ""
    merged = ", a LoRA adapter merged into its base" if facts.adapter else ""
    yield f"\n{_code(facts.base)}, trained{learned} with local-distill{merged}."
    yield "\n## Intended use\n"
    yield f"{TODO} what this model is for, what it is not for, its languages and known weaknesses."
    yield "\n## Licence\n"
    yield f"{TODO} name the licence here and as `license:` in the front matter; the base's and the teacher's apply."
    if not hub_id(facts.base):
        yield f"\n{TODO} the base was a local folder; put its hub id as `base_model:` into the front matter."
    yield "\n## Training\n"
    yield from _table(("", ""), _training(facts))
    yield from _evaluation(facts.evaluations, has_curve)
    if facts.command:
        yield f"\n## To train it again\n\n{fenced(facts.command, 'bash')}"
    yield "\n## How to use it\n"
    yield fenced(_USE, "python")
    yield (
        "\nThe settings are spelled for transformers 5 and transformers 4 (4.57), and so for vLLM and llama.cpp too, "
        "where they know this architecture."
    )
    yield "\n## Export\n"
    yield (
        f"Weights in {dtype}. Loaded again and compared with the trained model over {difference.tokens} tokens: "
        f"log-probs differ by {difference.mean:.2g} nats on average, {difference.largest:.2g} at most."
    )
    if facts.packages:
        yield "\nTrained with " + ", ".join(f"{name} {version}" for name, version in facts.packages.items()) + "."


_USE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")"""


def _training(facts: Facts) -> list[tuple[str, str]]:
    rows: list[tuple[str, Any]] = [
        ("base", _code(facts.base)),
        ("teacher", _code(facts.teacher) if facts.teacher else ""),
    ]
    rows += [("prompts", _code(facts.hub_data_set or facts.data) if facts.data else "")]
    rows += [("steps", facts.step)]
    named = TOLD + (TOLD_OF_LORA if facts.settings.get("use_lora") else ())
    rows += [(name.replace("_", " "), facts.settings.get(name)) for name in named]
    if facts.tokens:
        rows += [("completion tokens, whole run", number(facts.tokens)), ("seconds, whole run", number(facts.seconds))]
    told = [(name, str(value)) for name, value in rows if value not in (None, "")]
    return told if facts.settings else [*told, ("settings", f"{TODO} not known, the model was not trained here")]


def _evaluation(evaluations: Sequence[Evaluation], has_curve: bool) -> Iterator[str]:
    yield "\n## Evaluation\n"
    if not evaluations:
        yield f"No prompts were held out. {TODO} how good it is."
        return
    before, after = evaluations[0], evaluations[-1]
    yield (
        "Reverse KL from the teacher on held-out prompts, over the model's own samples at temperature 1, nats a token "
        f"± standard error: **{with_error(before.reverse_kl, before.standard_error)}** at step {before.step}, "
        f"**{with_error(after.reverse_kl, after.standard_error)}** at step {after.step}.\n"
    )
    rows = [
        (str(e.step), with_error(e.reverse_kl, e.standard_error), number(e.length), percent(e.truncated))
        for e in _thinned(evaluations)
    ]
    yield from _table(("step", "reverse KL", "tokens a completion", "truncated"), rows)
    if has_curve:
        yield f"\n![held-out reverse KL over the steps]({CURVE_FILE})"


def _thinned(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The first, the last, and some evenly in between."""
    n = len(evaluations)
    if n <= MOST_ROWS:
        return list(evaluations)
    return [evaluations[round(i * (n - 1) / (MOST_ROWS - 1))] for i in range(MOST_ROWS)]


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|{' --- |' * len(heading)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in row)} |"


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"


def _inline(text: str) -> str:
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", text)
