"""On-policy distillation on one page: the whole method, with transformers and torch alone.

    python examples/minimal.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-4B

The student p, a small model, answers prompts by its own policy. The teacher q, a large one, reads the answers and says
at every token what it would have written there. The student takes a step towards that, at the very places to which its
own answers y, mistakes included, have led it. What goes down is the reverse KL, in nats (docs/method.md derives it):

    KL(p‖q) = E_{y~p} Σ_t [ log p(y_t | prompt, y_<t) − log q(y_t | prompt, y_<t) ]
"""

import argparse

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["Why is the sky blue?", "How does bread rise?", "Name three rivers in Asia.", "What is a prime number?"]
BATCH, GROUP, NEW_TOKENS = 4, 4, 64  # prompts a step, completions of each prompt, tokens of the longest completion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder or hub id")
    parser.add_argument("--teacher", required=True, help="folder or hub id of a model with the same tokenizer")
    parser.add_argument("--loss", choices=("reverse_kl", "policy_gradient"), default="reverse_kl")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    args = parser.parse_args()
    device, names = "cuda" if torch.cuda.is_available() else "cpu", (args.student, args.teacher)
    tokenizer, other = (AutoTokenizer.from_pretrained(name) for name in names)
    if tokenizer.get_vocab() != other.get_vocab():
        parser.error("the tokenizers differ: an id of the student's is another token to this teacher")
    student, teacher = (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device) for name in names)
    vocab = min(student.config.vocab_size, teacher.config.vocab_size)  # what one head has beyond is padding
    ends = (each.eos_token_id for each in (tokenizer, other, student.generation_config, teacher.generation_config))
    stop = torch.cat([torch.tensor(each).flatten() for each in ends if each is not None]).to(device)
    prompts = [torch.tensor(render(tokenizer, text), device=device) for text in PROMPTS]
    adam = AdamW(student.parameters(), lr=args.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(args.steps):
        # 1. The student answers some prompts, several times each, by its own policy.
        batch = [prompts[(step * BATCH + i) % len(prompts)] for i in range(BATCH)]
        draws = torch.rand(BATCH, GROUP, NEW_TOKENS, generator=generator, dtype=torch.float64)
        rollouts = [(x, *sample(student, x, u, stop, vocab)) for x, u in zip(batch, draws, strict=True)]
        # 2. The teacher judges every token, and 3. the student learns from that.
        loss, divergence, n = update(student, teacher, adam, rollouts, vocab, args.loss)
        text = tokenizer.decode(rollouts[0][1][0])[:60]
        print(f"step {step + 1:3}  reverse KL {divergence:.3f}  loss {loss:.3f}  {n} tokens  {text!r}", flush=True)


def render(tokenizer, text: str) -> list[int]:
    """Token ids of a prompt: a chat where the model has a template, without a chain of thought; else the text alone."""
    if tokenizer.chat_template is None:
        return tokenizer(text).input_ids
    chat = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False, enable_thinking=False)


@torch.no_grad()
def sample(student: nn.Module, prompt: Tensor, draws: Tensor, stop: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Completions (G, T) of one prompt (L,), and which of their tokens count: up to the stop token, and that too."""
    ids, cache = prompt.expand(len(draws), -1), None
    for draw in draws.to(prompt.device).T:  # (G,): a number in [0, 1) decides each row's next token
        out = student(input_ids=ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True)
        cache, p = out.past_key_values, out.logits[:, -1, :vocab].float().softmax(-1)
        cumulative = p.double().cumsum(-1)  # temperature 1, no top-p: token v with probability p_v, as E_{y~p} asks
        token = torch.searchsorted(cumulative, draw[:, None] * cumulative[:, -1:], right=True)
        ids = torch.cat([ids, token], 1)
        stops = torch.isin(ids[:, len(prompt) :], stop)
        if stops.any(1).all():
            break
    return ids[:, len(prompt) :], stops.cumsum(1) - stops.long() == 0


def logprobs(model: nn.Module, prompt: Tensor, completion: Tensor, vocab: int) -> Tensor:
    """log p(v | prompt, y_<t) of every token v, at every place t of the completions: (G, T, V), at temperature 1."""
    ids = torch.cat([prompt.expand(len(completion), -1), completion], 1)
    # What stands at a place predicts the next token: the first of the completion is predicted by the prompt's last.
    return model(input_ids=ids).logits[:, len(prompt) - 1 : -1, :vocab].float().log_softmax(-1)


def reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_v p_v (log p_v − log q_v) at each place, (n,): exact, with no noise from which token was drawn."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def policy_gradient(log_p: Tensor, log_q: Tensor, y: Tensor) -> Tensor:
    """−A_t · s_t, (n,): the published form, for teachers that give q_t alone, their log-prob of the token y_t drawn.

    Its expected gradient over the student's own samples is that of ``reverse_kl``; what differs is the noise.
    """
    s, q = (each.gather(-1, y[:, None]).squeeze(-1) for each in (log_p, log_q))
    advantage = -(s - q).detach()  # A_t: positive where the teacher likes the token better than the student does
    return -advantage * s


def update(student: nn.Module, teacher: nn.Module, adam: AdamW, rollouts: list, vocab: int, kind: str) -> tuple:
    """Take a step down the loss; returns the loss and the reverse KL (nats per token) before it, and N."""
    n = sum(int(counts.sum()) for _, _, counts in rollouts)  # completion tokens of the whole step, and no others
    total = divergence = 0.0
    for prompt, completion, counts in rollouts:  # a group at a time, to save memory: the gradients add up
        log_p, y = logprobs(student, prompt, completion, vocab)[counts], completion[counts]  # (n, V), (n,)
        with torch.no_grad():
            log_q = logprobs(teacher, prompt, completion, vocab)[counts]
        kl = reverse_kl(log_p, log_q)
        loss = (kl if kind == "reverse_kl" else policy_gradient(log_p, log_q, y)).sum() / n  # each token weighs 1/N
        loss.backward()
        total, divergence = total + loss.item(), divergence + kl.sum().item() / n
    nn.utils.clip_grad_norm_(student.parameters(), max_norm=1.0)
    adam.step()
    adam.zero_grad()
    return total, divergence, n


if __name__ == "__main__":
    main()
