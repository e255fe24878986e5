"""Prompts from data sets, read with the real `datasets` from folders laid out like the hub's."""

import dataclasses
import gzip
import json
import os
import subprocess
import sys

import pytest

from local_distill.config.builtin import NAMED_SOURCES
from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.tasks import open_tasks
from local_distill.prompts import open_prompts

datasets = pytest.importorskip("datasets")

MATH = [{"question": f"What is {i}?", "final_answer": i, "r1_solution": "long"} for i in range(5)]
CHAT = [
    {
        "id": str(i),
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": f"first {i}"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": f"second {i}"},
            {"role": "assistant", "content": "b"},
        ],
    }
    for i in range(3)
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def hub_folder(tmp_path):
    """Makes a folder in the hub's layout, data/SPLIT-00000-of-00001.parquet, with the rows in each split."""

    def make(rows, splits=("train",)):
        folder = tmp_path / "copy"
        (folder / "data").mkdir(parents=True)
        for split in splits:
            datasets.Dataset.from_list(rows).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        return folder

    return make


def opened(**settings):
    return open_prompts(TrainConfig(student_model="s", teacher_model="t", **settings))


def read(**kw):
    prompts = opened(**kw)
    return [prompts[i] for i in range(len(prompts))]


def refusal(**kw):
    with pytest.raises(UserError) as caught:
        read(**kw)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_training_and_evaluation_take_the_same_of_two_columns_with_answers(hub_folder):
    rows = [{"problem": "What is 1 + 1?", "Answer": "We add one and one, so it is 2.", "final_answer": "2"}] * 4
    folder = str(hub_folder(rows))
    trained = read(dataset=folder, prompt_column="problem")
    (asked,) = open_tasks(EvalSettings(models=("model",), dataset=folder, dataset_split="train"))
    assert [prompt.answer for prompt in trained] == [question.answer for question in asked.questions] == ["2"] * 4


def test_the_flag_names_the_sets_that_are_known():
    (field,) = (each for each in dataclasses.fields(TrainConfig) if each.name == "dataset")
    assert all(f"{name} ({known.hub_id})" in field.metadata["help"] for name, known in NAMED_SOURCES.items())


@pytest.mark.parametrize("name", ["deepmath", "zwhe99/DeepMath-103K"])
def test_deepmath_from_a_local_copy(hub_folder, name):
    prompts = read(dataset=name, dataset_path=str(hub_folder(MATH)))
    assert [p.messages for p in prompts] == [({"role": "user", "content": f"What is {i}?"},) for i in range(5)]
    assert [p.answer for p in prompts] == list("01234")
    assert prompts[3].origin == f"{name}[3]"


def test_tulu3_is_asked_its_first_user_turn_alone(hub_folder):
    prompts = read(dataset="tulu3", dataset_path=str(hub_folder(CHAT)))
    assert [p.messages for p in prompts] == [({"role": "user", "content": f"first {i}"},) for i in range(3)]


def test_another_set_keeps_the_chat_up_to_its_last_user_turn(hub_folder):
    folder = hub_folder(CHAT)
    prompts = read(dataset=str(folder), prompt_column="messages")
    assert [m["content"] for m in prompts[1].messages] == ["s", "first 1", "a", "second 1"]
    assert prompts[1].origin == "copy[1]"


def test_prompt_column_overrides_that_of_a_named_set(hub_folder):
    rows = [{"question": "q", "problem": "p"}]
    assert read(dataset="deepmath", dataset_path=str(hub_folder(rows)), prompt_column="problem")[0].text == "p"


def test_only_the_columns_that_are_needed_are_decoded(hub_folder):
    prompts = opened(dataset="deepmath", dataset_path=str(hub_folder(MATH)))
    assert prompts.rows.table.column_names == ["question", "final_answer"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_local_files(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    table = datasets.Dataset.from_list([{"q": "a?", "answer": "1"}, {"q": "b?", "answer": "2"}])
    {".parquet": table.to_parquet, ".csv": table.to_csv}.get(suffix, table.to_json)(path)
    prompts = read(dataset=str(path), prompt_column="q")
    assert [(p.text, p.answer, p.origin) for p in prompts] == [
        ("a?", "1", f"mine{suffix}[0]"),
        ("b?", "2", f"mine{suffix}[1]"),
    ]


@pytest.mark.parametrize("as_dict", [False, True])
def test_folders_made_by_save_to_disk(tmp_path, as_dict):
    table = datasets.Dataset.from_list(MATH)
    (datasets.DatasetDict(train=table, test=table.select([2])) if as_dict else table).save_to_disk(tmp_path / "d")
    where = {"dataset": "deepmath", "dataset_path": str(tmp_path / "d")}
    assert len(read(**where)) == 5
    if as_dict:
        assert [p.text for p in read(**where, dataset_split="test")] == ["What is 2?"]
    said = refusal(**where, dataset_split="dev")
    assert said.startswith("--dataset_split dev: ")
    assert said.endswith("it has train, test" if as_dict else "it has train")


def test_the_split_is_the_one_asked_for_and_may_be_sliced(hub_folder):
    folder = hub_folder(MATH, splits=("train", "test"))
    where = {"dataset": "deepmath", "dataset_path": str(folder)}
    assert len(read(**where, dataset_split="test[:2]")) == 2
    said = refusal(**where, dataset_split="dev")
    assert said.startswith("--dataset_split dev: ")
    assert "'train', 'test'" in said
    assert refusal(**where, dataset_split="train[:").startswith("--dataset_split train[:: ")


def test_rows_are_read_when_they_are_asked_for(hub_folder):
    """A wrong row does not stop a run that never comes to it, and is named when one does."""
    rows = [{"messages": [{"role": "user", "content": "x"}]}, {"messages": [{"role": "user", "content": None}]}]
    prompts = opened(dataset="tulu3", dataset_path=str(hub_folder(rows)))
    assert prompts[0].text == "x"
    with pytest.raises(UserError, match=r"row 1, column messages: .*content NoneType"):
        prompts[1]


def test_tools_and_calls_come_without_what_the_table_filled_up(hub_folder):
    """A table gives each row the keys of all rows; a template would write them as null."""
    tools = [[{"type": "function", "function": {"name": name, "parameters": {name: "x"}}}] for name in "fg"]
    call = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    chats = [
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": call}, {"role": "tool", "content": "3"}],
        [{"role": "user", "content": "y"}],
    ]
    folder = hub_folder([{"messages": chat, "tools": each} for chat, each in zip(chats, tools, strict=True)])
    prompts = read(dataset=str(folder), prompt_column="messages")
    assert [list(p.messages) for p in prompts] == chats
    assert [list(p.tools) for p in prompts] == tools


def test_sharegpt_and_chats_as_json_text(tmp_path):
    chat = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"c": chat, "j": json.dumps(chat)}) + "\n")
    for column in "cj":
        assert read(dataset=str(path), prompt_column=column)[0].messages == ({"role": "user", "content": "x"},)


@pytest.mark.parametrize("name", ["a [1] b", "*", "what?", "{a,b}", "100%#x"])
def test_a_path_is_no_pattern(tmp_path, name):
    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    for file in (folder / f"{name}.jsonl", folder / f"{name}.csv", folder / "data" / "train-0.jsonl"):
        file.write_text('{"q": "x"}\n' if file.suffix == ".jsonl" else "q\nx\n")
    for place in (folder / f"{name}.jsonl", folder / f"{name}.csv", folder / "data"):
        assert [p.text for p in read(dataset=str(place), prompt_column="q")] == ["x"]
    said = refusal(dataset=str(folder / "data"), prompt_column="q", dataset_split="test")
    assert said.startswith("--dataset_split test: not a split")


def test_tab_separated_and_compressed_files(tmp_path):
    (tmp_path / "d.tsv").write_text("q\tanswer\nwhy, so\t1\n")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"q": "why, so", "answer": "1"}\n'))
    for name in ("d.tsv", "d.jsonl.gz"):
        (prompt,) = read(dataset=str(tmp_path / name), prompt_column="q")
        assert (prompt.text, prompt.answer) == ("why, so", "1")


@pytest.fixture
def two_languages(tmp_path):
    """A copy of a set with two configurations, as the hub lays it out."""
    folder = tmp_path / "copy"
    for name in ("en", "de"):
        (folder / name).mkdir(parents=True)
        (folder / name / "train.jsonl").write_text(json.dumps({"q": name}) + "\n")
    return folder


CARD = "---\nconfigs:\n- config_name: en\n  data_files: en/*\n- config_name: de\n  data_files: de/*\n---\n"


def test_a_set_of_several_configurations(two_languages):
    (two_languages / "README.md").write_text(CARD)
    where = {"dataset": str(two_languages), "prompt_column": "q"}
    assert [p.text for p in read(**where, dataset_config="de")] == ["de"]
    assert refusal(**where) == (
        f"--dataset {two_languages}: has several configurations; add --dataset_config, one of en, de"
    )
    said = refusal(**where, dataset_config="fr")
    assert said == f"--dataset_config fr: not there in --dataset {two_languages}; it has en, de"


def test_a_configuration_may_be_a_folder(two_languages):
    where = {"dataset": str(two_languages), "prompt_column": "q"}
    assert [p.text for p in read(**where, dataset_config="en")] == ["en"]
    said = refusal(**where, dataset_config="fr")
    assert said.startswith("--dataset_config fr: ")
    assert said.endswith("no folder of that name; drop it")
    file = {"dataset": str(two_languages / "en" / "train.jsonl"), "prompt_column": "q", "dataset_config": "en"}
    assert refusal(**file).endswith("is a file, which has no configurations; drop it")


def test_rows_that_ask_nothing_have_no_messages(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"q": q}) + "\n" for q in ("x", " ", None)))
    assert [len(p.messages) for p in read(dataset=str(path), prompt_column="q")] == [1, 0, 0]


def test_a_column_of_another_type_is_refused(hub_folder):
    said = refusal(dataset=str(hub_folder(MATH)), prompt_column="final_answer")
    assert "row 0, column final_answer: int given" in said


@pytest.mark.parametrize(
    ("column", "said"),
    [(None, "needs --prompt_column"), ("qestion", "--prompt_column qestion: not a column")],
)
def test_a_missing_column_lists_the_columns(hub_folder, column, said):
    refused = refusal(dataset=str(hub_folder(MATH)), prompt_column=column)
    assert said in refused
    assert refused.endswith("it has question, final_answer, r1_solution")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DeepMth", "--dataset DeepMth: unknown data set; did you mean deepmath?"),
        ("DEEPMATH3", "did you mean deepmath?"),
        ("tulu", "did you mean tulu3?"),
        ("qqqqqq", "--dataset qqqqqq: unknown data set; needs deepmath, tulu3, a hub id"),
        ("./nowhere", "--dataset ./nowhere: no such file or folder"),
        ("data/nowhere.jsonl", "--dataset data/nowhere.jsonl: no such file or folder"),
        ("someone/something", "--dataset someone/something: needs --prompt_column"),
    ],
)
def test_a_set_that_cannot_exist_is_refused_before_any_download(name, said):
    assert said in refusal(dataset=name)


def test_a_local_copy_that_is_not_there_is_refused(tmp_path):
    said = refusal(dataset="deepmath", dataset_path=str(tmp_path / "none"))
    assert said.startswith(f"--dataset_path {tmp_path / 'none'}: no such file or folder")
    assert "did you mean deepmath?" in refusal(dataset="deepmth", dataset_path=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("d.parquet", b"not parquet", "cannot be loaded: Parquet magic bytes"),
        ("d.jsonl", b'{"q": "a"}\n{"q": \n', "cannot be loaded: JSON parse error"),
        ("d.jsonl", b"", "an empty file"),
        ("d.csv", b"q\n", "the split train has no rows"),
        ("d.txt", b"a prompt", "--prompts_file"),
        ("d.pkl", b"\x80\x04N.", "a .pkl file, needs one of .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    refused = refusal(dataset=str(tmp_path / name), prompt_column="q")
    assert refused.startswith(f"--dataset {tmp_path / name}: ")
    assert said in refused


def test_a_set_without_rows_is_refused(hub_folder):
    where = {"dataset": "deepmath", "dataset_path": str(hub_folder(MATH))}
    assert "the split train[:0] has no rows" in refusal(**where, dataset_split="train[:0]")


def test_a_table_without_rows_is_refused(monkeypatch, hub_folder):
    """As other versions of the library give it."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"question": []}))
    said = refusal(dataset="deepmath", dataset_path=str(hub_folder(MATH)))
    assert "the split train has no rows" in said


def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in refusal(dataset=str(tmp_path / "empty"), prompt_column="q")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{}")
    assert "cannot be loaded" in refusal(dataset=str(tmp_path / "broken"), prompt_column="q")


def test_code_that_comes_with_a_data_set_is_not_run(tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "cannot be loaded" in refusal(dataset=str(folder), prompt_column="q")
    assert not (tmp_path / "ran").exists()


def test_a_folder_named_like_a_file_reader_is_read_as_a_folder(hub_folder, monkeypatch):
    folder = hub_folder(MATH)
    monkeypatch.chdir(folder.parent)
    folder.rename("json")
    assert len(read(dataset="json", prompt_column="question")) == 5


def test_an_unreachable_hub_stops_the_run_and_nothing_takes_its_place(tmp_path):
    """In a process of its own: the hub client reads HF_HUB_OFFLINE when it is imported."""
    code = (
        "from local_distill.config.train_fields import TrainFields\n"
        "from local_distill.prompts import open_prompts\n"
        "from local_distill.errors import UserError\n"
        "try:\n    print('PROMPTS', len(open_prompts(TrainFields(dataset='deepmath'))))\n"
        "except UserError as error:\n    print(error)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    (said,) = run.stdout.strip().splitlines()
    assert said.startswith("--dataset deepmath: cannot be loaded: Couldn't reach 'zwhe99/DeepMath-103K' on the Hub")
    assert "--dataset_path DIR" in said


def test_without_the_datasets_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in refusal(dataset="deepmath")
