"""A signal before there is anything to save: every command ends at once, in one line, and says so to its caller."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import ENTRY, ROOT, environment

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


def start(*command):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], env=environment(), cwd=ROOT, **pipes)


def until(condition, process):
    ends = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.005)


def loaded(process, library):
    """Whether the process has come so far that it imports the library."""
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def ended(process, number, code, within=4.0):
    """The process ends soon, in the one line that it gave."""
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started < within
    assert (process.returncode, err) == (code, f"stopped by {signal.Signals(number).name}\n"), (out, err)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("command", "number", "code"),
    [(ENTRY, *BOTH[0]), (("-m", "local_distill", "eval"), *BOTH[1]), (("-m", "local_distill", "chat"), *BOTH[0])],
)
def test_while_torch_is_imported(command, number, code):
    models = {"eval": ["m", "--prompts_file", "p"], "chat": ["m"]}.get(command[-1], ["--student_model", "m"] * 1)
    process = start(*command, *models, *(["--teacher_model", "m"] if command is ENTRY else []))
    until(lambda: loaded(process, "libtorch_cpu"), process)
    ended(process, number, code)


IN_THE_MIDDLE = """
import sys, time
from local_distill.process.exit_codes import exit_code_of
from local_distill.process import signals
signals.GRACE = 1.0
def load():
    print("loading", flush=True)
    {waiting}
with signals.ending_on_signals():
    sys.exit(exit_code_of(load))
"""
IN_PYTHON = "time.sleep(60)"
IN_C = """
    from torch.distributed import TCPStore
    print("waiting", flush=True)
    TCPStore("127.0.0.1", 0, is_master=True).wait(["never"])
"""
SWALLOWED = """
    while True:
        try: time.sleep(60)
        except BaseException: pass
"""


@pytest.mark.parametrize(
    ("waiting", "number", "code", "within"),
    [(IN_PYTHON, *BOTH[0], 0.9), (IN_PYTHON, *BOTH[1], 0.9), (IN_C, *BOTH[1], 4), (SWALLOWED, *BOTH[0], 4)],
)
def test_wherever_it_is_before_the_first_step(waiting, number, code, within):
    process = start("-c", IN_THE_MIDDLE.format(waiting=waiting))
    assert process.stdout.readline() == "loading\n"
    if waiting is IN_C:
        assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    ended(process, number, code, within)


SHUTTING_DOWN = """
import atexit, sys, time
from local_distill import commands
atexit.register(lambda: (print("shutting down", flush=True), time.sleep(60)))
sys.argv = ["local-distill", "--version"]
sys.exit(commands.main())
"""


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_while_python_shuts_down_after_a_command(number, code):
    process = start("-c", SHUTTING_DOWN)
    assert process.stdout.readline().startswith("local-distill ")
    assert process.stdout.readline() == "shutting down\n"
    time.sleep(0.1)
    ended(process, number, code)


SWALLOWING = """
import ctypes, gc, io, os, sys, time, weakref
from local_distill.process.exit_codes import exit_code_of
from local_distill.process import signals
signals.GRACE = {grace}
class Plain: pass
def inside(*_):
    print("inside", flush=True)
    time.sleep(60)
def swallow():
    {swallowing}
def load():
    swallow()
    print("outside", flush=True)
    time.sleep(60)
with signals.ending_on_signals():
    sys.exit(exit_code_of(load))
"""
DESTRUCTORS_AND_CALLBACKS = {
    "destructor": "Plain.__del__ = inside; Plain()",
    "weak reference": "gone = Plain(); watching = weakref.ref(gone, inside); del gone",
    "finalizer": "gone = Plain(); weakref.finalize(gone, inside); del gone",
    "garbage collection": "gc.callbacks.append(lambda *_: (gc.callbacks.clear(), inside())); gc.collect()",
    "C": "ctypes.CFUNCTYPE(None)(inside)()",
    "generator": """
    def generate():
        try: yield
        finally: inside()
    next(generate())
""",
}
SILENT = "Plain = type('Plain', (io.RawIOBase,), {'close': inside}); Plain()"
EVERY_TIME = "Plain.__del__ = lambda self: time.sleep(60); print('inside', flush=True)\n    while True: Plain()"


@pytest.mark.parametrize("swallowing", DESTRUCTORS_AND_CALLBACKS.values(), ids=DESTRUCTORS_AND_CALLBACKS)
@pytest.mark.parametrize(("number", "code"), BOTH)
def test_where_python_lets_no_exception_out(swallowing, number, code):
    process = start("-c", SWALLOWING.format(swallowing=swallowing, grace=30))
    assert process.stdout.readline() == "inside\n"
    time.sleep(0.1)
    ended(process, number, code, within=3)


@pytest.mark.parametrize("swallowing", [SILENT, EVERY_TIME], ids=["in silence", "every time"])
def test_where_it_is_swallowed_for_good_the_process_ends_as_it_is(swallowing):
    process = start("-c", SWALLOWING.format(swallowing=swallowing, grace=1.0))
    assert process.stdout.readline() == "inside\n"
    time.sleep(0.1)
    ended(process, *BOTH[1])


ANSWERED = """
import sys, time
from local_distill.process.exit_codes import exit_code_of
from local_distill.process import signals
class Plain:
    def __del__(self):
        print("inside", flush=True)
        time.sleep(60)
def answer():
    with signals.sigint_is_an_answer():
        try:
            Plain()
            time.sleep(60)
        except KeyboardInterrupt:
            print("answer cut short")
    return 0
with signals.ending_on_signals():
    sys.exit(exit_code_of(answer))
"""


def test_an_answer_is_cut_short_where_python_lets_no_exception_out():
    process = start("-c", ANSWERED)
    assert process.stdout.readline() == "inside\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("answer cut short\n", "")
    assert process.returncode == 0


def test_other_exceptions_out_of_destructors_are_told_as_ever():
    process = start("-c", SWALLOWING.format(swallowing="Plain.__del__ = lambda self: 1 / 0; Plain()", grace=30))
    assert process.stdout.readline() == "outside\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.startswith("Exception ignored in: ")
    assert err.endswith("ZeroDivisionError: division by zero\nstopped by SIGTERM\n")


SECOND = """
import os, signal, sys, time
from local_distill.process.exit_codes import exit_code_of
from local_distill.process import interruption, signals
interruption.SAME = -1
from pathlib import Path
from local_distill.train_on_policy_local import ending_in_one_line
def run():
    with ending_in_one_line(Path(sys.argv[1])):
        stop = interruption.StopRequest()
        os.kill(os.getpid(), signal.SIGINT)
        print(stop.signal.name, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
with signals.ending_on_signals():
    sys.exit(exit_code_of(run))
"""


def test_a_second_signal_in_the_middle_of_a_step_says_what_was_saved(tmp_path):
    (tmp_path / "step-7").mkdir()
    process = start("-c", SECOND, str(tmp_path))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "SIGINT\n")
    assert err == f"stopped by SIGTERM at once; the last good checkpoint is {tmp_path / 'step-7'}\n"


FORKED = """
import os, signal, sys, time
from local_distill.process import signals
signals.GRACE = 0.5
with signals.ending_on_signals():
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitpid(child, 0)[1], flush=True)
    time.sleep(1.5)
    print("still there")
"""


def test_a_forked_process_dies_by_itself():
    process = start("-c", FORKED)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, f"{int(signal.SIGTERM)}\nstill there\n", "")


@pytest.mark.distributed
def test_of_several_processes_one_says_it():
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python", sys.executable]
    process = start(*command, "-c", IN_THE_MIDDLE.format(waiting=IN_PYTHON))
    assert "".join(process.stdout.readline() for _ in range(2)).replace("\n", "") == "loading" * 2
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert len(re.findall("^stopped by SIGTERM$", err, re.MULTILINE)) == 1
    assert "local_distill" not in err, "no traceback of ours"
