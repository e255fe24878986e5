"""Do student and teacher speak the same tokens, and which tokens end a completion?"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from local_distill.errors import UserError

PROBES = (
    "The quick brown fox, 1234567 times: f(x) = x**2 + 3.14;\n\tdef main():\n    return 'ok'",
    "在本地训练语言模型，需要多少显存？ Ünïcödé — naïve café 🙂🚀  two  spaces",
)


@dataclass(frozen=True)
class StopTokens:
    """Token ids that end a completion; ``note`` says what a person should know of them, or is empty."""

    ids: tuple[int, ...]
    note: str


def check_same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless every token of the student's is the same token to the teacher.

    The vocabularies themselves are compared, not their sizes: models of one family pad the same
    vocabulary to different sizes, and other families can agree in size by accident. The teacher may
    know more tokens than the student. The teacher is sent ids, so it must also split text alike.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = [token for token, index in ours.items() if theirs.get(token) != index]
    remedy = "choose a teacher of the student's family, or a student of the teacher's"
    if different:
        example = min(different, key=lambda token: ours[token])
        found = f"id {theirs[example]}" if example in theirs else "not there"
        raise UserError(
            f"--teacher_model: its tokenizer differs from the student's: {len(different)} of {len(ours)} tokens, "
            f"such as {example!r}, id {ours[example]} to the student and {found} to the teacher; {remedy}"
        )
    for probe in PROBES:
        if student.encode(probe, add_special_tokens=False) != teacher.encode(probe, add_special_tokens=False):
            raise UserError(
                "--teacher_model: its tokenizer has the student's tokens but splits text differently "
                f"({probe[:24]!r}); {remedy}"
            )


def shared_vocabulary(student: PretrainedConfig, teacher: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of leading token ids over which both models' softmax runs.

    Rows that only one of the two has are padding of its vocabulary: they hold no token, and leaving
    them in on one side would make even KL(identical models) positive.
    """
    sizes = {
        "--student_model": student.get_text_config().vocab_size,
        "--teacher_model": teacher.get_text_config().vocab_size,
    }
    known = max(tokenizer.get_vocab().values()) + 1
    for flag, size in sizes.items():
        if size < known:
            raise UserError(
                f"{flag}: has logits for {size} tokens, its tokenizer knows {known}; config.json and tokenizer "
                "do not belong together, download the model again"
            )
    return min(sizes.values())


def stop_tokens(
    student: PreTrainedTokenizerBase, student_generation: GenerationConfig, teacher: PreTrainedTokenizerBase,
    teacher_generation: GenerationConfig, choice: str,
) -> StopTokens:  # fmt: skip
    """The tokens that end a completion, by ``--stop_tokens``: both, student or teacher.

    A base student and an instruct teacher end on different tokens. Under reverse KL the student then
    learns to avoid its own end token, which the teacher never uses, and lengths explode unless it
    also stops on the teacher's.
    """
    ours = _end_tokens(student, student_generation)
    theirs = _end_tokens(teacher, teacher_generation)
    chosen = {"both": ours | theirs, "student": ours, "teacher": theirs}[choice]
    if not chosen:
        raise UserError(
            f"--stop_tokens {choice}: no end-of-sequence token is defined; set eos_token in the model folder's "
            "tokenizer_config.json"
        )
    note = ""
    if ours != theirs:

        def names(ids: set[int]) -> str:
            return " ".join(student.convert_ids_to_tokens(sorted(ids))) or "nothing"

        note = (
            f"student and teacher end on different tokens ({names(ours)} / {names(theirs)}); completions end on "
            f"{names(chosen)} (--stop_tokens {choice})"
        )
    return StopTokens(tuple(sorted(chosen)), note)


def pad_token(tokenizer: PreTrainedTokenizerBase, stops: StopTokens) -> int:
    """The id that fills rows up; end-of-sequence when there is no other, which is safe: masks go by length."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return int(tokenizer.eos_token_id if tokenizer.eos_token_id is not None else stops.ids[0])


def _end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> set[int]:
    configured = generation.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    return {int(i) for i in ids | {tokenizer.eos_token_id} if i is not None}
