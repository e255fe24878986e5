"""The settings by themselves: defaults, what belongs together, and what a resumed run must keep."""

import dataclasses

import pytest

from local_distill.config.builtin import NO_SOURCE, OTHER_SET, PROMPTS_FILE
from local_distill.config.parsing import option
from local_distill.config.ranges import FROM_1
from local_distill.config.train_config import TrainConfig
from local_distill.config.train_fields import FULL_LEARNING_RATE, LORA_LEARNING_RATE, TrainFields
from local_distill.errors import UserError


def config(**settings):
    return TrainConfig(**{"student_model": "s", "teacher_model": "t", **settings})


def test_the_learning_rate_depends_on_lora_unless_it_is_given():
    assert config().learning_rate == FULL_LEARNING_RATE == 1e-5
    assert config(use_lora=True).learning_rate == LORA_LEARNING_RATE == 1e-4
    assert config(use_lora=True, learning_rate=3e-4).learning_rate == 3e-4


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().steps = 3


def test_documented_defaults():
    found = config()
    assert (found.temperature, found.top_p, found.loss, found.kl_coef) == (1.0, 1.0, "auto", 1.0)
    assert (found.dtype, found.wandb_mode, found.lora_target_modules) == ("auto", "online", "all-linear")
    assert (found.dataset, found.prompts_file, found.resume, found.output_dir) == (None, None, None, None)
    assert (found.use_lora, found.teacher_ds_zero3, found.trust_remote_code) == (False, False, False)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-3, "top_p": 1.0, "kl_discount": 1.0, "kl_coef": 0.0, "max_grad_norm": 0.0},
        {"batch_size": 1, "group_size": 1, "max_new_tokens": 1, "steps": 1, "num_substeps": 1, "grad_accum": 1},
        {"save_every": 0, "eval_every": 0, "eval_prompts": 0, "warmup_steps": 0, "seed": 2**63 - 1},
        {"num_substeps": 8, "batch_size": 8},
        {"system_prompt": "", "wandb_name": "", "trackers": ""},
        {"wandb_name": "mine", "trackers": "tensorboard,wandb"},
        {"wandb_name": "mine", "trackers": "trackio"},
        {"dataset": "tulu3", "dataset_path": "x", "prompt_column": "q"},
        {"prompts_file": "p", "prompt_column": "q"},
        {"temperature": 1, "kl_coef": 2},  # whole numbers where any number will do
    ],
    ids=str,
)
def test_the_edges_of_what_is_allowed(settings):
    found = config(**settings)
    assert {name: getattr(found, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "a/b", "prompts_file": "p"}, r"^--dataset and --prompts_file: both given; .*drop one"),
        ({"prompt_column": "q"}, r"^--prompt_column: given without --dataset or --prompts_file"),
        ({"dataset_path": "p"}, r"^--dataset_path: given without --dataset; "),
        ({"chat_template": "off", "system_prompt": ""}, r"^--system_prompt: .*--chat_template off.*drop one"),
        ({"chat_template": "off", "chat_template_kwargs": "{}"}, r"^--chat_template_kwargs: .*drop one"),
        ({"teacher_ds_config": "ds.json"}, r"^--teacher_ds_config: only used with --teacher_ds_zero3; "),
        ({"wandb_name": "mine", "trackers": "tensorboard"}, r"^--wandb_name: given without --wandb_project"),
        ({"batch_size": 2, "num_substeps": 3}, r"^--num_substeps: 3 given with --batch_size 2; .*lower it$"),
        ({"output_dir": ""}, r"^--output_dir: empty text given; "),
        ({"teacher_model": ""}, r"^--teacher_model: not given, needs a hub id or a local folder$"),
        ({"teacher_model": "", "teacher_backend": "zero3"}, r"^--teacher_model: not given"),
        ({"teacher_backend": "server"}, r"^--teacher_url: not given for a server teacher; add it$"),
        ({"teacher_backend": "local", "teacher_url": "u"}, r"^--teacher_url: given for a local teacher; drop it$"),
        ({"teacher_url": "u", "teacher_ds_zero3": True}, r"^--teacher_ds_zero3: contradicts a server teacher"),
        ({"teacher_backend": "self", "use_lora": True}, r"^--teacher_model: given with --teacher_backend self"),
        ({"teacher_backend": "self", "teacher_model": ""}, r"^--teacher_backend self: .* add --use_lora$"),
        ({"teacher_url": "u", "teacher_offload": "cpu"}, r"^--teacher_offload: cpu given for a server teacher"),
        (
            {"teacher_ds_zero3": True, "teacher_quantization": "4bit"},
            r"^--teacher_quantization: 4bit given for a zero3",
        ),
        (
            {"teacher_offload": "cpu", "teacher_quantization": "8bit"},
            r"^--teacher_offload and --teacher_quantization: both given; drop one of them$",
        ),
        ({"teacher_url": "u", "loss": "jsd"}, r"^--loss jsd: a teacher behind --teacher_url cannot .*--top_k 64"),
        ({"init_adapter": "a"}, r"^--init_adapter: given without --use_lora"),
        ({"rollouts": "hf", "rollouts_url": "u"}, r"^--rollouts_url: given with --rollouts hf, needs vllm"),
        (
            {"teacher_share": 0.5, "teacher_url": "u"},
            r"^--teacher_share: a teacher behind --teacher_url is not sampled",
        ),
        ({"teacher_share": 0.5, "teacher_offload": "cpu"}, r"^--teacher_share: .* without --teacher_offload, or drop"),
        ({"teacher_share": 0.5, "loss": "policy_gradient"}, r"^--teacher_share: --loss policy_gradient takes the sam"),
        ({"teacher_share": 1.5}, r"^--teacher_share: 1\.5 given, needs to be between 0 and 1$"),
        ({"teacher_share_steps": 5}, r"^--teacher_share_steps: given without --teacher_share"),
        (
            {"teacher_share": 0.5, "overlap": True, "rollouts_url": "u", "loss": "jsd"},
            r"^--teacher_share and --overlap: both given; ",
        ),
        ({"start_new_tokens": 9, "max_new_tokens": 8}, r"^--start_new_tokens: 9 given with --max_new_tokens 8, to "),
        ({"start_new_tokens": 2, "overlap": True, "rollouts_url": "u"}, r"^--start_new_tokens and --overlap: both"),
        ({"overlap": True}, r"^--overlap: needs .* --rollouts_url, or drop --overlap$"),
        ({"server_timeout": 0.0}, r"^--server_timeout: 0 given, needs to be above 0$"),
        ({"rollouts_memory_share": 1.5}, r"^--rollouts_memory_share: 1\.5 given, needs to be above 0 and at most 1$"),
    ],
    ids=str,
)
def test_what_does_not_belong_together(settings, message):
    with pytest.raises(UserError, match=message):
        config(**settings)


@pytest.mark.parametrize(
    ("settings", "teacher", "rollouts"),
    [
        ({}, "local", "hf"),
        ({"teacher_ds_zero3": True}, "zero3", "hf"),
        ({"teacher_url": "u", "teacher_model": ""}, "server", "hf"),
        ({"teacher_backend": "self", "teacher_model": "", "use_lora": True}, "self", "hf"),
        ({"rollouts_url": "u"}, "local", "vllm_server"),
        ({"rollouts_url": "u", "rollouts": "vllm"}, "local", "vllm_server"),
        ({"rollouts": "vllm"}, "local", "vllm"),
        ({"rollouts": "continuous"}, "local", "continuous"),
    ],
    ids=str,
)
def test_what_is_meant_where_it_is_not_named(settings, teacher, rollouts):
    found = config(**settings)
    assert (found.teacher_kind, found.rollouts_kind) == (teacher, rollouts)


def test_a_number_is_shown_as_it_was_given():
    with pytest.raises(UserError, match=r"^--batch_size: -1234567 given, needs to be at least 1$"):
        config(batch_size=-1234567)
    with pytest.raises(UserError, match=r"^--top_p: 1\.0001 given, "):
        config(top_p=1.0001)
    with pytest.raises(UserError, match=r"^--temperature: inf given, needs to be a finite number, at least 0\.001"):
        config(temperature=float("inf"))


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({}, NO_SOURCE),
        ({"prompts_file": "deepmath"}, PROMPTS_FILE),
        ({"dataset": "deepmath"}, "deepmath"),
        ({"dataset": "allenai/tulu-3-sft-mixture"}, "tulu3"),
        ({"dataset": "owner/name"}, OTHER_SET),
        ({"dataset": PROMPTS_FILE}, OTHER_SET),  # a name, not the flag
        ({"dataset": "mine:SUMS"}, "mine:SUMS"),
        ({"dataset": r"C:\mine"}, OTHER_SET),
    ],
    ids=str,
)
def test_where_prompts_come_from(settings, source):
    assert TrainFields(**settings).prompts_kind == source


def test_a_setting_says_itself_what_numbers_it_may_have():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(TrainConfig):
        pace: int | None = option("training", "How fast.", within=FROM_1)

    assert More(student_model="s", teacher_model="t").pace is None
    with pytest.raises(UserError, match=r"^--pace: 0 given, needs to be at least 1$"):
        More(student_model="s", teacher_model="t", pace=0)


def test_what_a_resumed_run_must_keep():
    """All that prompts, samples and the shapes of the weights follow from; not how long or how fast it goes."""
    fixed = {field.name for field in dataclasses.fields(TrainConfig) if field.metadata["fixed"]}
    assert fixed >= {"student_model", "teacher_model", "dtype", "seed", "dataset", "prompts_file", "batch_size"}
    assert fixed >= {"group_size", "max_new_tokens", "num_substeps", "use_lora", "lora_r", "lora_target_modules"}
    assert not fixed & {"steps", "output_dir", "resume", "save_every", "grad_accum", "trackers", "sampling_batch_size"}
