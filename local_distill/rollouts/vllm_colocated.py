"""A vLLM engine in the training processes themselves samples, and sleeps while they train.

One engine for each process, on the device that it trains on. Before a step's draws it wakes and takes the newest
weights from the model beside it; after them it gives its memory back. On a processor vLLM cannot sleep, and nothing is
given back. Tested against vLLM 0.32 on a processor, in one process and in two. Not measured: a GPU, on which sleeping
and waking are written against the same interface and have not been run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from local_distill.backends import MakeSampler, Opening, OpenSampler, SamplerBackend, Student
from local_distill.batch import Prompt, Rollout, ignore
from local_distill.errors import RunError, UserError, with_type
from local_distill.head.sampling import SamplingParams
from local_distill.models.files import causal_lm, precision_of, saved_tensors
from local_distill.models.footprint import DecodingBytes, Part, Parts, SamplerMemory, ToSample
from local_distill.packages import installed
from local_distill.process.distributed import on_every_process
from local_distill.rollouts.requests import Request, in_vllm_words, requests_for
from local_distill.rollouts.student_checks import check_here, check_vllm_student

FLAG = "--rollouts vllm"
DISCARD_WEIGHTS = 2
"""vLLM's level of sleep in which neither weights nor keys and values are kept: the weights are at hand anyway."""
ENGINE = "vLLM engine"
CPU_CACHE = 4 * 2**30
"""Bytes of keys and values of vLLM on a processor, where nobody sets VLLM_CPU_KVCACHE_SPACE."""
NamedWeights = Iterable[tuple[str, Tensor]]


def always(run: ToSample) -> Parts:
    """Count the engine on a processor, where it cannot sleep."""
    if run.device != "cpu":
        return ()
    return (Part(ENGINE, run.weights + CPU_CACHE, estimated=True),)


def while_sampling(run: ToSample, _at_once: int, _decoding: Callable[[], DecodingBytes]) -> tuple[Parts, Parts]:
    """Count the share of a GPU that the engine fills while it is awake."""
    if run.device == "cpu":
        return (), ()
    return (Part(ENGINE, run.config.rollouts_memory_share * run.memory, estimated=True),), ()


def merged_weights(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Give every weight of the student as in a checkpoint in ``dtype``, one at a time; adapters are added on.

    model: the transformers (or peft) model, unwrapped; it is not changed.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = causal_lm(model)
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    insides = tuple(f"{name}." for name in adapted)
    with torch.no_grad():
        for name, tensor in saved_tensors(base):
            if not name.startswith(insides):
                yield name, tensor.detach().to(precision_of(base, name, tensor, dtype))
        for name, layer in adapted.items():
            for inner, parameter in layer.get_base_layer().named_parameters():
                whole = parameter.detach()
                if inner == "weight" and not layer.disable_adapters:
                    deltas = (layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
                    whole = whole.float() + sum(delta.float() for delta in deltas)
                yield f"{name}.{inner}", whole.to(precision_of(base, f"{name}.{inner}", whole, dtype))


class SharedEngine:
    """One engine serves all samplers of a run.

    Where several processes train, they must all make theirs at the same point. Make it before the models are loaded:
    it looks for free memory, and is asleep when it is done.

    model: hub id or folder of the student, for its configuration, its tokenizer and the shape of its weights.
    weights: yields all of the newest weights, see merged_weights. version: of these, changed by every update.
    dtype: of the engine's weights and products. max_tokens: longest prompt and completion together.
    memory_share: of the device's memory that the engine may fill while it is awake, between 0 and 1.
    eager: do without CUDA graphs, which start slowly.

    Raises UserError when vLLM is not installed, or does not start.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: Callable[[], NamedWeights],
        version: Callable[[], int],
        dtype: torch.dtype,
        max_tokens: int,
        memory_share: float,
        seed: int,
        trust_remote_code: bool = False,
        eager: bool = False,
    ) -> None:
        check_installed()
        self._weights = weights
        self._version = version
        self._held: int | None = None
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # tensors are handed over as they are, in this process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM
        from vllm.platforms import current_platform

        self._sleeps = bool(current_platform.is_sleep_mode_available())
        if self._sleeps:
            _check_allocator()
        launched = torch.distributed.is_initialized() and "RANK" in os.environ
        try:
            self._llm = LLM(
                model,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=max_tokens,
                gpu_memory_utilization=memory_share,
                enforce_eager=eager,
                enable_sleep_mode=self._sleeps,
                distributed_executor_backend="external_launcher" if launched else "uni",
                logprobs_mode="processed_logprobs",  # of the distribution that was drawn from
                trust_remote_code=trust_remote_code,
                seed=seed,
            )
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise UserError(
                f"{FLAG}: the engine did not start ({with_type(error)}); lower its share of the memory, or use "
                "--rollouts hf"
            ) from error
        self._sleep()

    @property
    def rows(self) -> int:
        """Return the number of rows of the model's head."""
        return int(self._llm.llm_engine.model_config.get_vocab_size())

    def draw(self, wanted: Sequence[Request], asked: Mapping[str, Any], finished: Callable[[int, Any], None]) -> None:
        """Continue the prompt of each request with the newest weights.

        asked: how to sample, see in_vllm_words. finished: told the number of a request and vLLM's CompletionOutput, as
        soon as it is complete.
        """
        import vllm
        from vllm.sampling_params import RequestOutputKind

        asked = {**asked, "detokenize": False, "output_kind": RequestOutputKind.FINAL_ONLY}
        settings = [vllm.SamplingParams(**asked, seed=request.seed) for request in wanted]
        with self._awake() as engine:
            for i, request in enumerate(wanted):
                tokens = vllm.TokensPrompt(prompt_token_ids=list(request.prompt.ids))
                engine.add_request(str(i), tokens, settings[i])
            while engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        finished(int(output.request_id), output.outputs[0])

    @contextmanager
    def _awake(self) -> Iterator[Any]:
        """Give vLLM's engine, with the newest weights and no keys and values of older ones."""
        try:
            if self._sleeps:
                torch.cuda.empty_cache()  # before 0.32 vLLM takes from the card without asking torch for what it holds
                self._llm.wake_up(tags=["weights"])
            if self._held != (newest := self._version()):
                self._llm.collective_rpc(partial(_load, self._weights()))
                self._held = newest
            if self._sleeps:  # only now, so that the copies made on the way have had this room
                torch.cuda.empty_cache()
                self._llm.wake_up(tags=["kv_cache"])
            self._llm.reset_prefix_cache()
            yield self._llm.llm_engine
        except (ValueError, RuntimeError, AssertionError) as error:
            raise RunError(f"{FLAG}: the engine failed ({with_type(error)}); use --rollouts hf") from error
        self._sleep()

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=DISCARD_WEIGHTS)
            self._held = None


class ColocatedVLLMRollouts:
    """Each rollout is one request, with a seed of its own.

    What is drawn depends on the seed, the step, the position and the place in the group; in the last digits also on
    which rollouts share a forward pass, so that another number of processes may draw other samples. What was drawn is
    reported as the engine drew it.

    vocab_size: tokens that may be drawn.
    """

    def __init__(self, engine: SharedEngine, *, params: SamplingParams, vocab_size: int) -> None:
        self._engine = engine
        self._params = params
        self._asked = in_vllm_words(params, vocab_size, engine.rows, -math.inf)

    def sample(
        self, prompts: Sequence[tuple[int, Prompt]], step: int, finished: Callable[[Rollout], None] = ignore
    ) -> list[Rollout]:
        """Draw ``group_size`` rollouts of each (position, prompt), in that order; see RolloutEngine."""
        wanted = requests_for(prompts, step, self._params)
        done: dict[int, Rollout] = {}

        def complete(i: int, output: Any) -> None:
            done[i] = self._read(wanted[i], output)
            finished(done[i])

        self._engine.draw(wanted, self._asked, complete)
        if lost := len(wanted) - len(done):
            raise RunError(f"{FLAG}: {lost} of {len(wanted)} rollouts were not finished; use --rollouts hf")
        return [done[i] for i in range(len(wanted))]

    def _read(self, request: Request, output: Any) -> Rollout:
        ids = list(output.token_ids)
        if output.finish_reason not in ("stop", "length") or len(output.logprobs or ()) != len(ids) or not ids:
            raise RunError(f"{FLAG}: a rollout ended with {output.finish_reason!r} after {len(ids)} tokens")
        logprobs = [chosen[i].logprob for i, chosen in zip(ids, output.logprobs, strict=True)]
        return request.rollout(ids, logprobs, self._params.stop_ids)


def check_installed() -> None:
    """Raise UserError when there is no vLLM."""
    if not installed("vllm"):
        raise UserError(
            f"{FLAG}: needs vLLM, which is not installed; pip install vllm, name a server with --rollouts_url, or use "
            "--rollouts hf"
        )


def open_inside(opening: Opening) -> OpenSampler:
    """Start the engine before the models are loaded, for it looks for free memory."""
    config, students = opening.config, list[Student]()
    engine = on_every_process(
        lambda: SharedEngine(
            config.student_model,
            weights=lambda: merged_weights(students[0].model, opening.dtype),
            version=lambda: students[0].updates.version,
            dtype=opening.dtype,
            max_tokens=opening.longest,
            memory_share=config.rollouts_memory_share,
            seed=config.seed,
            trust_remote_code=config.trust_remote_code,
            eager=opening.accelerator.device.type == "cpu",
        )
    )

    def with_student(student: Student) -> MakeSampler:
        students.append(student)
        return lambda params: ColocatedVLLMRollouts(engine, params=params, vocab_size=opening.pair.vocab_size)

    return with_student


BACKEND = SamplerBackend(
    check=partial(check_here, name="vllm"),
    check_machine=lambda _: check_installed(),
    check_student=check_vllm_student,
    memory=SamplerMemory(while_sampling, always),
    open=open_inside,
)


def _load(weights: NamedWeights, worker: Any) -> None:
    """Give every weight its new value, inside the engine, or name in an error one that gets none."""
    model = worker.get_model()
    names = {name for name, _ in model.named_parameters()}
    loaded: set[str] = set()
    load = model.load_weights

    def load_and_note(named: NamedWeights) -> Any:
        found = load(named)
        loaded.update(found or ())
        return found

    model.load_weights = load_and_note  # reload_weights itself only warns of what was left out
    try:
        worker.reload_weights(weights_iterator=weights)
    finally:
        del model.load_weights
    if left := sorted(names - loaded):
        raise RuntimeError(f"{len(left)} of its weights were not handed over, {left[0]} among them")


def _check_allocator() -> None:
    settings = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "") + os.environ.get("PYTORCH_ALLOC_CONF", "")
    if "expandable_segments:True" in settings:
        raise UserError(
            f"{FLAG}: PYTORCH_CUDA_ALLOC_CONF has expandable_segments:True, with which vLLM cannot give its memory "
            "back; unset it"
        )
