"""The whole command on tiny models, against transformers' own decoding and the dense formula."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from local_distill.commands import main
from local_distill.eval import questions_and_model as eval_inputs
from local_distill.eval.held_out import DRAW
from local_distill.eval.statistics import mean_over_questions, paired_difference
from local_distill.eval.verifying import ContainsVerifier
from local_distill.models.files import ModelFiles
from local_distill.models.trained import Trained
from local_distill.process.seeding import rollout_stream
from tests.fake_vllm import FakeVLLM
from tests.serving.protocol_server import serving
from tests.tiny_models import make_tokenizer

QUESTIONS = ["why is the sky blue", "what is tea", "how quick is a fox", "why rain", "what is lazy"]
NEW = 8


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """``evaluate(output, *words) -> (exit code, results, answers, printed)``."""
    monkeypatch.chdir(tmp_path)

    def run(output, *given):
        capsys.readouterr()
        common = ["--max_new_tokens", str(NEW), "--prompt_template", "{question}", "--output", output]
        code = main(["eval", *map(str, given), *common])
        folder = tmp_path / output
        results = json.loads((folder / "results.json").read_text()) if (folder / "results.json").exists() else None
        lines = (folder / "answers.jsonl").read_text().splitlines() if (folder / "answers.jsonl").exists() else []
        return code, results, [json.loads(line) for line in lines], capsys.readouterr()

    return run


def greedy(folder):
    """What the model answers, by transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), make_tokenizer()
    texts = []
    for question in QUESTIONS:
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
        )
        texts.append(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.fixture
def questions(folders, tmp_path):
    """Three of them expect what the student says, two something else."""
    said = greedy(folders["student"])
    expected = [text if place < 3 else "zebra" for place, text in enumerate(said)]
    file = tmp_path / "questions.jsonl"
    rows = zip(QUESTIONS, expected, strict=True)
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return file


def test_greedy_answers_are_transformers_own_and_the_shares_add_up(evaluate, folders, questions):
    code, results, answers, printed = evaluate(
        "out", folders["student"], "--dataset", questions, "--answers", "contains"
    )
    assert code == 0
    assert [answer["completion"] for answer in answers] == greedy(folders["student"])
    assert [answer["correct"] for answer in answers] == [True] * 3 + [False] * 2
    found = results["models"][str(folders["student"])][str(questions)]
    mean, error = mean_over_questions([1, 1, 1, 0, 0])
    assert (found["accuracy"], found["accuracy_se"]) == pytest.approx((mean, error))
    assert found["length"] == sum(answer["tokens"] for answer in answers) / 5
    assert found["truncated"] == sum(answer["finish"] == "length" for answer in answers) / 5
    assert f"60.0 % ± {100 * error:.1f}" in printed.out


def test_samples_do_not_depend_on_how_many_are_drawn_at_a_time(evaluate, folders, questions):
    sampled = ["--dataset", questions, "--answers", "contains", "--samples", "3", "--temperature", "0.9"]
    _, one, answers, _ = evaluate("one", folders["student"], *sampled, "--sampling_batch_size", "1")
    _, many, same, _ = evaluate("many", folders["student"], *sampled)
    assert answers == same
    assert one["models"] == many["models"]
    assert [(answer["question"], answer["sample"]) for answer in answers] == [
        (q, s) for q in range(5) for s in range(3)
    ]
    assert len({answer["completion"] for answer in answers}) > 5
    right = [sum(a["correct"] for a in answers if a["question"] == q) / 3 for q in range(5)]
    (found,) = next(iter(one["models"].values())).values()
    assert (found["accuracy"], found["accuracy_se"]) == pytest.approx(mean_over_questions(right))
    assert found["pass@3"] == pytest.approx(sum(share > 0 for share in right) / 5)


def test_two_models_are_compared_question_by_question(evaluate, folders, questions):
    before, after = folders["teacher"], folders["student"]
    _, results, answers, printed = evaluate("out", before, after, "--dataset", questions, "--answers", "contains")
    right = [[int(a["correct"]) for a in answers if a["model"] == str(model)] for model in (before, after)]
    (found,) = results["differences"]
    expected = paired_difference(*right, 1)
    assert (found["baseline"], found["model"]) == (str(before), str(after))
    assert (found["difference"], found["standard_error"], found["p_value"]) == pytest.approx(tuple(expected))
    assert re.search(rf"  p +{expected.p_value:.2f}\b", printed.out)


def sampled(folders):
    """At each token that the student draws for the questions: the exact reverse KL, and s − q of the drawn token."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(folders[name]).eval() for name in ("student", "teacher"))
    tokenizer, exact, drawn = make_tokenizer(), [], []
    for place, question in enumerate(QUESTIONS):
        ids = list(tokenizer(question)["input_ids"])
        for uniform in rollout_stream(NEW, 0, DRAW, place, 0):
            with torch.no_grad():
                p, q = (m(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1) for m in (student, teacher))
            ids.append(int(torch.searchsorted(p.exp().cumsum(0), uniform, right=True)))
            exact.append(float((p.exp() * (p - q)).sum()))
            drawn.append(float(p[ids[-1]] - q[ids[-1]]))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return exact, drawn


def test_the_reverse_kl_is_that_of_the_dense_formula_on_the_models_own_samples(evaluate, folders, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS))
    asked = [folders["student"], "--prompts_file", "prompts.txt"]
    exact, drawn = sampled(folders)
    code, results, _, _ = evaluate("out", *asked, "--teacher_model", folders["teacher"])
    assert code == 0
    (found,) = next(iter(results["models"].values())).values()
    assert found["reverse_kl"] == pytest.approx(sum(exact) / len(exact), rel=1e-4)
    assert found["length"] == pytest.approx(len(exact) / 5)
    assert "accuracy" not in found
    with serving(AutoModelForCausalLM.from_pretrained(folders["teacher"]).eval(), make_tokenizer()) as server:
        code, results, _, _ = evaluate("served", *asked, "--teacher_url", server.url)
    assert code == 0
    (found,) = next(iter(results["models"].values())).values()
    assert found["reverse_kl"] == pytest.approx(sum(drawn) / len(drawn), rel=1e-4)


def test_a_teacher_that_is_here_is_loaded_once_for_all_models(evaluate, folders, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS))
    loaded, load = [], ModelFiles.load

    def counted(self, *given):
        loaded.append(self.path)
        return load(self, *given)

    monkeypatch.setattr(ModelFiles, "load", counted)
    models = [folders["student"], folders["gpt2"]]
    code, results, *_ = evaluate("out", *models, "--prompts_file", "prompts.txt", "--teacher_model", folders["teacher"])
    assert code == 0
    assert all(found["prompts.txt"]["reverse_kl"] > 0 for found in results["models"].values())
    assert loaded == [str(folders[name]) for name in ("student", "teacher", "gpt2")]


def test_the_teacher_may_be_the_model_under_the_adapter(evaluate, folders, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folders["student"])
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "prompts.txt").write_text("\n".join(QUESTIONS))
    asked = ["adapter", "--prompts_file", "prompts.txt", "--teacher_model"]
    found = [evaluate(name, *asked, teacher)[1] for name, teacher in (("a", "self"), ("b", folders["student"]))]
    own, named = (results["models"]["adapter"]["prompts.txt"]["reverse_kl"] for results in found)
    assert own == pytest.approx(named, rel=1e-4)
    assert own > 0.01
    code, *_, printed = evaluate("c", folders["student"], *asked[1:], "self")
    assert code == 2
    assert "has no adapter" in printed.err


def test_stopped_in_the_middle_it_goes_on_and_ends_where_an_unbroken_one_does(
    evaluate, folders, questions, monkeypatch, tmp_path
):
    words = [
        folders["teacher"], folders["student"], "--dataset", questions, "--answers", "contains", "--teacher_model",
        folders["teacher"], "--sampling_batch_size", "2",
    ]  # fmt: skip
    evaluate("whole", *words)
    verdict, asked = ContainsVerifier.verdict, []

    def interrupted(self, completion, reference):
        asked.append(completion)
        if len(asked) == 8:
            raise KeyboardInterrupt
        return verdict(self, completion, reference)

    monkeypatch.setattr(ContainsVerifier, "verdict", interrupted)
    code, *_, printed = evaluate("broken", *words)
    assert code == 130
    assert "the same command with --output broken goes on from here" in printed.out
    kept = len((tmp_path / "broken" / "answers.jsonl").read_text().splitlines())
    assert kept == 7  # five of the first model, two of the second
    evaluate("broken", *words)
    assert len(asked) == 8 + 3
    for name in ("answers.jsonl", "reverse_kl.jsonl", "results.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert evaluate("broken", *words)[0] == 0
    assert len(asked) == 11


def test_other_questions_in_the_same_file_are_refused(evaluate, folders, questions):
    words = [folders["student"], "--dataset", questions, "--answers", "contains"]
    evaluate("out", *words)
    questions.write_text(questions.read_text().replace("zebra", "lion"))
    code, *_, printed = evaluate("out", *words)
    assert code == 2
    assert "has answers with questions" in printed.err


def test_a_server_samples_and_no_weights_are_loaded(evaluate, folders, questions, monkeypatch):
    fake = FakeVLLM(300, make_tokenizer().encode)
    logprobs = {"tokens": [f"token_id:{i}" for i in (5, 6, 0)], "token_logprobs": [-1.0] * 3}
    fake.change = lambda choice: choice.update(token_ids=[5, 6, 0], logprobs=logprobs)
    monkeypatch.setattr(Trained, "load", None)
    words = ["--dataset", questions, "--answers", "contains", "--rollouts_url", fake.url]
    code, _, answers, printed = evaluate("out", folders["student"], *words)
    bodies = fake.bodies("/v1/completions")
    fake.close()
    assert code == 0
    assert sorted(tuple(body["prompt"]) for body in bodies) == sorted(
        tuple(make_tokenizer()(question)["input_ids"]) for question in QUESTIONS
    )
    assert all(body["model"] == "base" and body["top_p"] < 1e-6 and body["max_tokens"] == NEW for body in bodies)
    said = make_tokenizer().decode([5, 6])  # without its end token
    assert [(a["completion"], a["tokens"], a["finish"], a["engine"]) for a in answers] == [
        (said, 3, "stop", "vllm")
    ] * 5
    assert "where it is called base" in printed.out
    code, *_, printed = evaluate("two", folders["student"], folders["teacher"], *words)
    assert code == 2
    assert "serves one model, and 2 MODELs" in printed.err
    # Answered by a server before, it is compared without one.
    code, *_ = evaluate("out", folders["student"], *words[:-2])
    assert code == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "--dataset: not given, needs questions to ask"),
        (["--prompts_file", "prompts.txt"], "prompts.txt: has no answers to verify, and there is no --teacher_model"),
        (["--dataset", "questions.jsonl", "--samples", "4"], "--samples: 4 given with greedy decoding"),
        (["--dataset", "questions.jsonl", "--rollouts", "vllm"], "--rollouts vllm: needs --rollouts_url"),
        (["--dataset", "questions.jsonl", "--temperature", "-1"], "--temperature: -1 given"),
        (["--dataset", "questions.jsonl", "--max_new_tokens", "125"], "questions.jsonl:1 has 6 tokens"),
        (["--dataset", "questions.jsonl", "--teacher_model", "OTHER"], "its tokenizer differs from the student's"),
        (["--dataset", "questions.jsonl", "--system_prompt", "x"], "--system_prompt: needs a chat template"),
        (["--dataset", "questions.jsonl", "--prompt_template", "no"], "has no {question} in it"),
        (["--dataset", "unreadable.jsonl"], "unreadable.jsonl:2: the answer '?' cannot be read"),
        (["--tasks_path", ".", "--dataset", "questions.jsonl"], "--tasks_path: given without --tasks"),
    ],
)
def test_mistakes_are_told_in_one_line_before_weights_are_loaded(folders, flags, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("why rain\n")
    (tmp_path / "questions.jsonl").write_text('{"question": "a b c d", "answer": "1"}\n')
    (tmp_path / "unreadable.jsonl").write_text('{"question": "a", "answer": "1"}\n{"question": "b", "answer": "?"}\n')
    monkeypatch.setattr(Trained, "load", None)
    flags = [str(folders["other_tokenizer"]) if flag == "OTHER" else flag for flag in flags]
    template = [] if "--prompt_template" in flags else ["--prompt_template", "{question}"]
    assert main(["eval", str(folders["student"]), *flags, *template, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("error:")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_model_twice_is_a_mistake(evaluate, questions):
    code, *_, printed = evaluate("out", "x", "x", "--dataset", questions)
    assert code == 2
    assert "MODEL: x is given twice" in printed.err


def test_mathematics_is_asked_for_in_a_box_and_the_verifier_ends_with_the_evaluation(
    folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums.jsonl").write_text('{"question": "1+1", "answer": 2}\n')
    opened, open_verifier = [], eval_inputs.open_verifier

    def opening(kind):
        opened.append(open_verifier(kind))
        return opened[0]

    monkeypatch.setattr(eval_inputs, "open_verifier", opening)
    words = ["eval", str(folders["student"]), "--dataset", "sums.jsonl", "--max_new_tokens", "4", "--output", "out"]
    assert main(words) == 0
    (answer,) = map(json.loads, (tmp_path / "out" / "answers.jsonl").read_text().splitlines())
    assert answer["prompt"] == "1+1\n\nReason step by step, and put your final answer within \\boxed{}."
    assert opened[0]._worker is None
    assert "accuracy" in capsys.readouterr().out
