"""Data parallelism holds a gradient once, in its buckets, from the beginning, however many micro-batches there are."""

import subprocess
import sys

import pytest

from tests.launching import ROOT, environment

pytestmark = pytest.mark.distributed
TWO_UPDATES = """
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from local_distill.training.optimizer import make_updates
from local_distill.models.scorer import TokenScorer
from local_distill.batch import TokenBatch
from tests.tiny_models import llama_config
from transformers import AutoModelForCausalLM

accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)])
assert accelerator.num_processes == 2
scorer = TokenScorer(AutoModelForCausalLM.from_config(llama_config(layers=1)), 300)
updates = make_updates(accelerator, scorer, weight_decay=0.0, max_grad_norm=1.0)
ids = torch.arange(1, 9)[None]
batch = TokenBatch(ids, torch.ones_like(ids), torch.arange(7), ids[0, 1:], torch.zeros(7), (7,))
coming, places = updates.to_come(), set()
assert all(p.grad.count_nonzero() == 0 for p in scorer.parameters())
for update in range(2):
    for last in (False, True):
        with updates.accumulating(last):
            updates.backward(updates.student(batch, lambda hidden, head, _: (hidden @ head.weight.T).sum()), last)
        places.add(tuple(p.grad.untyped_storage().data_ptr() for p in scorer.parameters()))
    updates.apply(1e-3, loss_is_finite=True)
trained = sum(p.numel() for p in scorer.parameters())
accelerator.print("places:", len(places), "to come:", coming.gradients, coming.moments / trained)
"""


def launched(script, processes, folder):
    file = folder / "script.py"
    file.write_text(script)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        str(file),
    ]
    return subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_all_updates_accumulate_where_gradients_are_reduced(tmp_path):
    done = launched(TWO_UPDATES, 2, tmp_path)
    assert "places: 1 to come: 0 8.0" in done.stdout, done.stdout + done.stderr[-2000:]


AGAIN = """
import torch
from accelerate import Accelerator, DistributedType
from local_distill.training.optimizer import make_updates
from local_distill.models.scorer import TokenScorer
from local_distill.batch import TokenBatch
from tests.tiny_models import llama_config
from transformers import AutoModelForCausalLM

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 1 and accelerator.distributed_type != DistributedType.NO
scorer = TokenScorer(AutoModelForCausalLM.from_config(llama_config(layers=2)), 300)
updates = make_updates(accelerator, scorer, weight_decay=0.0, max_grad_norm=1.0)
ids = torch.arange(1, 9)[None]
batch = TokenBatch(ids, torch.ones_like(ids), torch.arange(7), ids[0, 1:], torch.zeros(7), (7,))

def backward():
    with updates.accumulating(last=True):
        updates.backward(updates.student(batch, lambda hidden, head, _: (hidden @ head.weight.T).sum()), True)

def fail(_):
    raise RuntimeError("CUDA out of memory")

assert updates.can_start_over
failing = scorer.model.model.layers[0].mlp.up_proj.weight.register_hook(fail)
try:
    backward()
except RuntimeError as error:
    print(error)
failing.remove()
updates.start_over()
backward()
print("again:", updates.apply(1e-3, loss_is_finite=True).applied)
"""


def test_launched_alone_a_failed_backward_pass_can_be_made_again(tmp_path):
    """A process group of one has no other process to wait for: memory that runs out is halved as without a launcher."""
    done = launched(AGAIN, 1, tmp_path)
    assert done.stdout.split("\n")[:2] == ["CUDA out of memory", "again: True"], done.stdout + done.stderr[-2000:]
