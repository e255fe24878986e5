"""One process of two whose runs fail in turn, each in another place; test_failing_processes.py reads what it prints.

    torchrun --nproc_per_node 2 tests/process/failing_run.py FOLDER SETTINGS…

After an error that all were told of, the same two processes go on with the next run; the last one breaks their link.
"""

import errno
import gc
import os
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel

from local_distill import build
from local_distill import train_on_policy_local as entry
from local_distill.config.train_config import parse_config
from local_distill.errors import RunError, UserError
from local_distill.process.distributed import on_every_process
from local_distill.process.exit_codes import exit_code_of
from local_distill.rollouts.overlap import OverlappedRollouts

RANK = int(os.environ["RANK"])


def fails(where, what, at=0):
    """On one process the function fails, the first time that it is called."""
    whole, name = where.rsplit(".", 1)

    def failing(*_args, **_kwargs):
        raise what

    return patch(f"{whole}.{name}", failing) if at == RANK else patch("builtins.abs", abs)


@contextmanager
def slow(then):
    """One process takes longer over its inputs than torch would wait; and says how long it would be waited for."""
    checked = build.check_inputs

    def check(config):
        backend = distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        later = torch.distributed.new_group()._get_backend(torch.device("cpu"))
        print(f"patience: {backend.options._timeout.seconds}, later {later.options._timeout.seconds}", flush=True)
        time.sleep(4 * RANK)
        return checked(config)

    with patch.object(build, "check_inputs", check), then:
        yield


@contextmanager
def parting():
    """A run that ends well says what is still there of data parallelism when its processes part, which they do not."""

    def end(_accelerator):
        left = sum(type(each) is DistributedDataParallel for each in gc.get_objects())
        print(f"parting: process {RANK} keeps {left} wrapped", flush=True)

    with patch.object(Accelerator, "end_training", end):
        yield


class Ahead:
    """Draws are this process's own; new weights are sent as publishers do. One draw of one process fails."""

    sent = 0

    def refresh(self):
        torch.distributed.barrier()
        said = ["sent"]
        broadcast_object_list(said)
        assert said == ["sent"]
        self.sent += 1

    def draw(self, prompts, step, finished):
        del prompts, finished
        if (step, RANK) == (1, 1):
            raise UserError("--rollouts_url: gone")
        return []


def overlapped():
    """Two steps of sampling ahead."""
    engine = Ahead()
    rollouts = OverlappedRollouts(engine, {0: [], 1: []}.get, lambda: 0)
    try:
        for step in range(2):
            on_every_process(lambda step=step: rollouts.sample([], step))
    finally:
        assert engine.sent == 1, "nobody went to send weights for a step that was over"


def main():
    folder, *settings = sys.argv[1:]
    distributed_c10d.default_pg_timeout = timedelta(seconds=2)

    def run(name, sabotage):
        with sabotage:
            config = parse_config([*settings, "--output_dir", f"{folder}/{name}"])
            code = exit_code_of(lambda: entry.train(config).exit_code)
            print(f"{name}: process {RANK} ended with {code}", flush=True)

    run("parting", parting())
    run("saving", slow(fails("local_distill.training.checkpoint.save_torch_state_dict", OSError(errno.ENOSPC, ""))))
    run("record", fails("local_distill.runs.records.JsonlWriter.write", RunError("no metrics")))
    run("log", fails("local_distill.runs.records.RunFiles.__init__", UserError("no log")))
    run("words", fails("local_distill.announcements.off_policy_note", UserError("no words"), at=1))
    run("scoring", fails("local_distill.teachers.local.WholeDistributionTeacher.score", UserError("no score"), at=1))
    try:
        overlapped()
    except UserError as error:
        print(f"overlap: process {RANK} says {error}", flush=True)
    # Not agreed on: the others learn of it when this process has gone.
    run(
        "training",
        fails("local_distill.training.optimizer.TorchUpdates.backward", torch.OutOfMemoryError("none"), at=1),
    )


if __name__ == "__main__":
    main()
