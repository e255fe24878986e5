"""The loop of a chat: a line is a question, or a command where it begins with a slash; and where lines come from."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from local_distill.chat.answering import TextStream, Token, Voice, answer
from local_distill.chat.conversation import (
    ChatAnswer,
    Conversation,
    Finish,
    Speech,
    Turn,
    finished_answer,
    save_transcript,
)
from local_distill.chat.screen import Screen, ShowToken, worst_tokens
from local_distill.config.ranges import LOWEST_TEMPERATURE
from local_distill.errors import UserError
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.wording import counted, number

END = "/quit"
PROMPT = "you> "
HISTORY_LENGTH = 1000
WHOSE_HISTORY = "The teacher reads the same conversation: the earlier answers in it are the student's, not its own."


@dataclass
class Session:
    """A person chats with a student, and with its teacher where there is one.

    teacher: reads along what the student says, and answers beside it while ``both`` is on.
    forgiving: whether a mistake in a line is told and the chat goes on, as for a person, or ends it.
    """

    student: Voice
    teacher: Voice | None
    speech: Speech
    sampling: SamplingParams
    screen: Screen
    conversation: Conversation
    forgiving: bool
    both: bool = True
    answers: int = 0

    def run(self, lines: Iterable[str]) -> None:
        """Read lines until they end, or /quit. Raises UserError for a mistake in a line unless forgiving."""
        for line in lines:
            words = line.strip()
            if words == END:
                return
            try:
                if words.startswith("/"):
                    self._obey(words)
                elif words:
                    self._reply(line.rstrip("\n"))
            except UserError as error:
                if not self.forgiving:
                    raise
                self.screen.note(str(error))

    def _reply(self, question: str) -> None:
        prompt = self.conversation.prompt(question, self.speech)
        if note := self.speech.note_on(question):
            self.screen.note(note)
        sampling = self._fitting(prompt)
        writers = [self.student, *([self.teacher] if self.both and self.teacher else [])]
        started = time.perf_counter()
        writings = [
            _Writing(
                column,
                answer(voice, prompt, sampling, self.answers, self.teacher if voice is self.student else None),
                TextStream(self.speech.tokenizer),
            )
            for column, voice in enumerate(writers)
        ]
        with self.screen.answering([voice.name for voice in writers]) as show:
            interrupted = _write_all(writings, show)
        self.answers += 1
        student, *others = [each.answer(self.speech, sampling, interrupted) for each in writings]
        seconds = time.perf_counter() - started
        self.screen.status(_status(student, sum(len(each.tokens) for each in writings) / seconds))
        turns = (*self.conversation.turns, Turn(question, student, *others))
        self.conversation = replace(self.conversation, turns=turns)

    def _fitting(self, prompt: Sequence[int]) -> SamplingParams:
        """Return as many new tokens as every model's context has room for. Raises UserError where there is none."""
        voices = [self.student, *([self.teacher] if self.teacher else [])]
        limits = [voice.context_length for voice in voices if voice.context_length is not None]
        room = min(limits, default=len(prompt) + self.sampling.max_new_tokens) - len(prompt)
        if room < 1:
            raise UserError(
                f"this conversation has {len(prompt)} tokens, the context has room for {min(limits)}; /reset begins "
                "another one"
            )
        return replace(self.sampling, max_new_tokens=min(room, self.sampling.max_new_tokens))

    # Commands.

    def _obey(self, words: str) -> None:
        name, _, given = words.partition(" ")
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{name}: no such command; {hint}/help lists them")
        COMMANDS[name].obey(self, given.strip())

    def help(self) -> None:
        """Show what can be said."""
        rows = [(f"{name} {command.takes}".strip(), command.what) for name, command in COMMANDS.items()]
        rows += [(END, "leave; so does Ctrl-D"), ("Ctrl-C", "stop the answer")]
        width = max(len(name) for name, _ in rows)
        text = "\n".join(f"  {name:{width}}  {what}" for name, what in rows)
        if self.teacher:
            text = f"{text}\n{WHOSE_HISTORY}"
        self.screen.console.print(text, markup=False)

    def reset(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.conversation = Conversation(self.conversation.system_prompt)
        self.screen.note("the conversation begins anew")

    def set_system_prompt(self, text: str) -> None:
        """Put these words before the conversation; none where empty."""
        self.speech.renderer(text or None)  # raises where it cannot be
        self.conversation = replace(self.conversation, system_prompt=text or None)
        self.screen.note("system prompt set" if text else "no system prompt")

    def set_temperature(self, given: str) -> None:
        """Draw answers at this temperature from now on."""
        try:
            temperature = float(given)
        except ValueError:
            temperature = float("nan")
        if not LOWEST_TEMPERATURE <= temperature < float("inf"):
            raise UserError(
                f"/temperature {given}: needs a number, at least {LOWEST_TEMPERATURE:g}; 0.01 is nearly greedy"
            )
        choose = NucleusSampling(temperature, self.sampling.choose.top_p)
        self.sampling = replace(self.sampling, choose=choose)
        self.screen.note(f"temperature {temperature:g}")

    def toggle_both(self) -> None:
        """Let the teacher answer as well, or no longer."""
        self._need_teacher("/both")
        self.both = not self.both
        self.screen.note("both answer" if self.both else "the student answers, the teacher reads along")

    def why(self) -> None:
        """Show the tokens of the last answer on which the teacher disagreed most."""
        self._need_teacher("/why")
        if not self.conversation.turns:
            raise UserError("/why: nothing was answered yet; ask something")
        self.screen.console.print(worst_tokens(self.conversation.turns[-1].student.pieces))

    def save(self, given: str) -> None:
        """Write the conversation into a file."""
        if not given:
            raise UserError("/save: needs a file name that ends in .jsonl or .md")
        save_transcript(self.conversation, Path(given).expanduser())
        self.screen.note(f"saved as {given}")

    def _need_teacher(self, command: str) -> None:
        if self.teacher is None:
            raise UserError(f"{command}: there is no teacher; start with --teacher_model")


@dataclass
class _Writing:
    """An answer is written into its column of the screen."""

    column: int
    drawn: Iterator[Token]
    text: TextStream
    shown: str = ""
    tokens: list[Token] = field(default_factory=list)

    def write(self, show: ShowToken) -> Iterator[None]:
        """Draw and show one token after another."""
        for token in self.drawn:
            self.tokens.append(token)
            self._show(show, self.text.add(token.id))
            yield
        self._show(show, self.text.end())

    def _show(self, show: ShowToken, text: str) -> None:
        if text:
            self.shown += text
            show(self.column, text, self.tokens[-1].reverse_kl)

    def answer(self, speech: Speech, sampling: SamplingParams, interrupted: bool) -> ChatAnswer:
        """Return what came of it."""
        stopped = bool(self.tokens) and self.tokens[-1].id in sampling.stop_ids
        unfinished: Finish = "interrupted" if interrupted and len(self.tokens) < sampling.max_new_tokens else "length"
        return finished_answer(speech.tokenizer, self.tokens, "stop" if stopped else unfinished, self.shown)


def _write_all(writings: Sequence[_Writing], show: ShowToken) -> bool:
    """Write all answers at once, a token of each in turn. Returns whether Ctrl-C cut them short."""
    try:
        for _ in zip_longest(*(each.write(show) for each in writings)):
            pass
    except KeyboardInterrupt:
        return True
    return False


def _status(student: ChatAnswer, speed: float) -> str:
    kl = "" if student.reverse_kl is None else f", reverse KL {number(student.reverse_kl)} nats a token"
    ended = {"stop": "", "length": ", cut at --max_new_tokens", "interrupted": ", interrupted"}[student.finish]
    return f"{counted(student.tokens, 'token')}{kl}{ended}, {number(speed)} tok/s"


@dataclass(frozen=True)
class SlashCommand:
    """This can be said to the program. takes: what may follow its name. what: for /help."""

    takes: str
    what: str
    obey: Callable[[Session, str], None]


COMMANDS = {
    "/help": SlashCommand("", "this", lambda session, _: session.help()),
    "/reset": SlashCommand("", "forget the conversation", lambda session, _: session.reset()),
    "/system": SlashCommand("TEXT", "another system prompt; none without TEXT", Session.set_system_prompt),
    "/temperature": SlashCommand("X", "another temperature", Session.set_temperature),
    "/both": SlashCommand("", "the teacher answers too, or no longer", lambda session, _: session.toggle_both()),
    "/why": SlashCommand("", "where the teacher disagreed most, and its choices", lambda session, _: session.why()),
    "/save": SlashCommand("FILE", "the conversation as .jsonl or .md", Session.save),
}


def typed_lines(completions: Sequence[str]) -> Iterator[str]:
    """Yield what a person types, with line editing and a history over sessions, until Ctrl-D; Ctrl-C drops the line."""
    with _line_editing(completions):
        while True:
            try:
                yield input(PROMPT)
            except KeyboardInterrupt:
                print()
            except EOFError:
                print()
                return


@contextmanager
def _line_editing(completions: Sequence[str]) -> Iterator[None]:
    """Complete words and keep a history, unless Python has no readline: Windows, whose console edits by itself."""
    try:
        import readline
    except ImportError:
        yield
        return

    def complete(text: str, state: int) -> str | None:
        return [*(word for word in completions if word.startswith(text)), None][state] if text else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(HISTORY_LENGTH)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")  # the XDG convention
    history = Path(state) / "local-distill" / "chat_history"
    if history.is_file():
        readline.read_history_file(history)
    try:
        yield
    finally:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)
        history.chmod(0o600)  # what was asked is nobody else's business
