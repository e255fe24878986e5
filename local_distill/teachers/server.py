"""A teacher behind a vLLM or SGLang server: token ids go out, log-probs come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from local_distill.backends import Opening, OpenTeacher, TeacherBackend, TeacherReaders
from local_distill.batch import Rollout, SampledLogprobs, ScoredBatch, TeacherView, TokenBatch, TopLogprobs
from local_distill.config.parsing import comma_separated
from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.head.logprobs import TopTokens
from local_distill.models.footprint import TeacherMemory
from local_distill.process.distributed import on_every_process
from local_distill.serving.client import HttpClient
from local_distill.serving.scoring import Question, Scores, Wire, read_scores
from local_distill.serving.served import FLAG, agree_on_wire
from local_distill.teachers.teacher_checks import check_own

KEY_VARIABLE = "LOCAL_DISTILL_TEACHER_API_KEY"
FORGOTTEN_AFTER = 4096
"""Batches after which a rollout that was prepared will not be asked for any more; more than a step has."""


class _Prepared(NamedTuple):
    """A request that was begun, and how many batches had been scored by then."""

    scores: Future[Scores]
    batches: int


class ServerTeacher:
    """Scores rollouts by asking servers; what was prepared is under way, or done, before it is asked for.

    device: where scored batches go. vocab_size: tokens that student and teacher share. top_k: likeliest tokens that
    are given at each position as well, 0 for none. Raises ServerError where a server does not answer for as long as
    ``client`` is patient, or answers anything but what was asked.
    """

    def __init__(self, client: HttpClient, wire: Wire, *, device: torch.device, vocab_size: int, top_k: int) -> None:
        self._client = client
        self._wire = wire
        self._device = device
        self._vocab_size = vocab_size
        self._top_k = top_k
        self._prepared: dict[Question, _Prepared] = {}  # oldest first
        self._batches = 0
        self._lock = threading.Lock()

    def prepare(self, rollout: Rollout) -> None:
        """Begin with the request for this rollout."""
        if len(rollout.completion) == 0:
            return
        question = Question((*rollout.prompt.ids, *rollout.completion.tolist()), len(rollout.completion), self._top_k)
        with self._lock:
            if question not in self._prepared:
                self._prepared[question] = _Prepared(self._begin(question), self._batches)

    def score(self, batch: TokenBatch) -> ScoredBatch:
        """Return the batch with what the servers say; see Teacher."""
        questions = questions_of(batch, self._top_k)
        # All of them are under way before the first is waited for; rows that are equal share a request.
        under_way = {question: self._take(question) for question in dict.fromkeys(questions)}
        self._forget()
        scores = [under_way[question].result() for question in questions]
        logprobs = torch.cat([torch.empty(0), *(each.logprobs for each in scores)]).to(self._device)
        signal = SampledLogprobs(logprobs)
        if self._top_k:
            tops = [each.top for each in scores if each.top is not None]
            ids = torch.cat([torch.empty(0, self._top_k, dtype=torch.long), *(top.ids for top in tops)])
            likely = torch.cat([torch.empty(0, self._top_k + 1), *(top.logprobs for top in tops)])
            signal = TopLogprobs(logprobs, top=TopTokens(ids.to(self._device), likely.to(self._device)))
        return ScoredBatch(batch.to(self._device), signal)

    def close(self) -> None:
        """Let go of the servers; requests under way are given up."""
        self._client.close()

    def _take(self, question: Question) -> Future[Scores]:
        with self._lock:
            prepared = self._prepared.pop(question, None)
        return prepared.scores if prepared else self._begin(question)

    def _forget(self) -> None:
        """Drop what nobody came for: rollouts that were sampled again, or never finished their step."""
        with self._lock:
            self._batches += 1
            for question, prepared in list(self._prepared.items()):
                if self._batches - prepared.batches <= FORGOTTEN_AFTER:
                    break
                prepared.scores.cancel()
                del self._prepared[question]

    def _begin(self, question: Question) -> Future[Scores]:
        return self._client.in_background(lambda: self._ask(question))

    def _ask(self, question: Question) -> Scores:
        """Keep tensors: an answer with its likeliest tokens takes a hundred times their room."""
        scores: Scores = self._client.post(
            self._wire.path,
            self._wire.request(question),
            read=lambda answer: read_scores(self._wire, answer, question, self._vocab_size),
        )
        return scores


def questions_of(batch: TokenBatch, top_k: int) -> list[Question]:
    """Say what to ask of each row that has a completion, in order. Rows end by length: padding may be a token."""
    ends = batch.attention_mask.sum(1).tolist()
    rows = zip(batch.input_ids.tolist(), ends, batch.lengths, strict=True)
    return [Question(tuple(ids[:end]), length, top_k) for ids, end, length in rows if length]


def open_server_teacher(
    urls: Sequence[str], *, model: str | None, student_tokenizer: PreTrainedTokenizerBase, vocab_size: int,
    longest: int, top_k: int, device: torch.device, timeout: float, patience: float, concurrency: int,
    say: Callable[[str], None],
) -> ServerTeacher:  # fmt: skip
    """Return the teacher behind ``urls``, once all are seen to serve the same model, with the student's tokens.

    model: the name that it is served by; None for the only one, or the first. longest: tokens that prompt and
    completion may have together. vocab_size, top_k, device: see ServerTeacher. timeout, patience, concurrency, say:
    see HttpClient. Raises UserError for what can be mended before a run, ServerError for a server that is not there.
    """
    client = HttpClient(
        urls, flag=FLAG, key_variable=KEY_VARIABLE, timeout=timeout, patience=patience, concurrency=concurrency, say=say
    )
    try:
        wire = agree_on_wire(
            client, model=model, tokenizer=student_tokenizer, vocab_size=vocab_size, longest=longest, top_k=top_k,
            say=say,
        )  # fmt: skip
    except BaseException:
        client.close()
        raise
    return ServerTeacher(client, wire, device=device, vocab_size=vocab_size, top_k=top_k)


def check(config: TrainFields) -> None:
    """Ask for an address, and refuse what is for a teacher in these processes."""
    check_own(config, "server", "teacher_url")
    if config.teacher_url is None:
        raise UserError("--teacher_url: not given for a server teacher; add it")


def open_server(opening: Opening) -> OpenTeacher:
    """Ask the servers what they serve. Raises UserError when one is not there, or has other tokens."""
    config, pair = opening.config, opening.pair
    teacher = on_every_process(
        lambda: open_server_teacher(
            comma_separated(config.teacher_url),
            model=config.teacher_model or None,
            student_tokenizer=pair.student.tokenizer,
            vocab_size=pair.vocab_size,
            longest=opening.longest,
            top_k=config.loss_top_k or 0,
            device=opening.accelerator.device,
            timeout=config.server_timeout,
            patience=config.server_patience,
            concurrency=config.server_concurrency,
            say=opening.say,
        )
    )
    opening.closing.callback(teacher.close)
    return lambda _student, _needs: TeacherReaders(teacher, teacher)


BACKEND = TeacherBackend(
    check=check,
    gives=TeacherView.top_tokens,
    memory=TeacherMemory(None, "not in this process"),
    open=open_server,
    where=f"behind {FLAG}",
    words=lambda config: f"{config.teacher_model or 'what is served'} at {config.teacher_url}",
)
