"""How well models write functions that none was trained on, given their docstrings: nats a token of code.

python examples/repair/code_loss.py runs/repair/code_loss.json MODEL [MODEL ...]
"""

import argparse
import json
import random
from pathlib import Path

import torch
from torch.nn import functional as F

from local_distill.demo.functions import IGNORED, batch, held_out_functions
from local_distill.models.trained import open_trained

FUNCTIONS, MOST_TOKENS, AT_A_TIME = 96, 96, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="JSON file to write, or to add what is missing in it to")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder of a model, an adapter or a run")
    arguments = parser.parse_args()
    found = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {}
    for model in arguments.models:
        if model not in found:
            found[model] = code_loss(model)
            arguments.output.write_text(json.dumps(found), encoding="utf-8")


@torch.no_grad()
def code_loss(path: str) -> list[tuple[float, int]]:
    """Of each function, the sum of its tokens' losses (nats) and how many there are."""
    trained = open_trained("MODEL", path)
    model, tokenizer = trained.load(torch.float32), trained.files.tokenizer
    functions = held_out_functions()
    random.Random(0).shuffle(functions)
    functions = functions[:FUNCTIONS]
    found = []
    for start in range(0, len(functions), AT_A_TIME):
        ids, labels = batch(tokenizer, functions[start : start + AT_A_TIME], MOST_TOKENS)
        logits = model(input_ids=ids).logits[:, :-1]
        losses = F.cross_entropy(logits.mT, labels[:, 1:], ignore_index=IGNORED, reduction="none")  # (B, L − 1) nats
        found += list(zip(losses.double().sum(1).tolist(), (labels != IGNORED).sum(1).tolist(), strict=True))
    return found


if __name__ == "__main__":
    main()
