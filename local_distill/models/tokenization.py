"""Do student and teacher speak the same tokens, which of them end a completion, and what is the text of each?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from local_distill.errors import UserError

PROBES = (
    "The quick brown fox, 1234567 times: f(x) = x**2 + 3.14;\n\tdef main():\n    return 'ok'",
    "在本地训练语言模型，需要多少显存？ Ünïcödé — naïve café 🙂🚀  two  spaces",
)


@dataclass(frozen=True)
class StopTokens:
    """These token ids end a completion; ``note`` says what a person should know of them, or is empty."""

    ids: tuple[int, ...]
    note: str


def check_same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless every token of the student's is the same token to the teacher.

    The vocabularies themselves are compared, not their sizes: models of one family pad the same
    vocabulary to different sizes, and other families can agree in size by accident. The teacher may
    know more tokens than the student, and the student may have special tokens of its own behind all
    others, such as a padding token that was added: a student that never samples them is none the
    worse. The teacher is sent ids, so it must also split text alike.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    own = _own_special_tokens(student, teacher)
    different = [token for token, index in ours.items() if theirs.get(token) != index and token not in own]
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


def _own_special_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return special tokens that the teacher does not know, with ids behind all that both know.

    A special token is in no text. One that is no special token, or one that ends a text, the student has to sample.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    unknown = ours.keys() - theirs.keys() - {student.eos_token}
    if not unknown:
        return {}
    last = max((index for token, index in ours.items() if token in theirs), default=-1)
    special = {*student.all_special_tokens, *(str(t) for t in student.added_tokens_decoder.values() if t.special)}
    return {token: ours[token] for token in unknown & special if ours[token] > last}


def shared_vocabulary(
    student: PretrainedConfig,
    teacher: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None = None,
) -> int:
    """Return the number of leading token ids over which both models' softmax runs.

    Rows that only one of the two has are padding of its vocabulary: they hold no token, and leaving
    them in on one side would make even KL(identical models) positive. Nor is there a number for a token that only the
    student's tokenizer knows, nor for one that was added behind a head that was left as it was.

    tokenizer: the student's. teacher_tokenizer: where it is another; ``check_same_tokens`` has passed.
    """
    sizes = {
        "--student_model": student.get_text_config().vocab_size,
        "--teacher_model": teacher.get_text_config().vocab_size,
    }
    vocabulary = tokenizer.get_vocab()
    known = max(vocabulary.values()) + 1
    if known > min(sizes.values()):  # what was added to it may lie behind the heads
        added = tokenizer.added_tokens_encoder
        known = max((index for token, index in vocabulary.items() if token not in added), default=known - 1) + 1
    for flag, size in sizes.items():
        if size < known:
            raise UserError(
                f"{flag}: has logits for {size} tokens, its tokenizer knows {known}; config.json and tokenizer "
                "do not belong together, download the model again"
            )
    own = {} if teacher_tokenizer is None else _own_special_tokens(tokenizer, teacher_tokenizer)
    return min(*sizes.values(), *own.values())


def unsampled_tokens_note(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> str:
    """Return a word on tokens of the student's tokenizer that are not among those that both models have, or nothing."""
    beyond = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index >= vocab_size)
    if not beyond:
        return ""
    names = ", ".join(token for _, token in beyond[:3]) + (f" and {len(beyond) - 3} more" if len(beyond) > 3 else "")
    return f"tokens that not both models have are never sampled, and no prompt may have them: {names}"


def stop_tokens(
    student: PreTrainedTokenizerBase, student_generation: GenerationConfig, teacher: PreTrainedTokenizerBase,
    teacher_generation: GenerationConfig, choice: str, vocab_size: int | None = None,
) -> StopTokens:  # fmt: skip
    """Return the tokens that end a completion, by ``--stop_tokens``: both, student or teacher.

    A base student and an instruct teacher end on different tokens. Under reverse KL the student then
    learns to avoid its own end token, which the teacher never uses, and lengths explode unless it
    also stops on the teacher's.

    vocab_size: tokens that can be sampled; settings may name others besides, which end nothing.
    """
    known = max(student.get_vocab().values(), default=-1) + 1 if vocab_size is None else vocab_size
    ours = {i for i in _end_tokens(student, student_generation) if 0 <= i < known}
    theirs = {i for i in _end_tokens(teacher, teacher_generation) if 0 <= i < known}
    chosen = {"both": ours | theirs, "student": ours, "teacher": theirs}[choice]
    if not chosen:
        raise UserError(
            f"--stop_tokens {choice}: no end-of-sequence token is defined among the {known} tokens that can be "
            "sampled; set eos_token in the model folder's tokenizer_config.json"
        )
    note = ""
    if ours != theirs:

        def names(ids: set[int]) -> str:
            both = (student.convert_ids_to_tokens(i) or teacher.convert_ids_to_tokens(i) for i in sorted(ids))
            return " ".join(map(str, both)) or "nothing"

        note = (
            f"student and teacher end on different tokens ({names(ours)} / {names(theirs)}); completions end on "
            f"{names(chosen)} (--stop_tokens {choice})"
        )
    return StopTokens(tuple(sorted(chosen)), note)


def pad_token(tokenizer: PreTrainedTokenizerBase, stops: StopTokens, vocab_size: int | None = None) -> int:
    """Return the id that fills rows up, one of ``vocab_size`` that both models have a row for.

    End-of-sequence when there is no other, which is safe: masks go by length.
    """
    for each in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if each is not None and (vocab_size is None or each < vocab_size):
            return int(each)
    return stops.ids[0]


def _end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> set[int]:
    configured = generation.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured])
    return {int(i) for i in ids | {tokenizer.eos_token_id} if i is not None}


def texts_of(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], others: Sequence[Sequence[int]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what each of T tokens adds to the text, and what each of the ``others`` would have added instead.

    A token is bytes, and a character may take several: its text depends on its neighbours. The T texts join to the
    whole, special tokens by their own names. A character that is spread over several tokens belongs to the last of
    them, those before it add "". others: T lists of token ids, empty where there are none.
    """
    decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    whole = decode(list(ids))
    # ids[:settled] have become whole[:at]; ids[context:settled] are decoded again with what follows, for a decoder
    # may treat the beginning of a text in its own way. Of the whole, whole[:told] has been told.
    context, settled, at, told = 0, 0, 0, 0
    for i, instead in enumerate(others):
        before = len(decode(list(ids[context:settled])))
        text = decode(list(ids[context : i + 1]))[before:]
        end = at + _shared(text, whole[at : at + len(text)])
        last = i == len(ids) - 1
        reached = len(whole) if last else max(told, end)
        yield whole[told:reached], tuple(_would_add(decode, ids[context:i], before, whole[at:told], instead))
        if text and end == at + len(text):
            context, settled, at = settled, i + 1, end
        told = reached


def _would_add(
    decode: Callable[[list[int]], str], ids: Sequence[int], before: int, told: str, instead: Sequence[int]
) -> Iterator[str]:
    for token in instead:
        text = decode([*ids, token])[before:]
        yield text[_shared(text, told) :]


def _shared(one: str, other: str) -> int:
    """Return characters that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
