"""On-policy distillation on one page: the whole method, with transformers and torch alone.

    python examples/minimal.py --student Qwen/Qwen3-0.6B --teacher Qwen/Qwen3-1.7B

The student writes. The teacher reads what it wrote and says, at every token, which distribution it would have drawn
from. The student is moved towards that, on its own text. local_distill does the same, in less memory and time.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTIONS = ["Why is the sky blue?", "How does bread rise?", "Name three rivers in Asia.", "What is a prime number?"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True, help="with the student's tokenizer")
    parser.add_argument("--loss", choices=LOSSES, default="reverse_kl")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--group_size", type=int, default=2, help="completions of each prompt")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.student)
    student = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32).to(device)
    teacher = AutoModelForCausalLM.from_pretrained(args.teacher).to(device)
    optimizer = make_optimizer(student, args.learning_rate)
    torch.manual_seed(0)
    for step in range(1, args.steps + 1):
        # 1. The student answers some prompts, several times each, by its own policy.
        rollouts = [
            (prompt, sample(student, prompt, args.max_new_tokens, tokenizer.eos_token_id))
            for prompt in (render(tokenizer, question) for question in QUESTIONS)
            for _ in range(args.group_size)
        ]
        # 2. The teacher marks every token, and 3. the student learns from the marks.
        loss, divergence = update(student, teacher, optimizer, rollouts, LOSSES[args.loss])
        text = tokenizer.decode(rollouts[0][1]).replace("\n", " ")
        print(f"step {step:3}  reverse KL {divergence:.3f}  loss {loss:.3f}  {text[:60]}", flush=True)


def render(tokenizer, question):
    """Token ids of a prompt, chat template included where the model has one."""
    if tokenizer.chat_template is None:
        return tokenizer(question).input_ids
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False, enable_thinking=False)


@torch.no_grad()
def sample(student, prompt, max_new_tokens, stop_id):
    """A completion, drawn token by token from the student's whole distribution: its ids, the stop token included."""
    completion, cache = [], None
    ids = torch.tensor([prompt], device=student.device)
    while len(completion) < max_new_tokens and stop_id not in completion:
        out = student(ids, past_key_values=cache, use_cache=True)
        ids, cache = torch.multinomial(out.logits[:, -1].softmax(-1), 1), out.past_key_values
        completion.append(ids.item())
    return completion


def log_distributions(model, prompt, completion):
    """log p(· | prompt, y_<t) at each token y_t of the completion: (T, vocabulary), nats."""
    logits = model(torch.tensor([prompt + completion], device=model.device)).logits[0].float()
    # What stands at a position predicts the next token: the first y is predicted by the prompt's last token.
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def reverse_kl(log_p, log_q, _completion):
    """KL(p‖q) = Σ_v p_v (log p_v − log q_v) at each token: exact, and with no noise from which token was drawn."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def policy_gradient(log_p, log_q, completion):
    """The published form, of the drawn tokens alone: −A_t · log p(y_t), with A_t = log q(y_t) − log p(y_t).

    Its expected gradient over the student's own samples is that of reverse_kl; what differs is the noise.
    """
    drawn = torch.tensor(completion, device=log_p.device)[:, None]
    log_p, log_q = log_p.gather(1, drawn)[:, 0], log_q.gather(1, drawn)[:, 0]
    advantage = (log_q - log_p).detach()
    return -advantage * log_p


LOSSES = {"reverse_kl": reverse_kl, "policy_gradient": policy_gradient}


def make_optimizer(student, learning_rate):
    return torch.optim.AdamW(student.parameters(), lr=learning_rate, weight_decay=0.0)


def update(student, teacher, optimizer, rollouts, loss_of):
    """One step of the optimizer on rollouts, (prompt ids, completion ids). Returns the loss and the reverse KL."""
    tokens = sum(len(completion) for _, completion in rollouts)  # only completions train, never prompts
    total = divergence = 0.0
    for prompt, completion in rollouts:
        with torch.no_grad():
            log_q = log_distributions(teacher, prompt, completion)
        log_p = log_distributions(student, prompt, completion)
        loss = loss_of(log_p, log_q, completion).sum() / tokens
        loss.backward()  # gradients of all rollouts add up
        total += loss.item()
        divergence += reverse_kl(log_p.detach(), log_q, completion).sum().item() / tokens
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total, divergence


if __name__ == "__main__":
    main()
