"""Settings of a saved model as older programs spell them: transformers 4, and servers and converters of its time.

transformers 5 writes ``rope_parameters`` and no ``rope_theta``, without which those compute with a theta of 10,000 and
say nothing of it; it names a class of tokenizers that they do not have. Both spellings go into the files where both
can be there. Of a name it is asked by trial whether the configuration's class knows it: what it does not know it
would keep as a setting of its own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
MOVED = ("rope_theta", "partial_rotary_factor")
"""Of ``rope_parameters``, what was beside ``rope_scaling`` and not in it."""
OLDER_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Of rotary embeddings, those of transformers 4."""
OF_PHI = ("phi3", "phi4_multimodal")
"""Models whose own check in transformers 4 takes a ``rope_scaling`` of three entries and no more."""


def spell_for_older_readers(folder: Path, config: PreTrainedConfig) -> None:
    """Add the older spellings to what ``save_pretrained`` wrote into ``folder``; transformers 5 reads it as before.

    config: of the model that was saved. A folder without one of the files, as an adapter's, is left as it is there.
    """
    if (folder / CONFIG).is_file():
        _rewrite(folder / CONFIG, lambda written: with_older_names(written, config))
    if (folder / TOKENIZER).is_file():
        _rewrite(folder / TOKENIZER, tokenizer_for_older_readers)


def with_older_names(written: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Return the dictionary of a configuration, those inside it too, with each older name that its class knows."""
    result = dict(written)
    for name, value in written.items():
        if isinstance(value, dict) and isinstance(inner := getattr(config, name, None), PreTrainedConfig):
            result[name] = with_older_names(value, inner)
    older: dict[str, Any] = {}
    for name, value in _older_names(written):
        if name not in written and _changes_nothing({**older, name: value}, config):
            older[name] = value
    return result | older


def tokenizer_for_older_readers(written: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer's settings with the older names of its class and of its further special tokens."""
    result = dict(written)
    if result.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = "PreTrainedTokenizerFast"  # in transformers 5 the same class
    if isinstance(result.get("extra_special_tokens"), list):  # transformers 4 takes a dictionary, and fails on a list
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    return result


def _changes_nothing(older: dict[str, Any], config: PreTrainedConfig) -> bool:
    """Say whether the configuration reads the same with these beside its own settings."""
    settings = config.to_dict()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # of what is only tried, nobody needs to hear
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = [type(config).from_dict(deepcopy(each)) for each in (settings, settings | older)]
    finally:
        logging.set_verbosity(verbosity)
    same = [each.to_dict() for each in read]
    for each in same:
        (each.get("rope_parameters") or {}).pop("type", None)  # what rope_type was called, and may still be beside it
    return bool(same[0] == same[1])


def _older_names(written: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every older name of what is in the dictionary, whichever models used it."""
    if "dtype" in written:
        yield "torch_dtype", written["dtype"]
    rope = written.get("rope_parameters") or {}
    everywhere = rope.get("full_attention", rope) or {}
    sliding = rope.get("sliding_attention") or {}
    for names, value in (
        (("rope_theta", "rotary_emb_base", "global_rope_theta"), everywhere.get("rope_theta")),
        (("partial_rotary_factor", "rotary_pct"), everywhere.get("partial_rotary_factor")),
        (("rope_local_base_freq", "local_rope_theta", "swa_rope_theta"), sliding.get("rope_theta")),
    ):
        yield from ((name, value) for name in names if value is not None)
    if everywhere.get("rope_type") in OLDER_KINDS:
        scaling = {name: value for name, value in everywhere.items() if name not in MOVED}
        if written.get("model_type") in OF_PHI and "short_factor" in scaling:
            factors = {name: scaling[name] for name in ("short_factor", "long_factor")}
            scaling = {"type": scaling["rope_type"], **factors}
        yield "rope_scaling", None if scaling == {"rope_type": "default"} else scaling


def _rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    written = json.loads(file.read_text(encoding="utf-8"))
    changed = change(written)
    if changed != written:
        text = json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
