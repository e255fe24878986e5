"""The whole command: through pipes, and in a real terminal."""

import errno
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from rich.console import Console
from rich.style import Style

from local_distill.chat.answering import Voice
from local_distill.chat.conversation import Conversation, Speech
from local_distill.chat.screen import PlainScreen
from local_distill.chat.session import Session
from local_distill.commands import main
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.trained import Trained
from local_distill.monitor.colours import colour_of, harmless
from tests.tiny_models import llama_config, make_model, make_tokenizer


@pytest.fixture
def chat(monkeypatch, capsys, tmp_path):
    """The command in this process, its standard input a pipe: ``chat(lines, words) -> (exit code, out, err)``."""
    monkeypatch.chdir(tmp_path)

    def run(lines, *words):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        capsys.readouterr()
        code = main(["chat", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_piped_each_line_has_its_answer_on_a_line(chat, folders):
    code, out, err = chat("Hi\n\nWhy is the sky blue?\n", folders["chat"], "--max_new_tokens", "12")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2
    assert out == chat("Hi\n\nWhy is the sky blue?\n", folders["chat"], "--max_new_tokens", "12")[1], "the same seed"
    assert out != chat("Hi\n\nWhy is the sky blue?\n", folders["chat"], "--max_new_tokens", "12", "--seed", "1")[1]
    assert "\x1b" not in out, "no colours in a pipe"


def test_earlier_turns_are_told_and_reset_forgets_them(chat, folders):
    asked = [folders["chat"], "--max_new_tokens", "6"]
    again = chat("a\n/save one.jsonl\n/reset\nb\n/save two.jsonl\n", *asked)
    assert again[0] == 0
    one, two = (
        [json.loads(line) for line in open(name, encoding="utf-8")]  # noqa: SIM115, PTH123
        for name in ("one.jsonl", "two.jsonl")
    )
    assert (two[0]["role"], two[0]["content"]) == ("user", "b")
    assert [m["role"] for m in one] == ["user", "assistant"]
    with_history = chat("a\nb\n", *asked)[1].splitlines()[1]
    without = again[1].splitlines()[1]
    assert with_history != without


def test_with_a_teacher_both_answer_and_the_numbers_can_be_seen(chat, folders):
    words = ["--teacher_model", folders["teacher"], "--max_new_tokens", "5", "--numbers"]
    code, out, err = chat("the fox\n/both\nthe fox\n/why\n/save t.md\n", folders["student"], *words)
    assert code == 0
    student, teacher, alone, *table = out.splitlines()
    assert student.startswith("student: ")
    assert teacher.startswith("teacher: ")
    assert 1 <= len(re.findall(r"\[\d+\.\d\d\]", student)) <= 5
    assert not re.findall(r"\[\d+\.\d\d\]", teacher)
    assert not alone.startswith("student: ")
    assert "the teacher's choices" in "".join(table)
    assert "no chat template" in err
    assert "reverse KL" in open("t.md", encoding="utf-8").read()  # noqa: SIM115, PTH123


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/sytem x", "/sytem: no such command; did you mean /system?"),
        ("/temperature 0", "/temperature 0: needs a number, at least 0.001"),
        ("/why", "/why: there is no teacher"),
        ("/both", "/both: there is no teacher"),
        ("/save x.txt", "/save x.txt: needs a name that ends in .jsonl or .md"),
        ("/save no/where.md", "cannot be written"),
        ("long " * 200, "/reset begins another one"),
    ],
)
def test_a_mistake_in_a_piped_line_ends_in_one_line(chat, folders, line, message):
    code, out, err = chat(f"{line}\nHi\n", folders["chat"], "--max_new_tokens", "3")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher_model", "self"], "--teacher_model self: .* is no adapter"),
        (["--teacher_model", "OTHER"], "--teacher_model: its tokenizer differs"),
        (["--temperature", "0"], "--temperature: 0 given"),
        (["--device", "cuda:77"], "--device cuda:77: not here"),
        (["--device", "toaster"], "--device toaster: not here"),
        (["--system_prompt", "Be brief."], "--system_prompt: needs a chat template"),
        (["--chat_template_kwargs", "{"], "--chat_template_kwargs {: not JSON"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(chat, folders, monkeypatch, words, message):
    monkeypatch.setattr(Trained, "load", lambda *_: pytest.fail("loaded"))
    words = [str(folders["other_tokenizer"]) if word == "OTHER" else word for word in words]
    code, _, err = chat("Hi\n", folders["student"], *words)
    assert code == 2
    assert re.search(message, err), err


def test_what_a_model_writes_cannot_reach_the_terminal_as_a_command():
    assert harmless("a\x1b[2Jb\x07\x9bc\u202ed") == "abcd"[:2] + harmless("\x9bc\u202ed")
    assert harmless("one\n") == "one\n", "line ends stay, also at the end"
    assert harmless("\x1b") + harmless("[31mred") == "[31mred"
    assert harmless("\r\n") == "\n"


def test_colours_grow_with_disagreement():
    assert colour_of(0.01) == colour_of(None) == Style.null()
    green = [colour_of(kl).color.triplet.green for kl in (0.06, 0.3, 1.0, 3.0, 5.0, 50.0)]
    assert green == sorted(green, reverse=True)
    assert green[-1] == green[-2] < green[0]


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(capsys, tmp_path):
    reads = []

    @contextmanager
    def interrupted_at_the_fifth():
        reads.append(1)
        if len(reads) == 5:
            raise KeyboardInterrupt
        yield

    tokenizer = make_tokenizer(chat=True)
    student = Voice("student", make_model(llama_config(), 1), 300, 128, interrupted_at_the_fifth)
    sampling = SamplingParams(NucleusSampling(1.0, 1.0), 1, 20, frozenset(), 0)
    screen = PlainScreen(Console(file=sys.stdout), numbers=False)
    session = Session(student, None, Speech(tokenizer), sampling, screen, Conversation(), forgiving=False)
    session.run(["Hi", f"/save {tmp_path}/one.jsonl", "And?", f"/save {tmp_path}/two.jsonl"])
    (first, second) = (json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()[1::2])
    assert (first["finish"], first["tokens"]) == ("interrupted", 4)
    assert (second["finish"], second["tokens"]) == ("length", 20)
    assert len(capsys.readouterr().out.splitlines()) >= 2


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, words, home, **environment):
        self.process, self.screen = None, ""
        here, there = pty.openpty()
        self._fd = here
        env = {**os.environ, "TERM": "xterm-256color", "HOME": str(home), "COLUMNS": "100", "LINES": "30"}
        env.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local_distill", "chat", *map(str, words)],
            stdin=there, stdout=there, stderr=there, env={**env, **environment}, start_new_session=True,
        )  # fmt: skip
        os.close(there)

    def shows(self, text, seconds):
        """Whether it has been shown by then, from where the last ``until`` ended."""
        end = time.monotonic() + seconds
        while text not in self.screen and time.monotonic() < end:
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    self.screen += os.read(self._fd, 65536).decode(errors="replace")
                except OSError as error:
                    assert error.errno == errno.EIO  # noqa: PT017
                    break
        return text in self.screen

    def until(self, text):
        """Read until it has been shown."""
        assert self.shows(text, 60), self.screen
        shown, self.screen = self.screen.split(text, 1)
        return shown

    def type(self, keys):
        """As if typed."""
        os.write(self._fd, keys.encode())

    def interrupt(self, text):
        """Ctrl-C until ``text`` has been shown: between a prompt and its wait for keys, CPython only notes a signal."""
        for _ in range(60):
            os.kill(self.process.pid, signal.SIGINT)
            if self.shows(text, 1):
                return
        raise AssertionError(self.screen)


def test_in_a_terminal(folders, tmp_path):
    """Colours, commands, Ctrl-C that stops the answer alone, a mistake that ends nothing, Ctrl-D, the history."""
    words = [folders["chat"], "--teacher_model", folders["chat"], "--max_new_tokens", "100", "--numbers"]
    terminal = Terminal(words, tmp_path)
    try:
        assert "the earlier answers in it are the student's" in " ".join(terminal.until("you> ").split())
        terminal.type("/help\n")
        assert "the earlier answers in it are the student's" in " ".join(terminal.until("you> ").split())
        terminal.type("/both\n")
        terminal.until("the student answers")
        terminal.until("you> ")
        terminal.type("Hi\n")
        answer = terminal.until("tok/s")
        assert "[0.00]" in answer, "a student that is its own teacher"
        terminal.until("you> ")
        terminal.type("/nonsense\n")
        terminal.until("/nonsense: no such command")
        terminal.until("you> ")
        terminal.type("half a questi")
        terminal.until("half a questi")
        terminal.interrupt("you> ")
        terminal.until("you> ")
        terminal.type("\x04")  # ends only an empty line
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
    history = tmp_path / ".local" / "state" / "local-distill" / "chat_history"
    assert "Hi" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
