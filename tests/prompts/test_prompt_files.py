"""Prompts from text files, JSON Lines files and the package itself."""

import gzip
import json

import pytest

from local_distill.config.train_config import TrainConfig
from local_distill.errors import UserError
from local_distill.prompts import open_prompts
from local_distill.prompts.prompt_files import read_prompts_file


def opened(**settings):
    return open_prompts(TrainConfig(student_model="s", teacher_model="t", **settings))


def read(path):
    prompts = opened(prompts_file=str(path))
    return [prompts[i] for i in range(len(prompts))]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def test_one_prompt_a_line_with_bom_crlf_blanks_and_spaces(write):
    path = write("p.txt", "\ufeffFirst?\r\n\r\n  \t\r\n  Über\u2028zwei? \r\nlast, no newline".encode())
    prompts = read(path)
    assert [p.messages for p in prompts] == [(user(t),) for t in ("First?", "Über\u2028zwei?", "last, no newline")]
    assert [p.origin for p in prompts] == ["p.txt:1", "p.txt:4", "p.txt:5"]
    assert [p.text for p in prompts] == ["First?", "Über\u2028zwei?", "last, no newline"]


def test_a_prompts_file_is_marked_as_one_whose_prompts_must_fit(write):
    assert opened(prompts_file=str(write("p.txt", "a"))).must_fit
    assert not opened().must_fit


def test_json_lines_with_prompt_messages_and_answer(write):
    rows = [
        {"prompt": "One?", "answer": "1"},
        {"messages": [system("s"), user("Two?"), assistant("2")], "answer": 2},
        {"messages": [user("a"), assistant("b"), user("Three?"), assistant("c"), {"role": "tool", "content": None}]},
    ]
    path = write("p.JSONL", "\ufeff" + "\r\n\n".join(map(json.dumps, rows)))
    prompts = read(path)
    assert [p.messages for p in prompts] == [
        (user("One?"),),
        (system("s"), user("Two?")),
        (user("a"), assistant("b"), user("Three?")),
    ]
    assert [p.answer for p in prompts] == ["1", "2", None]
    assert [p.origin for p in prompts] == ["p.JSONL:1", "p.JSONL:3", "p.JSONL:5"]
    assert prompts[2].text == "Three?"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no prompt in it"),
        (b"\xef\xbb\xbf \r\n\t\n", "no prompt in it"),
        (b"fine\nbad \x00 byte", "NUL byte in line 2"),
        ("utf-16".encode("utf-16"), "NUL byte in line 1"),
        (b"fine\ncaf\xe9", "byte 8 (line 2) is not UTF-8"),
        (b"\xef\xbb\xbfcaf\xe9", "byte 6 (line 1) is not UTF-8"),
    ],
)
def test_a_file_that_is_not_text_is_refused(write, data, said):
    path = write("p.txt", data)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"--prompts_file {path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'prompt': 'x'}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["x"]', "list given, needs a JSON object"),
        ('{"question": "x"}', "keys question given"),
        ("{}", "keys (none) given"),
        ('{"prompt": "x", "messages": []}', "both prompt and messages"),
        ('{"prompt": 3}', "prompt is int, needs to be text"),
        ('{"prompt": null}', "prompt is NoneType, needs to be text"),
        ('{"prompt": {"role": "user", "content": "x"}}', "prompt is dict, needs to be text"),
        ('{"prompt": " "}', "asks nothing"),
        ('{"messages": "x"}', "messages is str, needs to be a list"),
        ('{"messages": []}', "asks nothing"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "asks nothing"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": " "}]}', "asks nothing"),
        ('{"messages": ["x"]}', "a chat message with str given"),
        ('{"messages": [{"role": "user"}]}', "content NoneType given"),
        ('{"messages": [{"role": "user", "content": ["x"]}]}', "content list given"),
        ('{"messages": [{"from": "human", "value": "x"}]}', "role NoneType"),
        ('{"prompt": "x", "answer": ["y"]}', "answer is list"),
    ],
)
def test_a_bad_json_line_is_named_by_its_number(write, line, said):
    path = write("p.jsonl", '{"prompt": "good"}\n\n' + line)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"--prompts_file {path}: line 3: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


CHAT = [user("One?"), assistant("1"), user("Two?"), assistant("2")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.jsonl", "{0}\n{1}\n"),
        ("p.json", "{0}\r\n{1}"),
        ("p.json", "[{0},\n {1}]"),
        ("p.jsonl", "\ufeff[\n{0},\n{1}\n]\n"),
    ],
)
def test_json_in_each_of_its_layouts(write, name, content):
    rows = [json.dumps({"prompt": CHAT, "answer": 1}), json.dumps({"conversations": [{"from": "human", "value": "x"}]})]
    prompts = read(write(name, content.replace("{0}", rows[0]).replace("{1}", rows[1])))
    assert [(p.messages, p.answer) for p in prompts] == [(tuple(CHAT[:3]), "1"), ((user("x"),), None)]
    assert prompts[1].origin in ("p.jsonl:2", "p.json:2", "p.json[1]", "p.jsonl[1]")


def test_json_lists_of_texts_and_one_object_over_several_lines(write):
    assert [p.text for p in read(write("p.json", '["a", "b\\nc"]'))] == ["a", "b\nc"]
    assert [p.text for p in read(write("q.json", json.dumps({"prompt": "a"}, indent=2)))] == ["a"]
    with pytest.raises(UserError, match=r"^--prompts_file .*r\.json: not JSON \(.*line 2"):
        read(write("r.json", '["a",\n"b"'))


def test_tools_and_calls_of_them_are_kept(write):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "3"}
    row = {"messages": [user("a"), call, result, assistant("b")], "tools": tools}
    (prompt,) = read(write("p.jsonl", json.dumps(row)))
    assert [m["role"] for m in prompt.messages] == ["user", "assistant", "tool"]
    assert prompt.messages[1]["tool_calls"] == call["tool_calls"]
    assert prompt.tools == tuple(tools)
    assert prompt.text == "a"


@pytest.mark.parametrize(("name", "comma"), [("p.csv", ","), ("p.tsv", "\t"), ("p.CSV", ",")])
def test_csv_with_quotes_and_line_breaks(write, name, comma):
    long = "word " * 60_000  # more than the csv module reads by itself
    rows = ["prompt,answer", '"say ""hi"", please",1', '"two\r\nlines",', "", long.strip() + ",3"]
    prompts = read(write(name, "\ufeff" + "\r\n".join(row.replace(",", comma) for row in rows)))
    assert [p.text for p in prompts] == [f'say "hi"{comma} please', "two\r\nlines", long.strip()]
    assert [p.answer for p in prompts] == ["1", "", "3"]
    assert prompts[1].origin == f"{name}:3"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question\nwhy\n", "keys question given"),
        ("why,how\nnot,so\n", "keys why, how given"),
        ("prompt\nwhy, how\n", "more fields than the header"),
        ('prompt\n"why\n', "not CSV"),
        ("prompt\n", "no prompt in it"),
        ("", "no prompt in it"),
    ],
)
def test_csv_that_is_none(write, content, said):
    with pytest.raises(UserError, match=r"^--prompts_file .*p\.csv: ") as caught:
        read(write("p.csv", content))
    assert said in str(caught.value)


def test_gzip_and_parquet(write, tmp_path):
    datasets = pytest.importorskip("datasets")
    lines = "\n".join(json.dumps({"prompt": t}) for t in "ab").encode()
    assert [p.text for p in read(write("p.jsonl.gz", gzip.compress(lines)))] == ["a", "b"]
    assert [p.text for p in read(write("p.txt.gz", gzip.compress(b"a\nb")))] == ["a", "b"]
    with pytest.raises(UserError, match="not a whole gzip file"):
        read(write("q.jsonl.gz", lines))
    rows = [{"messages": [user("a")], "tools": None}, {"messages": CHAT, "tools": '[{"name": "f"}]'}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "p.parquet")
    one, two = read(tmp_path / "p.parquet")
    assert (one.messages, one.tools, two.tools) == ((user("a"),), (), ({"name": "f"},))
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.parquet")


def test_a_line_of_text_stays_text(write):
    line = json.dumps([user("x")])
    assert [p.text for p in read(write("p.txt", line))] == [line]


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--prompts_file .*none\.txt: no such file"):
        read(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"^--prompts_file .*: a folder"):
        read(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"^--prompts_file .*loop: cannot be read"):
        read(tmp_path / "loop")


def test_the_built_in_prompts_are_many_short_and_distinct():
    prompts = opened()
    texts = [prompts[i].text for i in range(len(prompts))]
    assert len(texts) >= 190
    assert len({t.casefold() for t in texts}) == len(texts)
    assert all(8 < len(t) < 120 for t in texts)
    assert prompts[0].origin == "builtin.txt:1"


def test_two_sources_are_refused(write):
    with pytest.raises(UserError, match="--dataset and --prompts_file"):
        opened(dataset="deepmath", prompts_file=str(write("p.txt", "a")))
    with pytest.raises(UserError, match="--dataset_path"):
        opened(dataset_path="somewhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "q,prompt,answer\nwhy,x,3\n"),
        ("p.tsv", "answer\tq\n3\twhy\n"),
        ("p.jsonl", '{"q": "why", "answer": 3}\n'),
        ("p.jsonl", '{"q": [{"role": "user", "content": "why"}], "answer": "3"}\n'),
        ("p.json", '[{"q": [{"from": "human", "value": "why"}], "answer": "3"}]'),
    ],
)
def test_a_column_that_is_named(write, name, content):
    (prompt,) = read_prompts_file(str(write(name, content)), "q")
    assert (prompt.text, prompt.answer) == ("why", "3")
