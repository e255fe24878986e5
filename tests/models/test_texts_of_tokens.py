"""The text of single tokens: they join to the whole, and each character is where its last byte is."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from local_distill.models.tokenization import texts_of
from tests.tiny_models import IM_END, make_tokenizer

BYTE_LEVEL = make_tokenizer(chat=True, vocab_size=400)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama 2's and Gemma's: "▁" for a space, bytes as tokens of their own, no space at the start of a text."""
    words = ["<unk>", "</s>", "▁the", "▁sky", "s", "天", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def texts(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[str]:
    return [text for text, _ in texts_of(tokenizer, ids, [[] for _ in ids])]


def whole(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)


def byte_tokens(tokenizer: PreTrainedTokenizerFast, text: bytes) -> list[int]:
    """Each byte as a token of its own."""
    if tokenizer is BYTE_LEVEL:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        return tokenizer.convert_tokens_to_ids([bytes_to_unicode()[byte] for byte in text])
    return tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in text])


TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [BYTE_LEVEL, sentencepiece_like()], ids=["byte-level", "byte-fallback"]
)


def test_words_keep_their_spaces_and_special_tokens_their_names() -> None:
    ids = [*BYTE_LEVEL.encode(" the sky", add_special_tokens=False), BYTE_LEVEL.convert_tokens_to_ids(IM_END)]
    assert texts(BYTE_LEVEL, ids) == [" the", " sky", "<|im_end|>"]
    llama = sentencepiece_like()
    ids = llama.convert_tokens_to_ids(["▁the", "▁sky", "s", "</s>"])
    assert texts(llama, ids) == ["the", " sky", "s", "</s>"]


@TOKENIZERS
def test_a_character_is_where_its_last_byte_is(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = byte_tokens(tokenizer, "a天🙂é".encode())
    assert texts(tokenizer, ids) == ["a", "", "", "天", "", "", "", "🙂", "", "é"]


@TOKENIZERS
def test_bytes_that_never_become_a_character_are_seen_where_they_stand(tokenizer: PreTrainedTokenizerFast) -> None:
    (the,) = tokenizer.convert_tokens_to_ids(["Ġthe" if tokenizer is BYTE_LEVEL else "▁the"])
    ids = [*byte_tokens(tokenizer, b"\xe4"), the, *byte_tokens(tokenizer, b"\xe5\xa4")]
    found = texts(tokenizer, ids)
    assert found[:2] == ["�", " the"]
    assert set(found[2] + found[3]) == {"�"}
    assert "".join(found) == whole(tokenizer, ids)


@TOKENIZERS
def test_any_tokens_join_to_the_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    """Random tokens, as an untrained student writes them: half of the bytes make no sense."""
    chance = random.Random(1)
    for length in (0, 1, 2, 7, 60):
        for _ in range(30):
            ids = [chance.randrange(len(tokenizer)) for _ in range(length)]
            assert "".join(texts(tokenizer, ids)) == whole(tokenizer, ids)


@TOKENIZERS
def test_texts_are_those_of_growing_prefixes(tokenizer: PreTrainedTokenizerFast) -> None:
    """The oracle: what the text so far and the whole text have in common, each prefix decoded from its start."""
    chance = random.Random(2)
    alphabet = ["天", "é", "🙂", "x", " ", "é的", "s"]
    for _ in range(20):
        text = "".join(chance.choice(alphabet) for _ in range(12)).encode()
        ids = byte_tokens(tokenizer, text)
        complete, told, expected = whole(tokenizer, ids), 0, []
        for end in range(1, len(ids) + 1):
            so_far = whole(tokenizer, ids[:end])
            same = next((i for i, (a, b) in enumerate(zip(so_far, complete, strict=False)) if a != b), len(so_far))
            expected.append(complete[told : max(same, told)])
            told = max(same, told)
        assert texts(tokenizer, ids) == expected


@TOKENIZERS
def test_what_another_token_would_have_added(tokenizer: PreTrainedTokenizerFast) -> None:
    """In its place: the same bytes before it, which it may complete to another character."""
    the = tokenizer.convert_tokens_to_ids("Ġthe" if tokenizer is BYTE_LEVEL else "▁the")
    stop = tokenizer.eos_token_id
    ids = [the, *byte_tokens(tokenizer, "天".encode()), the]
    last_byte = byte_tokens(tokenizer, "大".encode())[-1]
    others = [[the], [the, stop], [the], [last_byte, ids[3]], [the, stop, last_byte]]
    found = [would for _, would in texts_of(tokenizer, ids, others)]
    first = " the" if tokenizer is BYTE_LEVEL else "the"
    assert found[0] == (first,)
    assert found[1] == (" the", tokenizer.eos_token)
    assert found[3] == ("大", "天")
    assert found[4][:2] == (" the", tokenizer.eos_token)


def test_a_token_may_end_one_character_and_begin_another() -> None:
    """Byte-level vocabularies have a space with the first byte of what follows."""
    vocab = {byte: i for i, byte in enumerate(["Ġ", "å", "¤", "©", "§", "Ġå"])}  # E5 A4 A9 is 天, E5 A4 A7 is 大
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "å")]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer.convert_tokens_to_ids(["Ġå", "¤", "©", "Ġå", "¤", "©"])
    would_be = tokenizer.convert_tokens_to_ids("§")
    assert list(texts_of(tokenizer, ids, [[would_be]] * 6))[1:] == [
        ("", ("�",)), ("天", ("大",)), (" ", ("�",)), ("", ("�",)), ("天", ("大",))
    ]  # fmt: skip


def test_the_work_grows_with_the_length_not_with_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, decoded = make_tokenizer(), []
    plain = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **settings: decoded.append(len(ids)) or plain(ids, **settings))
    chance = random.Random(3)
    list(texts_of(tokenizer, [chance.randrange(len(tokenizer)) for _ in range(2000)], [[] for _ in range(2000)]))
    assert sum(decoded) < 20 * 2000
