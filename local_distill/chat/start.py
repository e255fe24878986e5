"""From the settings to a session: everything is checked before any weights are loaded."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from local_distill.chat.answering import Voice
from local_distill.chat.conversation import Conversation, Speech
from local_distill.chat.screen import open_screen
from local_distill.chat.session import COMMANDS, END, WHOSE_HISTORY, Session, typed_lines
from local_distill.errors import UserError, one_line
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.files import turns_after
from local_distill.models.pair import ModelPair, pair_of
from local_distill.models.scorer import TokenScorer
from local_distill.models.trained import Trained, open_trained
from local_distill.process.launch import Precision, resolve_precision
from local_distill.process.signals import sigint_is_an_answer
from local_distill.prompts import parse_template_kwargs
from local_distill.rollouts.checking import check_sampling
from local_distill.rollouts.student_checks import check_has_cache

if TYPE_CHECKING:
    from local_distill.chat.chat_config import ChatSettings


@dataclass(frozen=True)
class Opened:
    """A chat is made of these, and of weights. teacher: another model, None for none or for the student's own base."""

    student: Trained
    teacher: Trained | None
    speech: Speech
    pair: ModelPair
    precision: Precision
    device: torch.device
    notes: tuple[str, ...]


def chat(settings: ChatSettings) -> int:
    """Check, load, talk. Returns the exit code: 130 after Ctrl-C where nobody is there to go on."""
    opened = open_chat(settings)
    screen = open_screen(settings.numbers)
    for note in opened.notes:
        screen.note(note)
    student, teacher = load_voices(opened, settings)
    choose, stops = NucleusSampling(settings.temperature, settings.top_p), frozenset(opened.pair.stops.ids)
    sampling = SamplingParams(choose, 1, settings.max_new_tokens, stops, settings.seed)
    typed = sys.stdin.isatty()
    conversation = Conversation(settings.system_prompt)
    session = Session(student, teacher, opened.speech, sampling, screen, conversation, forgiving=typed)
    if typed:
        if teacher:
            screen.note(WHOSE_HISTORY)
        screen.note("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves")
    with sigint_is_an_answer():
        try:
            session.run(typed_lines([*COMMANDS, END]) if typed else sys.stdin)
        except KeyboardInterrupt:
            return 130
    return 0


def open_chat(settings: ChatSettings) -> Opened:
    """Open everything but the weights. Raises UserError for what does not fit together."""
    device = chosen_device(settings.device)
    precision = resolve_precision(settings.dtype, device.type == "cuda")
    student = open_trained("MODEL", settings.model, settings.trust_remote_code, settings.step)
    teacher = None
    if settings.teacher_under_adapter:
        if student.adapter is None:
            raise UserError(
                f"--teacher_model self: {settings.model} is no adapter, so there is no other model under it; give a "
                "model as teacher"
            )
    elif settings.teacher_model is not None:
        teacher = open_trained("--teacher_model", settings.teacher_model, settings.trust_remote_code)
    pair = pair_of(student.files, teacher.files if teacher else None)
    for files in (pair.student, pair.teacher):
        check_has_cache(files)
    speech = Speech(
        pair.student.tokenizer,
        parse_template_kwargs(settings.chat_template_kwargs),
        fallback_template=pair.teacher.tokenizer.chat_template,
        vocab_size=pair.vocab_size,
        keep_control_tokens=settings.keep_control_tokens,
    )
    renderer = speech.renderer(settings.system_prompt)
    notes = [precision.note, *renderer.notes]
    if not renderer.uses_template:
        notes.append("no chat template: each line is continued as plain text, by itself")
    return Opened(student, teacher, speech, pair, precision, device, tuple(filter(None, notes)))


def load_voices(opened: Opened, settings: ChatSettings) -> tuple[Voice, Voice | None]:
    """Load the student, and its teacher where there is one. Raises UserError for one that cannot be sampled from."""

    def voice(name: str, trained: Trained) -> Voice:
        model = trained.load(opened.precision.dtype, opened.device)
        limits = [length for length in (trained.files.context_length, turns_after(trained.files.config)) if length]
        longest = min([settings.max_new_tokens, *limits])
        check_sampling(TokenScorer(model, opened.pair.vocab_size), trained.files.flag, pad_id=0, longest=longest)
        return Voice(name, model, opened.pair.vocab_size, min(limits, default=None))

    student = voice("student", opened.student)
    if settings.teacher_under_adapter:
        return student, student.without_adapter("base")
    return student, None if opened.teacher is None else voice("teacher", opened.teacher)


def chosen_device(name: str) -> torch.device:
    """Return the device to compute on. Raises UserError for one that is not there."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name}: not here ({one_line(error, 120)}); use cpu or auto") from error
    return device
