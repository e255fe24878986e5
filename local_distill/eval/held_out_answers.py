"""Are the held-out prompts of a run such that samples of them can be verified?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from local_distill.batch import Prompt
from local_distill.eval.verifying import MathVerifier, Verifier, math_verify_is_here

LEAST_SHARE = 0.5
"""Of the prompts that must have an answer, or the accuracy is of too few of them to be followed."""


def verifier_of(prompts: Sequence[Prompt], say: Callable[[str], None]) -> tuple[tuple[Prompt, ...], Verifier | None]:
    """The prompts with the answers that can be compared alone, and what compares them; None where it is not worth it.

    say: told in one line why there is no accuracy, where prompts have answers.
    """
    answered = sum(prompt.answer is not None for prompt in prompts)
    if not answered:
        return tuple(prompts), None
    there_are = f"{answered} of {len(prompts)} held-out prompts have answers, but eval/accuracy is not measured"
    if not math_verify_is_here():
        say(f"{there_are}: math-verify is not installed; pip install 'local-distill[eval]'")
        return tuple(prompts), None
    verifier = MathVerifier()
    kept = tuple(p if p.answer and verifier.readable(p.answer) else replace(p, answer=None) for p in prompts)
    readable = sum(prompt.answer is not None for prompt in kept)
    if readable < LEAST_SHARE * len(prompts):
        verifier.close()
        say(f"{there_are}: {readable} of them can be verified, at least half of the prompts must")
        return tuple(prompts), None
    return kept, verifier
