"""Real signals to this process: the first is noted, a second would act, unless it comes at the same time."""

import os
import signal
import subprocess
import sys

import pytest

from local_distill.process import interruption
from local_distill.process.interruption import StopRequest

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def received(monkeypatch):
    """What arrives at the handlers that were there before. Signals are never taken for one."""
    monkeypatch.setattr(interruption, "SAME", -1.0)
    seen = []
    before = {number: signal.signal(number, lambda n, _: seen.append(signal.Signals(n))) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_a_second_acts(received, number):
    stop = StopRequest()
    assert (stop.requested, stop.signal) == (False, None)
    send(number)
    assert received == []
    assert (stop.requested, stop.signal) == (True, number)
    send(number)
    assert (received, stop.signal) == ([number], number)


@pytest.mark.parametrize(("number", "again"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
@pytest.mark.usefixtures("received")
def test_the_answer_names_what_quits_now(number, again):
    told = []
    stop = StopRequest(told.append)
    stop.answers("finishing step 3")
    send(number)
    assert told == [f"finishing step 3; {again} again to quit now"]
    stop.restore()


def test_a_signal_that_arrives_twice_at_a_time_is_one(received, monkeypatch):
    monkeypatch.setattr(interruption, "SAME", 60.0)
    stop = StopRequest()
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    assert (received, stop.signal) == ([], signal.SIGTERM)


def test_a_stop_that_one_process_was_asked_for_is_all_processes_stop(received, monkeypatch):
    monkeypatch.setattr(interruption, "reduce_max", lambda _, number: max(number, int(signal.SIGTERM)))
    stop = StopRequest()
    assert stop.agreed(accelerator=None)
    assert (received, stop.signal) == ([], signal.SIGTERM)


def test_after_one_signal_the_other_acts_too(received):
    stop = StopRequest()
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert (received, stop.signal) == ([signal.SIGINT], signal.SIGTERM)


def test_handlers_are_given_back_when_the_run_ends(received):
    stop = StopRequest()
    assert signal.getsignal(signal.SIGTERM) == stop._note
    stop.restore()
    send(signal.SIGTERM)
    assert received == [signal.SIGTERM]
    assert not stop.requested


def test_a_second_signal_ends_a_process_that_is_still_at_its_step():
    program = (
        "import os, signal; from local_distill.process import interruption; interruption.SAME = -1;"
        "stop = interruption.StopRequest();"
        "os.kill(os.getpid(), signal.SIGTERM); print(stop.requested, flush=True);"
        "os.kill(os.getpid(), signal.SIGTERM); print('still there')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGTERM
    assert done.stdout == "True\n"
