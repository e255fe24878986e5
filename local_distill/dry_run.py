"""A run is looked at before it begins: what is checked without weights, and then what would be done, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from local_distill.announcements import (
    facts_of_run,
    loss_in_words,
    off_policy_note,
    schedule_note,
    unused_lora_note,
)
from local_distill.backends import sampler_of, teacher_of
from local_distill.batch import Prompt
from local_distill.build import check, make_schedule, opening_of
from local_distill.config.train_config import TrainConfig
from local_distill.inputs import Inputs, Launch, learning_rates
from local_distill.loop import Schedule
from local_distill.models.tokenization import texts_of
from local_distill.monitor.course import sparkline
from local_distill.monitor.terminal import open_console
from local_distill.plan.advice import advise
from local_distill.plan.display import verdict
from local_distill.plan.fitting import Plan, make_plan
from local_distill.plan.memory import Memory
from local_distill.plan.planned_run import run_that_starts
from local_distill.process.launch import sums_in_words
from local_distill.wording import clean, counted

SHOWN = 3
"""Prompts that are shown."""
WIDEST = 100
"""Columns; a narrower terminal has its own."""
FIRST, LAST = 700, 500
"""Characters of a long prompt that are shown: how it begins, and how it ends, which the student goes on from."""
FIRST_TOKENS, LAST_TOKENS = 12, 8
BARS = 24
LINE_END, SPACE = "⏎", "␣"


def look(config: TrainConfig) -> None:
    """Check a run without its weights, and print what it would do. Collective; the first process alone prints.

    Raises UserError at the first thing that is wrong. Nothing is written into the run's folder.
    """
    launch = check(config, None)
    with launch.closing:
        _ask_servers(launch)
        if launch.accelerator.is_main_process:
            show(launch, open_console())
    launch.accelerator.end_training()


def _ask_servers(launch: Launch) -> None:
    """Ask the servers of a run what they serve, as it will. Collective."""
    config, opening = launch.inputs.config, opening_of(launch)
    if config.teacher_url:
        teacher_of(config).open(opening)
    if config.rollouts_url:
        sampler_of(config).open(opening)


def show(launch: Launch, console: Console) -> None:
    """Print a run that was checked."""
    console.width = min(console.width, WIDEST)
    inputs, accelerator, folder = launch.inputs, launch.accelerator, launch.folder
    memory = Memory(run_that_starts(inputs, accelerator, inputs.config.max_new_tokens))
    plan = make_plan(memory)
    _section(console, "models", _models(launch))
    _section(console, "prompts", prompts_in_words(inputs))
    for number, prompt in enumerate(inputs.prompts.training[:SHOWN], start=1):
        _show_prompt(console, f"prompt {number}", inputs.pair.student.tokenizer, prompt)
    _section(console, "schedule", schedule_in_words(inputs, make_schedule(inputs.config, folder)))
    _section(console, "memory", _memory(plan))
    config = inputs.config
    of_settings = schedule_note(config, folder), off_policy_note(config), unused_lora_note(config)
    notes = *folder.notes, sums_in_words(accelerator), *inputs.notes, *of_settings
    _section(console, "to know", [("", note) for note in notes if note])
    console.print(Text("\nall is in order; nothing was loaded or written. Without --dry_run the run begins."))


def _section(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a heading, and under it what stands for what; rows without a name are a list."""
    if not rows:
        return
    console.print(Text(f"\n{title}", style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim" if any(name for name, _ in rows) else "", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in rows:
        table.add_row(Text(name or "·"), Text(clean(words)))
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _models(launch: Launch) -> list[tuple[str, str]]:
    inputs, config = launch.inputs, launch.inputs.config
    pair, facts = inputs.pair, dict(facts_of_run(inputs, launch.accelerator, launch.folder))
    ends = " or ".join(str(pair.student.tokenizer.convert_ids_to_tokens(token)) for token in sorted(pair.stops.ids))
    context = f"the context holds {pair.context_length:,}" if pair.context_length else "the context has no limit"
    rows = [
        ("student", facts["student"]),
        ("teacher", facts["teacher"]),
        ("tokens", f"{pair.vocab_size:,} that both have; a completion ends with {ends}; {context}"),
        ("machine", facts["machine"]),
        ("folder", facts["folder"]),
    ]
    if servers := ", ".join(filter(None, (config.teacher_url, config.rollouts_url))):
        rows.append(("servers", f"{servers}: there, with these tokens"))
    return rows


def prompts_in_words(inputs: Inputs) -> list[tuple[str, str]]:
    """Say how many prompts are left, how long they are, and what became of the others."""
    prompts = inputs.prompts
    lengths = sorted(len(prompt.ids) for prompt in (*prompts.training, *prompts.held_out))
    return [
        ("lengths", f"{lengths[0]} to {counted(lengths[-1], 'token')}, half of them up to {median(lengths):.0f}"),
        *(("", note) for note in prompts.notes),
    ]


def _show_prompt(console: Console, title: str, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """Print a prompt as the models read it: its text, control tokens told apart, then the tokens."""
    pieces = [text for text, _ in texts_of(tokenizer, prompt.ids, [()] * len(prompt.ids))]
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    control = [token in special for token in prompt.ids]
    console.print(Text(f"\n{title}", style="bold") + Text(f"  {clean(prompt.origin)}, {counted(len(pieces), 'token')}"))
    console.print(Padding(_rendered(pieces, control), (0, 0, 0, 2), expand=False))
    console.print(Padding(Text("  ".join(_tokens(prompt.ids, pieces)), style="dim"), (0, 0, 0, 2), expand=False))


def _rendered(pieces: Sequence[str], control: Sequence[bool]) -> Text:
    """The text with control tokens in colour, the middle of a long one left out; a mark where the student goes on."""
    text = Text(overflow="fold")
    for piece, is_control in zip(pieces, control, strict=True):
        if is_control:
            text.append(clean(piece.strip("\n")) or repr(piece), style="bold magenta")
            text.append("\n" * piece.endswith("\n"))
        else:
            text.append(_readable(piece))
    if len(text) > FIRST + LAST:
        left_out = Text(f"\n… {counted(len(text) - FIRST - LAST, 'character')} …\n", style="dim")
        text = text[:FIRST] + left_out + text[-LAST:]
    return text + Text("▶ the student goes on here", style="bold green")


def _readable(piece: str) -> str:
    """Clean text that keeps the line ends around it, which ``clean`` would take for the end of the text."""
    return clean(f"{piece}|")[:-1]


def _tokens(ids: Sequence[int], pieces: Sequence[str]) -> Iterator[str]:
    """Each token as its id and its text; the middle of many is left out."""
    for place, (token, piece) in enumerate(zip(ids, pieces, strict=True)):
        if FIRST_TOKENS <= place < len(ids) - LAST_TOKENS:
            if place == FIRST_TOKENS:
                yield f"… {len(ids) - FIRST_TOKENS - LAST_TOKENS} more …"
            continue
        yield f"{token}:{_readable(piece).replace(' ', SPACE).replace(chr(10), LINE_END)}"


def schedule_in_words(inputs: Inputs, schedule: Schedule) -> list[tuple[str, str]]:
    """Say what the steps of a run do, and when it evaluates and saves."""
    config = inputs.config
    to_go = config.steps - schedule.first_step
    updates = config.num_substeps * config.epochs_per_batch
    longest = f"{config.start_new_tokens} growing to " if config.start_new_tokens else ""
    completions = config.batch_size * config.group_size
    dealt = config.steps * config.batch_size
    saves = steps_in_words(schedule.first_step, schedule.steps, config.save_every)
    each = f", {updates} after each step" if updates > 1 else ""
    goes_on = f" of {config.steps}, after step {schedule.first_step}" if schedule.first_step else ""
    return [
        ("steps", f"{to_go}{goes_on}; {counted(to_go * updates, 'update')}{each}"),
        (
            "a step",
            f"{counted(config.batch_size, 'prompt')} × {counted(config.group_size, 'rollout')} = "
            f"{counted(completions, 'completion')} of at most {longest}{counted(config.max_new_tokens, 'token')}",
        ),
        (
            "passes",
            f"{dealt:,} prompts are dealt from {len(inputs.prompts):,}: {dealt / len(inputs.prompts):.2g} passes",
        ),
        ("learning rate", rates_in_words(config)),
        ("loss", loss_in_words(config)),
        ("evaluates", _evaluations(inputs, schedule)),
        ("saves", f"after {saves}; the newest {config.keep_checkpoints} are kept"),
    ]


def _evaluations(inputs: Inputs, schedule: Schedule) -> str:
    if not inputs.prompts.held_out:
        return "never: no prompt is held out"
    before = "before the first, and " if schedule.evaluates_first else ""
    on = counted(len(inputs.prompts.held_out), "held-out prompt")
    return f"{before}after {steps_in_words(schedule.first_step, schedule.steps, inputs.config.eval_every)}, on {on}"


def steps_in_words(first: int, last: int, every: int) -> str:
    """Say after which steps something is done, every so many steps and at the end. first: how many are done."""
    steps = [step for step in range(first + 1, last + 1) if step == last or (every and step % every == 0)]
    if len(steps) <= 6:
        return f"step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"
    return f"every {every} steps and at the end, {len(steps)} times" if every > 1 else "every step"


def rates_in_words(config: TrainConfig) -> str:
    """Say what the learning rate is over the run, with a line of bars where it changes."""
    rate_of = learning_rates(config, config.steps)
    rates = [rate_of(step) for step in range(config.steps)]
    if len(set(rates)) == 1:
        return f"{rates[0]:.3g} at every step"
    top = max(rates)
    line = sparkline(rates, BARS, top)
    peak = rates.index(top) + 1
    told = {1: rates[0], peak: top, config.steps: rates[-1]}
    return f"{line}  " + ", ".join(f"{rate:.3g} at step {step}" for step, rate in sorted(told.items()))


def _memory(plan: Plan) -> list[tuple[str, str]]:
    rows = [("plan", verdict(plan))]
    if not plan.fits:
        rows.append(("to do", advise(plan).in_words()))
    return [*rows, ("here", plan.run.machine.words)]
