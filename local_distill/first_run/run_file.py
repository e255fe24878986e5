"""run.yaml as it is written for somebody's first run: each setting with what it is and when to change it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from local_distill import __version__

WIDTH = 96
SECTIONS: dict[str, dict[str, str]] = {
    "Models": {
        "student_model": "The model that is trained: a hub id or a local folder.",
        "teacher_model": (
            "The model that it learns from: a hub id or a local folder. It needs the student's tokenizer, so take a "
            "larger model of the same family, or the one that the student was made from."
        ),
        "teacher_backend": "The teacher is the student itself without its adapter: no second model is loaded.",
        "teacher_url": "The servers (vLLM or SGLang) that serve the teacher; several with commas between them.",
        "teacher_ds_zero3": (
            "The teacher is shared out over the GPUs with DeepSpeed, for whole it does not fit on each. false where it "
            "does: that is faster, and compares all tokens instead of the teacher's 64 likeliest."
        ),
        "teacher_quantization": (
            "The teacher's weights in 4 bits, for in 16 it does not fit beside the student. none where it does: the "
            "teacher is then exact."
        ),
        "teacher_offload": (
            "The teacher stays in the machine's memory and passes through the GPU layer by layer. Slow; none where it "
            "fits beside the student."
        ),
        "dtype": "Precision of the matrix products. bf16 is what DeepSpeed's file asks for.",
        "gradient_checkpointing": "",
    },
    "What is trained": {
        "use_lora": "",
        "lora_r": "Size (rank) of the adapter. More can learn more, and takes more memory: 8 to 128.",
        "init_adapter": "The adapter that training begins with; it brings its own rank.",
        "learning_rate": "",
        "steps": "How long it trains. Begin with few and look; --resume goes on from there with more steps.",
    },
    "Prompts": {
        "dataset": "Where prompts come from: a data set's name, hub id or folder. prompts_file: … is for a file.",
        "prompts_file": (
            "Where prompts come from: text with one a line, or JSONL, JSON, CSV or Parquet with `prompt` or "
            "`messages`. dataset: … is for a data set of the hub."
        ),
        "prompt_column": "The column of the data set that holds the prompts: text, or a list of chat messages.",
        "max_prompt_tokens": (
            "Longer prompts are left out, and counted aloud. Lower it where memory is short and prompts are not."
        ),
        "chat_template_kwargs": "",
    },
    "Sampling": {
        "batch_size": (
            "Prompts in a step, over all processes. More makes a step steadier and longer; memory hardly depends on it."
        ),
        "group_size": "Completions of each prompt. Few prompts: raise it. Many prompts: 1 is fine too.",
        "max_new_tokens": "",
        "sampling_batch_size": (
            "Completions that each process samples at a time: as many as fit its memory. The samples are the same for "
            "any number."
        ),
        "microbatch_tokens": (
            "Tokens that go through training at a time: as many as fit the memory. The result is the same for any "
            "number."
        ),
    },
    "Output": {
        "output_dir": "Folder of the run: log, checkpoints, completions, report. Each run needs its own.",
        "eval_every": "Steps between evaluations on prompts that are held out; the curve to believe.",
        "save_every": "Steps between checkpoints. The last step is always saved, and so is a run that is stopped.",
    },
}
"""Settings by heading, with their comments; one that stands empty here has a comment that depends on its value."""
NO_PROMPTS = (
    "Nothing is named here, so 192 built-in questions are used: enough for a first try. For more, take the # off one."
)
TRACKERS = "For curves elsewhere too, take the # off one of these lines."


def render(settings: Mapping[str, Any], head: Sequence[str], wanted_tokens: int, thinks: bool) -> str:
    """Return the text of the file.

    settings: of a run, in the flags' names. head: lines about the file as a whole. wanted_tokens: the length of
    completions that was asked for. thinks: the student's template makes it think before it answers.
    """
    blocks = ["\n".join(_comment(line) if line else "#" for line in head)]
    for heading, comments in SECTIONS.items():
        blocks.append(f"# {heading} {'-' * (WIDTH - 3 - len(heading))}")
        if heading == "Prompts" and not settings.keys() & {"dataset", "prompts_file"}:
            blocks.append(f"{_comment(NO_PROMPTS)}\n# dataset: tulu3\n# prompts_file: my-prompts.txt")
        for name, comment in comments.items():
            if name in settings:
                words = comment or _depending(name, settings, wanted_tokens, thinks)
                blocks.append(f"{_comment(words)}\n{_line(name, settings[name])}")
    blocks.append(f"{_comment(TRACKERS)}\n# trackers: tensorboard\n# wandb_project: distillation")
    unknown = settings.keys() - {name for comments in SECTIONS.values() for name in comments}
    assert not unknown, f"no comment for {unknown}"
    return "\n\n".join(blocks) + "\n"


def heading(student: str, teacher: str, machine: str, verdict: str, commands: Sequence[str]) -> list[str]:
    """Return the lines that stand first in the file. commands: that check and begin the run."""
    return [
        f"{student} learns from {teacher}, on {machine}.",
        f"{verdict[0].upper()}{verdict[1:]} (by arithmetic, not measured).",
        "",
        *(f"  {command}" for command in commands),
        "",
        "Every setting of local-distill train --help can be added. A flag on the command line wins over this file. "
        f"After a change of models or lengths, ask again: local-distill plan. Written by local-distill {__version__}.",
    ]


def _depending(name: str, settings: Mapping[str, Any], wanted_tokens: int, thinks: bool) -> str:
    value = settings[name]
    if name == "gradient_checkpointing":
        return (
            "Activations are computed again for the gradient: slower, with far less memory. false where there is room."
            if value
            else "Keep activations for the gradient. true takes far less memory and is slower: the first thing to "
            "change where memory runs out."
        )
    if name == "use_lora":
        return (
            "A small adapter is trained and the model is frozen. false trains all weights, which learns more a step "
            "and takes 16 bytes of memory for each."
            if value
            else "All weights are trained. true trains a small adapter instead, with far less memory."
        )
    if name == "learning_rate":
        usual = "1e-4 for an adapter" if settings["use_lora"] else "5e-6 to 1e-5 for all weights, 1e-4 for tiny models"
        return (
            f"How large the steps are. Usual: {usual}. Halve it where the reverse KL jumps; double it where it rests."
        )
    if name == "max_new_tokens":
        less = f" {wanted_tokens} were asked for, which does not fit this machine." if value < wanted_tokens else ""
        thinking = " A model that thinks first needs 4096 and more." if thinks else ""
        return (
            f"Longest completion, in tokens.{less} Raise it where the report says that many are cut off (truncated); "
            f"time and memory grow with it.{thinking}"
        )
    assert name == "chat_template_kwargs"
    return (
        "The student's template makes it think before it answers, and completions this short would end in the middle "
        "of a thought. Take this away, and raise max_new_tokens, to train the thinking too."
    )


def _comment(text: str) -> str:
    """Return the text as comment lines; one that is indented is a command and stays whole."""
    if text.startswith(" "):
        return f"# {text}"
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _line(name: str, value: Any) -> str:
    if isinstance(value, float):  # 1e-5, which YAML itself would write as 1.0e-05
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{name}: {float(mantissa):g}e{int(exponent)}"
    written = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return f"{name}: {written.removesuffix('...' + chr(10)).strip()}"
