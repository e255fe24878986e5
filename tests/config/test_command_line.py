"""The command line and the YAML file: what is given, in whatever spelling, is what the settings are."""

import dataclasses
import json

import pytest

from local_distill.announcements import write_settings
from local_distill.batch import TeacherView
from local_distill.config.parsing import LATEST, describe, read_yaml, setting_types
from local_distill.config.train_config import TrainConfig, parse_config
from local_distill.errors import UserError
from local_distill.losses.registry import make_loss
from local_distill.training.optimizer import learning_rate_at

MODELS = ["--student_model", "s", "--teacher_model", "t"]
DOCUMENTED = (
    "student_model teacher_model dataset dataset_path prompt_column prompts_file batch_size group_size grad_accum "
    "num_substeps max_new_tokens max_prompt_tokens temperature top_p steps learning_rate weight_decay lr_scheduler "
    "warmup_steps max_grad_norm seed kl_coef kl_discount use_lora lora_r lora_alpha lora_dropout lora_target_modules "
    "dtype output_dir save_every keep_checkpoints resume eval_every eval_prompts wandb_project wandb_name wandb_mode "
    "trackers teacher_ds_zero3 teacher_ds_config chat_template system_prompt chat_template_kwargs"
)
FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


def parsed(*words):
    return parse_config([*MODELS, *words])


@pytest.fixture
def from_yaml(tmp_path):
    def parse(text, *words):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return parsed("--config", str(path), *words)

    return parse


def test_defaults_are_those_of_the_settings():
    assert parsed() == TrainConfig(student_model="s", teacher_model="t")


def test_every_documented_flag_is_there():
    assert set(DOCUMENTED.split()) <= FIELDS.keys()


OTHER_VALUES = {int: "7", float: "0.125", str: "some text"}


@pytest.mark.parametrize("spelling", ["--{}", "--{}=", "hyphens"])
def test_every_flag_sets_its_setting(spelling):
    """Each on its own, past the checks of combinations, with a value that is not its default."""
    for name, kind in setting_types(TrainConfig).items():
        choices = FIELDS[name].metadata["choices"]
        value = choices[-1] if choices else OTHER_VALUES.get(kind)
        flag = "--" + (name.replace("_", "-") if spelling == "hyphens" else name)
        given = [flag] if kind is bool else [f"{flag}={value}"] if spelling == "--{}=" else [flag, value]
        partners = {
            "dataset_path": ["--dataset", "tulu3"], "dataset_config": ["--dataset", "tulu3"],
            "prompt_column": ["--dataset", "tulu3"],
            "lora_r": ["--use_lora"],
            "teacher_ds_config": ["--teacher_ds_zero3"], "wandb_name": ["--wandb_project", "p"],
            "top_k": ["--loss", "jsd"], "jsd_beta": ["--loss", "jsd"], "ppo_clip": ["--loss", "ppo"],
            "ratio_cap": ["--loss", "importance_sampling"], "teacher_backend": ["--use_lora", "--teacher_model", ""],
            "teacher_url": ["--teacher_backend", "server"], "init_adapter": ["--use_lora"],
            "teacher_share_steps": ["--teacher_share", "0.5"],
            "overlap": ["--rollouts_url", "http://127.0.0.1:1"],
        }.get(name, [])  # fmt: skip
        found = getattr(parsed(*given, *partners), name)
        assert found == (True if kind is bool else kind(value)) != FIELDS[name].default, name
        assert type(found) is kind


def test_hyphens_in_flags_are_underscores_and_in_values_are_left_alone():
    config = parsed("--max-new-tokens", "9", "--wandb-project=my-project", "--wandb-name", "a-b_c", "--dataset=a-b/c-d")
    assert (config.max_new_tokens, config.wandb_project, config.wandb_name) == (9, "my-project", "a-b_c")
    assert parsed("--system_prompt=--be-brief").system_prompt == "--be-brief"
    assert parsed("--chat-template-kwargs", '{"a-b": 1}').chat_template_kwargs == '{"a-b": 1}'
    assert parsed("--lora-target-modules=all-linear", "--use-lora").lora_target_modules == "all-linear"


@pytest.mark.parametrize("off", ["--no-use_lora", "--no-use-lora"])
def test_switches(off):
    assert parsed("--use-lora").use_lora
    assert not parsed("--use_lora", off).use_lora
    assert not parsed(off).use_lora


def test_negative_and_scientific_numbers():
    assert parsed("--learning_rate", "1e-4").learning_rate == 1e-4
    with pytest.raises(UserError, match=r"--kl_coef: -0\.5 given"):
        parsed("--kl_coef", "-0.5")


def test_resume_with_and_without_a_folder():
    assert parsed().resume is None
    assert parsed("--resume").resume == LATEST
    assert parsed("--resume", "--steps", "3").resume == LATEST
    assert parsed("--resume", "run/step-3").resume == "run/step-3"


def test_choices_are_what_the_code_accepts():
    choices = {name: field.metadata["choices"] for name, field in FIELDS.items() if field.metadata["choices"]}
    assert choices.keys() == {
        "dtype",
        "teacher_backend",
        "teacher_offload",
        "teacher_quantization",
        "chat_template",
        "stop_tokens",
        "rollouts",
        "loss",
        "top_k_support",
        "lr_scheduler",
        "wandb_mode",
    }
    losses = [
        make_loss(
            loss,
            kl_coef=1.0,
            kl_discount=0.0,
            ratio_cap=10.0,
            ppo_clip=0.2,
            jsd_beta=0.5,
            top_k=4,
            top_k_support=support,
        )
        for loss in choices["loss"]
        if loss != "auto"  # it stands for one of the others
        for support in choices["top_k_support"]
    ]
    assert {loss.needs for loss in losses} == set(TeacherView)
    rates = {name: learning_rate_at(4, peak=1.0, total=8, warmup=2, scheduler=name) for name in choices["lr_scheduler"]}
    assert len(set(rates.values())) == len(rates) == 3
    for name, each in choices.items():
        assert FIELDS[name].default in each


# --- YAML ----------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_file(from_yaml):
    text = "batch_size: 5\ngroup-size: 6\nuse_lora: true\ntemperature: 0.5\nwandb_project: p\n"
    config = from_yaml(text, "--batch_size", "7", "--no-use-lora", "--temperature=0.8")
    assert (config.batch_size, config.group_size, config.use_lora, config.temperature) == (7, 6, False, 0.8)
    assert config.wandb_project == "p"
    assert from_yaml(text).use_lora


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # text, to YAML 1.1
        ("learning_rate: 1.0e-4", "learning_rate", 1e-4),
        ("learning_rate:", "learning_rate", 1e-5),
        ("batch_size: '12'", "batch_size", 12),
        ("steps: 1_000", "steps", 1000),
        ("steps: 1.0e+3", "steps", 1000),
        ("lora_alpha: 64", "lora_alpha", 64.0),
        ("use_lora: yes", "use_lora", True),
        ("use-lora: off", "use_lora", False),
        ("resume: true", "resume", LATEST),
        ("resume: false", "resume", None),
        ("resume: run/step-3", "resume", "run/step-3"),
        ("chat_template: off", "chat_template", "off"),  # false, to YAML 1.1
        ("chat_template: on", "chat_template", "on"),
        ("output_dir: 007", "output_dir", "007"),
        ("output_dir: 2024-01-01", "output_dir", "2024-01-01"),
        ("system_prompt: ''", "system_prompt", ""),
        ("system_prompt: |\n  Be brief.\n  Be kind.\n", "system_prompt", "Be brief.\nBe kind.\n"),
        ("system_prompt: 简短", "system_prompt", "简短"),
        ("output_dir: ~", "output_dir", None),
        ("steps: 3\n<<: {seed: 4}", "seed", 4),
    ],
)
def test_values_in_yaml(from_yaml, text, name, value):
    found = getattr(from_yaml(text), name)
    assert found == value
    assert type(found) is type(value)


def test_template_settings_as_a_mapping(from_yaml):
    config = from_yaml("chat_template_kwargs:\n  enable_thinking: false\n  effort: [1, 2]\n")
    assert json.loads(config.chat_template_kwargs) == {"enable_thinking": False, "effort": [1, 2]}


def test_settings_that_a_run_writes_make_the_same_run(tmp_path):
    argv = [
        "--student_model", "a/b", "--teacher_model", "c/d", "--dataset", "tulu3", "--dataset_path", "x y/z",
        "--chat_template", "on", "--system_prompt", "Be: brief\n# 简短 'quoted' \"twice\"", "--learning_rate", "1e-4",
        "--chat_template_kwargs", '{"enable_thinking": false}', "--use_lora", "--lora_alpha", "16", "--top_p", "1",
        "--wandb_project", "007", "--wandb_name", "no", "--eval_prompts", "0", "--temperature", "1e-2",
    ]  # fmt: skip
    config = parse_config([*argv, "--resume", "somewhere/step-2", "--output_dir", "elsewhere"])
    write_settings(config, tmp_path)
    (written,) = tmp_path.iterdir()
    again = parse_config(["--config", str(written)])
    assert again == dataclasses.replace(config, output_dir=str(tmp_path), resume=None)
    assert parse_config(["--config", str(written), "--resume"]).resume == LATEST


def test_defaults_too_come_back_from_the_file(tmp_path):
    config = TrainConfig(student_model="s", teacher_model="t", output_dir=str(tmp_path))
    write_settings(config, tmp_path)
    (written,) = tmp_path.iterdir()
    assert parse_config(["--config", str(written)]) == config
    assert set(read_yaml(TrainConfig, written)) <= set(FIELDS)


# --- help ----------------------------------------------------------------------------------------


def test_help_names_every_flag_with_its_default_and_fits_the_terminal(run_command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run_command(["--help"])
    assert (code, err) == (0, "")
    assert max(len(line) for line in out.splitlines()) <= 80
    flowing = " ".join(out.split())
    for name, field in FIELDS.items():
        assert f"--{name} " in out or f"--{name}," in out or f"--{name}\n" in out
        assert " ".join(describe(field).split()) in flowing.replace("- ", "-")
        if field.default not in (None, ""):
            assert "efault" in describe(field)


def test_help_stands_under_headings():
    groups = [field.metadata["group"] for field in FIELDS.values()]
    assert all(groups)
    assert all(field.metadata["help"].endswith((".", "…")) for field in FIELDS.values())
    first = {group: groups.index(group) for group in groups}
    assert groups == sorted(groups, key=first.get), "the fields of a group stand together"
