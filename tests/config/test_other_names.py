"""Who comes from another trainer is told what its settings are called here."""

import dataclasses

import pytest

from local_distill.commands.report import ReportSettings
from local_distill.config.other_names import _NO_SETTING, _TABLE, of_other_trainers
from local_distill.config.parsing import parse
from local_distill.config.train_config import TrainConfig, parse_config
from local_distill.errors import UserError

OURS = {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_table_leads_to_settings_that_there_are_and_hides_none():
    assert {ours.name for ours in _TABLE.values()} <= OURS
    assert not OURS & (_TABLE.keys() | _NO_SETTING.keys())


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        # TRL
        ("--model_name_or_path", "--student_model"),
        ("--teacher_model_name_or_path", "--teacher_model"),
        ("--per_device_train_batch_size", "--batch_size"),
        ("--num_generations", "--group_size"),
        ("--max_completion_length", "--max_new_tokens"),
        ("--gradient-accumulation-steps", "--grad_accum"),
        ("--max_steps", "--steps"),
        ("--num_train_epochs", "--steps"),
        ("--beta", "--jsd_beta"),
        ("--lmbda", "--teacher_share"),
        ("--bf16", "--dtype"),
        ("--use_peft", "--use_lora"),
        ("--report_to=wandb", "--trackers"),
        ("--save_steps", "--save_every"),
        ("--lr", "--learning_rate"),
        ("-lr", "--learning_rate"),
        ("--model", "--student_model"),
        ("--teacher", "--teacher_model"),
        # axolotl
        ("--base_model", "--student_model"),
        ("--micro_batch_size", "--batch_size"),
        ("--sequence_len", "--max_new_tokens"),
        # ms-swift
        ("--system", "--system_prompt"),
        ("--target_modules", "--lora_target_modules"),
        # verl, with dashes or as it writes them
        ("--actor_rollout_ref.rollout.n", "--group_size"),
        ("data.train_batch_size=8", "--batch_size"),
        ("actor_rollout_ref.model.path=x", "--student_model"),
        ("algorithm.temperature=1", "--temperature"),
        # tinker-cookbook
        ("groups_per_batch=8", "--batch_size"),
        ("kl_penalty_coef=1", "--kl_coef"),
        ("log_path=x", "--output_dir"),
    ],
)
def test_the_name_of_another_trainer(word, ours):
    with pytest.raises(UserError) as caught:
        parse_config(["--student_model", "x", word])
    assert f": not a setting of ours; it is {ours} here" in str(caught.value)


def test_what_there_is_no_setting_for():
    with pytest.raises(UserError, match=r"^--logging_steps: not a setting of ours; every step is logged$"):
        parse_config(["--logging_steps", "1"])


def test_a_command_is_offered_its_own_settings_alone():
    assert of_other_trainers("lr", {"temperature"}) == ""
    assert of_other_trainers("model", {"temperature"}, by_place=True).endswith(
        "models are given by their place, with no flag before them"
    )
    assert of_other_trainers("max_tokens", {"max_new_tokens"}) == "not a setting of ours; it is --max_new_tokens here"


def test_a_setting_of_ours_with_dashes_is_taken():
    assert (
        parse_config(["--student-model", "x", "--teacher-model", "y", "--learning-rate", "1e-3"]).learning_rate == 1e-3
    )


@pytest.mark.parametrize("spelling", ["--output", "--output_dir", "--output-dir"])
def test_where_it_is_written_goes_by_either_name(spelling, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["--student_model", "x", "--teacher_model", "y"]
    assert parse_config([*models, spelling, "run"]).output_dir == "run"
    (tmp_path / "run.yaml").write_text(f"{spelling.lstrip('-')}: run\n")
    assert parse_config([*models, "run.yaml"]).output_dir == "run"
    assert parse(ReportSettings, ["run", spelling, "page"], prog="", usage="", description="").output == "page"
