"""Two models that speak the same tokens: a student, and the teacher that it learns from or is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from local_distill.models.files import ModelFiles
from local_distill.models.tokenization import StopTokens, check_same_tokens, pad_token, shared_vocabulary, stop_tokens


@dataclass(frozen=True)
class ModelPair:
    """A student beside its teacher, their files opened and found to belong together; no weights are loaded.

    teacher: the student's own files where there is no other, or where it is elsewhere: it has the same tokens then.
    vocab_size: the number of leading token ids that both models have; only these are sampled. stops: which end a text.
    pad_id: what fills rows up.
    """

    student: ModelFiles
    teacher: ModelFiles
    vocab_size: int
    stops: StopTokens
    pad_id: int

    @property
    def context_length(self) -> int | None:
        """Return how many tokens both models can hold, or None where neither sets a limit."""
        lengths = [files.context_length for files in (self.student, self.teacher)]
        return min((length for length in lengths if length), default=None)

    @property
    def rows(self) -> int:
        """Return the rows of the student's output head; those behind ``vocab_size`` are never sampled."""
        return int(self.student.config.get_text_config().vocab_size)


def pair_of(student: ModelFiles, teacher: ModelFiles | None = None, stop_choice: str = "both") -> ModelPair:
    """Put a student beside its teacher, or beside itself where there is none. stop_choice: see ``--stop_tokens``.

    Raises UserError where they do not speak the same tokens, or where none of these ends a completion.
    """
    if teacher is not None:
        check_same_tokens(student.tokenizer, teacher.tokenizer)
    other = teacher or student
    vocab_size = shared_vocabulary(student.config, other.config, student.tokenizer, other.tokenizer)
    stops = stop_tokens(
        student.tokenizer, student.generation, other.tokenizer, other.generation, stop_choice, vocab_size
    )
    return ModelPair(student, other, vocab_size, stops, pad_token(student.tokenizer, stops, vocab_size))
