"""Servers of vLLM sample; they are sent the student's weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from local_distill.backends import MakeSampler, Opening, OpenSampler, SamplerBackend, Student
from local_distill.batch import Prompt, Rollout, ignore
from local_distill.config.parsing import comma_separated
from local_distill.config.train_fields import TrainFields
from local_distill.errors import RunError, UserError
from local_distill.head.sampling import NucleusSampling, SamplingParams
from local_distill.models.footprint import SamplerMemory
from local_distill.models.tokenization import PROBES
from local_distill.process.distributed import on_main_process
from local_distill.rollouts.requests import Request, in_vllm_words, requests_for
from local_distill.rollouts.student_checks import check_vllm_student
from local_distill.serving.answers import BadAnswerError, member, model_cards
from local_distill.serving.client import HttpClient, ServerError
from local_distill.serving.publishing import AdapterPublisher, Publisher, WeightsPublisher, fresh_folder

SERVED = "served"
"""Folder of a run in which weights are handed to the servers that sample."""
FLAG = "--rollouts_url"
KEY_VARIABLE = "LOCAL_DISTILL_ROLLOUTS_API_KEY"
COMPLETIONS = "/v1/completions"
REPAIRS = 3
"""How often a server may not know the weights before something other than a restart must be the reason."""
NO_LOGPROB = -9000.0
"""vLLM writes −9999 for log-probs that are not finite."""
LARGEST_SEED = 2**53
"""Whole numbers below it pass through any JSON reader unchanged."""


class VLLMServerRollouts:
    """Each rollout is one request, all are made at once: the server batches them, and reads a group's prompt once.

    What is drawn depends on the seed, the step, the position and the place in the group, and, because a server's
    rounding depends on what else it computes at the time, not on these alone. What was drawn is reported by the engine.

    publisher: has the weights that are sampled from. vocab_size: tokens that the student and the teacher share. rows:
    of the student's head, of which later ones are left out.
    """

    def __init__(
        self, client: HttpClient, publisher: Publisher, *, params: SamplingParams, vocab_size: int, rows: int
    ) -> None:
        self._client = client
        self._publisher = publisher
        self._params = params
        self._vocab_size = vocab_size
        self._asked = _in_the_servers_words(params, vocab_size, rows)

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """Draw ``group_size`` rollouts of each (position, prompt), in order, from the newest weights; collective."""
        self.refresh()
        return self.draw(prompts, step, finished)

    def refresh(self) -> None:
        """Send the servers the newest weights, where they have changed; collective."""
        self._publisher.publish()

    def draw(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """Sample the same from the weights that the servers have; from any thread.

        All of them or none: RunError when one cannot be had within the client's patience.
        """

        def make(request: Request) -> Rollout:
            rollout = self._completion(request)
            finished(rollout)
            return rollout

        with self._publisher.drawing():
            wanted = requests_for(prompts, step, self._params)
            futures = [self._client.in_background(partial(make, request)) for request in wanted]
            done, left = wait(futures, return_when=FIRST_EXCEPTION)
            for future in left:  # one failed
                future.cancel()
            for future in done:
                future.result()
            return [future.result() for future in futures]

    def _completion(self, request: Request) -> Rollout:
        """Return what is read of the answer; a server that was restarted is given the weights first."""
        body = {
            "model": self._publisher.served_model,
            "prompt": list(request.prompt.ids),
            "cache_salt": self._publisher.salt,  # keys and values of other weights are never looked up
            "seed": request.seed % LARGEST_SEED,
            **self._asked,
        }
        for _ in range(REPAIRS):
            self._publisher.look()
            try:
                drawn: Rollout = self._client.post(
                    COMPLETIONS, body, on_lost=self._publisher.again, read=partial(self._read, request)
                )
                return drawn
            except ServerError as error:
                if error.status != 404:  # it does not know the adapter
                    raise
                refused = error
            for url in self._client.urls:
                self._publisher.again(url)
        raise RunError(f"{refused}; asked {REPAIRS} times, and given the weights again each time") from refused

    def _read(self, request: Request, answer: Any) -> Rollout:
        """Raise BadAnswerError for what is not one whole completion with a log-prob for each of its tokens."""
        ids, logprobs, reason = _only_choice(answer)
        wrong = None
        if not 1 <= len(ids) <= self._params.max_new_tokens:
            wrong = f"{len(ids)} tokens, 1 to {self._params.max_new_tokens} were asked for"
        elif max(ids) >= self._vocab_size or min(ids) < 0:
            wrong = f"token {max(ids)}, student and teacher share {self._vocab_size}"
        elif not all(math.isfinite(each) and each > NO_LOGPROB for each in logprobs):
            wrong = "log-probs that are not finite, as if its weights held NaN"
        elif any(each in self._params.stop_ids for each in ids[:-1]):
            wrong = "a completion that goes on after a stop token"
        elif ids[-1] not in self._params.stop_ids and len(ids) < self._params.max_new_tokens:
            wrong = f"a completion that was cut short after {len(ids)} tokens (finish_reason {reason!r})"
        if wrong:
            raise BadAnswerError(wrong)
        return request.rollout(ids, logprobs, self._params.stop_ids)


def check_engine(
    client: HttpClient,
    tokenizer: PreTrainedTokenizerBase,
    *,
    longest: int,
    choose: NucleusSampling,
    leaves_out: bool = False,
) -> str:
    """Check that every server can sample for this student. Returns the name under which they serve its base.

    longest: tokens of prompt and completion together. leaves_out: whether rows of its head are not to be drawn.
    Raises UserError.
    """
    names = {url: _check_model(client, url, longest) for url in client.urls}
    for url, name in names.items():
        if name != names[client.urls[0]]:
            raise UserError(
                f"{FLAG}: {url} serves {name}, {client.urls[0]} serves {names[client.urls[0]]}; start them alike"
            )
        _check_tokens(client, url, name, tokenizer)
        if leaves_out or choose.temperature != 1.0 or choose.top_p < 1.0:
            _check_processed(client, url, name, tokenizer, leaves_out)
    return names[client.urls[0]]


def _check_model(client: HttpClient, url: str, longest: int) -> str:
    base = [card for card in model_cards(client.get_from(url, "/v1/models")) if not card.get("parent")]
    if not base:
        raise UserError(f"{FLAG} {url}: serves no model; give the address of a vLLM server")
    length = base[0].get("max_model_len")
    if isinstance(length, int) and length < longest:
        raise UserError(
            f"{FLAG} {url}: takes {length} tokens, prompt and completion may have {longest} together; start it with "
            f"--max-model-len {longest}, or lower --max_new_tokens or --max_prompt_tokens"
        )
    return str(base[0]["id"])


def _check_tokens(client: HttpClient, url: str, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for probe in PROBES:
        asked = {"model": name, "prompt": probe, "add_special_tokens": False}
        theirs = client.post_to(url, "/tokenize", asked, read=partial(member, "tokens"))
        if theirs != tokenizer.encode(probe, add_special_tokens=False):
            raise UserError(
                f"{FLAG} {url}: {name} splits text into other tokens than the student ({probe[:24]!r}); "
                "serve the student's own base model"
            )


def _check_processed(
    client: HttpClient, url: str, name: str, tokenizer: PreTrainedTokenizerBase, leaves_out: bool
) -> None:
    """Raise UserError unless log-probs are of the distribution that tokens are drawn from.

    Where top-p leaves one token, it is drawn with certainty: log-prob 0. After a single token no model is certain by
    itself, so that a server which reports its log-probs from before top-p says less.
    """
    greedy = _in_the_servers_words(SamplingParams(NucleusSampling(0.5, 1e-6), 1, 1, frozenset(), 0))
    for first in tokenizer.encode(PROBES[0], add_special_tokens=False)[:4]:
        body = {"model": name, "prompt": [first], "seed": 0, **greedy}
        choice = client.post_to(url, COMPLETIONS, body, read=_only_choice)
        if any(logprob < -1e-3 for logprob in choice.logprobs):
            raise UserError(
                f"{FLAG} {url}: its log-probs are from before temperature, top-p and the leaving out of rows that are "
                "no tokens of both models, those of the draws are needed; start it with --logprobs-mode "
                "processed_logprobs" + ("" if leaves_out else ", or use --temperature 1 --top_p 1")
            )


def _in_the_servers_words(params: SamplingParams, vocab_size: int = 0, rows: int = 0) -> dict[str, Any]:
    """Say how to sample, and that log-probs are to stand beside ids and not beside pieces of text."""
    return {**in_vllm_words(params, vocab_size, rows), "return_token_ids": True, "return_tokens_as_token_ids": True}


class Choice(NamedTuple):
    """A completion as a server tells it. logprobs: of each of its ``ids``. finish_reason: in its words."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: object


def _only_choice(answer: Any) -> Choice:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise BadAnswerError("what is not one completion, as if it were no vLLM server")
    ids, beside = choices[0].get("token_ids"), choices[0].get("logprobs")
    tokens, logprobs = (beside.get(key) if isinstance(beside, dict) else None for key in ("tokens", "token_logprobs"))
    if (
        not isinstance(ids, list)
        or not isinstance(logprobs, list)
        or len(ids) != len(logprobs)
        or tokens != [f"token_id:{each}" for each in ids]
        or not all(type(each) is int for each in ids)
        or not all(isinstance(each, (int, float)) for each in logprobs)
    ):
        raise BadAnswerError(
            "what does not have the id and the log-prob of each of its tokens, as if it were a vLLM that does not know "
            "return_token_ids"
        )
    return Choice(ids, logprobs, choices[0].get("finish_reason"))


def check(config: TrainFields) -> None:
    """Ask for the servers' addresses."""
    if not config.rollouts_url:
        raise UserError("--rollouts vllm_server: needs the addresses of the servers; add --rollouts_url")


def open_served(opening: Opening) -> OpenSampler:
    """Ask the servers what they serve. Raises UserError when one is not there, or serves something else."""
    config, pair, accelerator = opening.config, opening.pair, opening.accelerator
    client = HttpClient(
        comma_separated(config.rollouts_url), flag=FLAG, key_variable=KEY_VARIABLE, timeout=config.server_timeout,
        patience=config.server_patience, concurrency=config.server_concurrency, say=opening.say,
    )  # fmt: skip
    opening.closing.callback(client.close)
    ask = partial(
        check_engine, client, pair.student.tokenizer, longest=opening.longest,
        choose=NucleusSampling(config.temperature, config.top_p), leaves_out=pair.rows > pair.vocab_size,
    )  # fmt: skip
    base = on_main_process(accelerator, ask)

    def with_student(student: Student) -> MakeSampler:
        folder = on_main_process(accelerator, lambda: fresh_folder(opening.folder / SERVED))
        if accelerator.is_main_process:
            opening.closing.callback(shutil.rmtree, folder, ignore_errors=True)
        on_main, barrier = partial(on_main_process, accelerator), accelerator.wait_for_everyone
        shared = client, lambda: student.updates.version, folder, on_main, barrier
        publisher: Publisher
        if opening.lora:
            publisher = AdapterPublisher(*shared, model=student.model)
        else:
            publisher = WeightsPublisher(*shared, model=student.model, base=base, dtype=opening.dtype)
        return lambda params: VLLMServerRollouts(
            client, publisher, params=params, vocab_size=pair.vocab_size, rows=pair.rows
        )

    return with_student


BACKEND = SamplerBackend(check=check, check_student=check_vllm_student, memory=SamplerMemory(), open=open_served)
