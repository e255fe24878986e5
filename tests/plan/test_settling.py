"""The most comfortable way that fits is taken: real arithmetic of small models, on machines of any size."""

import dataclasses

import pytest

from local_distill.plan import settling
from local_distill.plan.machine import GIB, Machine
from local_distill.plan.memory import Memory
from local_distill.plan.settling import NothingFits, settle
from tests.plan.test_memory import run

SETTINGS = {"student_model": "s", "teacher_model": "t", "batch_size": 8, "group_size": 2, "max_new_tokens": 70}


@pytest.fixture
def tried(monkeypatch):
    """Makes ``settle`` plan small models without files; the ways that it tries, in words."""

    def open_run(config, machine, zero_stage):
        settings = {name: getattr(config, name) for name in (
            "use_lora", "gradient_checkpointing", "teacher_quantization", "teacher_offload", "teacher_ds_zero3",
            "sampling_batch_size", "microbatch_tokens", "teacher_backend")}  # fmt: skip
        planned = run(lengths=(30, config.max_new_tokens), zero_stage=zero_stage, **settings)
        return dataclasses.replace(planned, machine=machine)

    monkeypatch.setattr(settling, "open_run", open_run)
    return []


def gpus(memory, processes=1):
    return Machine("cuda", processes, memory, 0.0, "")


def test_with_room_enough_all_weights_are_trained_beside_a_whole_teacher(tried):
    found = settle(SETTINGS, gpus(GIB), True, tried.append)
    assert (found.way.words, found.way.settings, found.left) == ("all weights", {}, ())
    assert found.settings == SETTINGS, "nothing is added that is not needed"
    assert found.plan.fits


def test_less_memory_takes_later_ways(tried, monkeypatch):
    monkeypatch.setattr(settling, "_fits", lambda memory, *_: memory.standing().bytes <= memory.run.machine.memory)
    monkeypatch.setattr(settling, "_settled", lambda way, *_: way.words)
    monkeypatch.setattr(settling, "make_plan", lambda _: None)
    monkeypatch.setattr(settling, "largest_teacher", lambda _: None)
    ways, memory = [], 2e6
    while isinstance(found := settle(SETTINGS, gpus(memory), True, tried.append), str):
        ways.append(found)
        memory *= 0.8
    order = [s.and_also(t).words for t in settling._teachers(gpus(1), True) for s in settling._students(gpus(1), False)]
    places = [order.index(words) for words in ways]
    assert places == sorted(places), "never back to what takes more"
    assert {"all weights", "an adapter"} <= set(ways)
    assert "the teacher" in ways[-1]
    assert found == NothingFits(None, None)


ALONE = ({}, {"gradient_checkpointing": True}, {"use_lora": True}, {"use_lora": True, "gradient_checkpointing": True})


@pytest.fixture(scope="module")
def in_full():
    """What each way of one GPU takes, with everything rehearsed for it alone."""
    return [bytes_of(Memory(run(lengths=(30, 70), **settings))) for settings in ALONE]


def bytes_of(memory):
    rows, rollouts = settling.COMFORTABLE
    return [phase.bytes for phase in memory.phases(rollouts, rows)]


def test_what_ways_share_is_what_each_would_find_alone(in_full):
    rehearsed = {}
    others = {"lengths": (30, 35)}, {"zero_stage": 2, "processes": 2}, {"use_lora": True, "teacher_backend": "self"}
    for settings in reversed(ALONE):
        bytes_of(Memory(run(**{"lengths": (30, 70), **settings}), rehearsed))
    known = len(rehearsed)
    for settings, alone in zip(ALONE, in_full, strict=True):
        assert bytes_of(Memory(run(lengths=(30, 70), **settings), rehearsed)) == alone
    assert len([key for key in rehearsed if key[1] == "_score_body"]) == 2, "two micro-batches, for all four ways"
    assert len([key for key in rehearsed if key[1] == "_decode"]) == 4, "for the student, and with its adapter"
    assert known < 4 * 8
    for settings in others:
        planned = run(**{"lengths": (30, 70), **settings})
        assert bytes_of(Memory(planned, rehearsed)) == bytes_of(Memory(planned)), settings


@pytest.mark.parametrize("room", [0, 1])
def test_the_quick_way_chooses_what_trying_all_in_full_chooses(tried, in_full, monkeypatch, room):
    monkeypatch.setattr(settling, "_settled", lambda way, *_: way.words)
    needed = sorted((max(each) for each in in_full), reverse=True)
    memory = needed[room] * 1.0001
    first = next(i for i, each in enumerate(in_full) if max(each) <= memory)
    found = settle(SETTINGS, gpus(memory), True, tried.append)
    assert found == [way.words for way in settling._students(gpus(1), False)][first]


def test_little_at_a_time_is_preferred_to_a_teacher_that_is_not_whole(tried):
    frugal = Memory(run(lengths=(30, 70), use_lora=True, gradient_checkpointing=True))
    needed = max(frugal.training(1).bytes, frugal.scoring(1).bytes, frugal.sampling(4).bytes)
    found = settle(SETTINGS, gpus(needed * 1.001), True, tried.append)
    assert found.way.words == "an adapter with activations recomputed"
    assert found.plan.fits
    assert len(found.left) == 3


def test_shorter_completions_are_the_last_resort(tried, monkeypatch):
    monkeypatch.setattr(settling, "_fits", lambda memory, *_: memory.run.lengths.completion <= 100)
    found = settle({**SETTINGS, "max_new_tokens": 300}, gpus(GIB), True, tried.append)
    assert found.settings["max_new_tokens"] == 75
    assert len(found.left) == 12, "each student with each teacher"
    assert tried[-1].endswith("completions of 75 tokens")


@pytest.mark.parametrize(
    ("machine", "held", "adapter", "there", "not_there"),
    [
        (gpus(1), True, False, ("teacher_quantization", "teacher_offload"), ("teacher_ds_zero3",)),
        (gpus(1, 2), True, False, ("teacher_ds_zero3",), ("teacher_quantization", "teacher_offload")),
        (gpus(1, 2), False, False, (), ("teacher_ds_zero3", "teacher_quantization")),
        (Machine("cpu", 1, 1, 0.0, ""), True, False, (), ("teacher_offload", "teacher_quantization")),
        (gpus(1), True, True, ("teacher_offload",), ()),
    ],
)
def test_what_is_tried_is_what_the_machine_can_do(machine, held, adapter, there, not_there):
    ways = [*settling._teachers(machine, held), *settling._students(machine, adapter)]
    settings = {name for way in ways for name in way.settings}
    assert set(there) <= settings
    assert not set(not_there) & settings
    assert any(way.zero_stage for way in ways) == (machine.processes > 1 and not adapter)
    assert all(way.settings.get("use_lora") for way in settling._students(machine, adapter)) == adapter


def test_on_a_processor_as_much_at_a_time_as_fits_is_written_down(tried, monkeypatch):
    monkeypatch.setattr(settling, "_STUDENT", settling._STUDENT[:1])
    monkeypatch.setattr(settling, "COMFORTABLE", (1, 1))
    memory = Memory(dataclasses.replace(run(lengths=(30, 70)), machine=Machine("cpu", 1, GIB, 0.0, "")))
    five = max(memory.sampling(5).bytes, memory.training(10).bytes)
    found = settle(SETTINGS, Machine("cpu", 1, five, 0.0, ""), True, tried.append)
    added = {name: value for name, value in found.settings.items() if SETTINGS.get(name) != value}
    assert added.keys() <= {"sampling_batch_size", "microbatch_tokens"}
    assert found.plan.fits
