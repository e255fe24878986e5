"""Questions out of every layout that the known sets have, and out of files of the user's own."""

import json

import pytest
from datasets import Dataset

from local_distill.config.train_fields import TrainFields
from local_distill.errors import UserError
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.tasks import asked, is_written, open_tasks, readable
from local_distill.eval.verifying import ExactVerifier
from local_distill.prompts import PromptSource, RawPrompt, Renderer, open_prompts
from tests.tiny_models import make_tokenizer


def opened(dataset=None, path=None, split=None, prompts_file=None, question=None, answer=None, limit=None, seed=0):
    settings = EvalSettings(
        models=("model",), dataset=dataset, dataset_path=path and str(path), dataset_split=split,
        prompts_file=prompts_file, question_column=question, answer_column=answer, limit=limit, seed=seed,
    )  # fmt: skip
    return open_tasks(settings)


def rows(task):
    return [(question.text, question.answer) for question in task.questions]


def write_lines(file, records):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


@pytest.fixture
def gsm8k(tmp_path):
    """Two subsets side by side, as the hub has them."""
    for subset in ("main", "socratic"):
        (tmp_path / "copy" / subset).mkdir(parents=True)
        for split in ("train", "test"):
            table = Dataset.from_list(
                [{"question": f"{subset} {split} {i}?", "answer": f"… #### {i}"} for i in range(3)]
            )
            table.to_parquet(tmp_path / "copy" / subset / f"{split}-00000-of-00001.parquet")
    return tmp_path / "copy"


def test_gsm8k_is_the_test_split_of_its_main_subset(gsm8k):
    (task,) = opened("gsm8k", gsm8k)
    assert rows(task) == [(f"main test {i}?", f"… #### {i}") for i in range(3)]
    assert task.verified
    assert rows(opened("gsm8k", gsm8k / "main", limit=1)[0]) == [("main test 0?", "… #### 0")]
    assert rows(opened("gsm8k", gsm8k, split="train")[0])[0] == ("main train 0?", "… #### 0")


@pytest.mark.parametrize(
    ("name", "file", "row", "expected"),
    [
        ("math500", "test.jsonl", {"problem": "p", "solution": "long", "answer": r"\frac12"}, ("p", r"\frac12")),
        ("aime24", "train.jsonl", {"ID": "I-1", "Problem": "p", "Solution": "long", "Answer": 204}, ("p", "204")),
        ("aime25", "test.jsonl", {"problem": "p", "answer": "70", "id": "0"}, ("p", "70")),
    ],
)
def test_the_other_sets_by_their_own_columns(tmp_path, name, file, row, expected):
    write_lines(tmp_path / "copy" / file, [row])
    assert rows(opened(name, tmp_path / "copy")[0]) == [expected]


def test_deepmath_begins_with_what_a_run_with_that_seed_would_train_on_last(tmp_path):
    file = write_lines(
        tmp_path / "train.jsonl", [{"question": f"question {i}", "final_answer": str(i)} for i in range(40)]
    )
    raw = open_prompts(TrainFields(dataset="deepmath", dataset_path=file))
    run = PromptSource.build(
        raw, Renderer(make_tokenizer()), seed=3, batch_size=6, steps=6, eval_prompts=4, max_prompt_tokens=99,
        max_new_tokens=9, context_length=None,
    )  # fmt: skip
    dealt = [prompt.origin for prompt in (*run.held_out, *run.training)]
    assert len(dealt) == 40
    (task,) = opened("deepmath", file, limit=5, seed=3)
    assert [question.origin for question in task.questions] == dealt[::-1][:5]
    assert all(question.text == f"question {question.answer}" for question in task.questions)


def test_a_file_of_questions_with_the_line_of_each(tmp_path):
    file = write_lines(tmp_path / "q.jsonl", [{"question": "1+1?", "answer": 2}, {"question": "2+2?", "answer": "4"}])
    (task,) = opened(file)
    assert rows(task) == [("1+1?", "2"), ("2+2?", "4")]
    assert [question.origin for question in task.questions] == ["q.jsonl:1", "q.jsonl:2"]


def test_columns_by_flags(tmp_path):
    file = write_lines(tmp_path / "q.jsonl", [{"prompt": "no", "ask": "yes", "solution": "1", "answer": "2"}])
    assert rows(opened(file, question="ask", answer="solution")[0]) == [("yes", "1")]
    assert rows(opened(file)[0]) == [("no", "2")]


def test_several_sources_in_their_order(tmp_path):
    a = write_lines(tmp_path / "a.jsonl", [{"question": "a", "answer": "1"}] * 3)
    b = write_lines(tmp_path / "b.jsonl", [{"problem": "b", "answer": "1"}] * 3)
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\ntwo\nthree\n")
    tasks = opened(f"{a}, {b}", prompts_file=str(prompts), limit=2)
    assert [len(task.questions) for task in tasks] == [2, 2, 2]
    assert [task.verified for task in tasks] == [True, True, False]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"question": "a", "answer": "1"}\n{"question": "b"}\n', r"q.jsonl:2 has no answer and q.jsonl:1 has one"),
        ('{"question": "a", "answer": "1"}\n\n{"question": " ", "answer": "1"}\n', r"line 3: question asks nothing"),
        ('{"question": "a", "answer": "1"}\n{"problem": "b"}\n', r"line 2: no question; it has problem"),
        ('{"question": "a", "answer": "1"}\n[]\n', r"line 2: list given"),
        ("\n", r"no question in it"),
        ('{"text": "a"}\n', r"needs --question_column, the column to ask; it has text"),
    ],
)
def test_mistakes_in_a_file_are_told_by_their_line(tmp_path, content, reason):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(UserError, match=reason):
        opened(str(tmp_path / "q.jsonl"))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"dataset": "gsm9k"}, "did you mean gsm8k"),
        ({"dataset": "GSM8K"}, "did you mean gsm8k"),
        ({"dataset": "./nowhere.jsonl"}, "no such file, folder or data set"),
        ({"dataset": "gsm8k", "path": "nowhere"}, "--dataset_path nowhere: no such file or folder"),
        ({"dataset": "gsm8k,math500", "path": "."}, "given for 2 data sets"),
        ({"dataset": "aime24,aime24"}, "aime24 is named twice"),
    ],
)
def test_mistakes_in_the_flags(flags, reason):
    with pytest.raises(UserError, match=reason):
        opened(**flags)


def test_a_column_that_is_not_there(gsm8k):
    with pytest.raises(UserError, match=r"--answer_column solution: not there .*; it has question, answer"):
        opened("gsm8k", gsm8k, answer="solution")


def test_an_unreadable_answer_is_a_mistake_in_a_file_and_left_out_of_a_data_set(tmp_path):
    file = write_lines(tmp_path / "q.jsonl", [{"question": "a", "answer": "x"}, {"question": "b", "answer": "?"}])
    (task,) = opened(file)
    assert is_written(file)
    with pytest.raises(UserError, match=r"q.jsonl:2: the answer '\?' cannot be read"):
        readable(task, ExactVerifier(), must_read=True)
    left = readable(task, ExactVerifier(), must_read=False)
    assert rows(left) == [("a", "x")]
    assert "1 of 2 questions is left out" in left.notes[0]


def test_a_template_is_put_around_the_last_message_and_its_other_braces_stay():
    chat = RawPrompt(({"role": "user", "content": "hi"}, {"role": "user", "content": "2 {x} 2?"}), "here:1", "4")
    found = asked(chat, "{question} in \\boxed{}")
    assert [message["content"] for message in found.messages] == ["hi", "2 {x} 2? in \\boxed{}"]
    assert (found.origin, found.answer) == ("here:1", "4")
