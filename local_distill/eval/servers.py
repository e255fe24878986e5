"""A model or its teacher behind servers, with weights that stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from local_distill.backends import MakeSampler
from local_distill.config.parsing import comma_separated
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.questions_and_model import Subject
from local_distill.head.sampling import NucleusSampling
from local_distill.rollouts import vllm_server
from local_distill.serving.client import HttpClient
from local_distill.serving.publishing import Publisher
from local_distill.teachers.server import ServerTeacher, open_server_teacher


def served_sampler(
    settings: EvalSettings, subject: Subject, *, longest: int, say: Callable[[str], None], closing: ExitStack
) -> MakeSampler:
    """Return what makes engines that sample from the servers. Raises UserError when they serve something else."""
    client = HttpClient(
        comma_separated(settings.rollouts_url), flag=vllm_server.FLAG, key_variable=vllm_server.KEY_VARIABLE,
        **_patience(settings), say=say,
    )  # fmt: skip
    closing.callback(client.close)
    # Temperature 1: the log-probs of the draws, which this would ask for as well, are not used.
    name = vllm_server.check_engine(
        client, subject.pair.student.tokenizer, longest=longest, choose=NucleusSampling(1.0, 1.0)
    )
    say(f"{subject.name}: sampled by {', '.join(client.urls)}, where it is called {name}")
    return lambda params: vllm_server.VLLMServerRollouts(
        client, Publisher(name), params=params, vocab_size=subject.pair.vocab_size, rows=subject.pair.rows
    )


def served_teacher(
    settings: EvalSettings, subject: Subject, *, longest: int, device: torch.device, say: Callable[[str], None],
    closing: ExitStack,
) -> ServerTeacher:  # fmt: skip
    """Return the teacher behind --teacher_url. Raises UserError when it is not there, or has other tokens."""
    teacher = open_server_teacher(
        comma_separated(settings.teacher_url),
        model=settings.teacher_model,
        student_tokenizer=subject.pair.student.tokenizer,
        vocab_size=subject.pair.vocab_size,
        longest=longest,
        top_k=0,
        device=device,
        **_patience(settings),
        say=say,
    )
    closing.callback(teacher.close)
    return teacher


def _patience(settings: EvalSettings) -> dict[str, Any]:
    return {
        "timeout": settings.server_timeout,
        "patience": settings.server_patience,
        "concurrency": settings.server_concurrency,
    }
