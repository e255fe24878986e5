"""A tokenizer of one token a byte, so that a test can count tokens by eye."""

import pytest
from tokenizers import Tokenizer, decoders, models, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from local_distill.prompts import RawPrompt, RawPrompts

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if shout %}!{% endif %}{% endif %}"
)


def byte_tokenizer(*, template=None, bos=False, eos=False):
    """bos, eos: put that special token around every text, as some tokenizers do."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""),
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer():
    return byte_tokenizer


@pytest.fixture(scope="session")
def template():
    return TEMPLATE


@pytest.fixture(scope="session")
def make_raw():
    """Texts as the prompts of a source, numbered in their origins."""

    def make(texts, **kw):
        rows = [RawPrompt(({"role": "user", "content": t},), f"src:{i}") for i, t in enumerate(texts)]
        return RawPrompts(rows, name="src", **kw)

    return make
