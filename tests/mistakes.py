"""Mistakes that a user can make on the whole command, each with what the error has to say."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import BertConfig, T5Config, ViTConfig, WhisperConfig

SMALL = "--steps 2 --batch_size 2 --group_size 2 --max_new_tokens 8 --output_dir run"
POSITIVE = (
    "batch_size", "group_size", "max_new_tokens", "max_prompt_tokens", "sampling_batch_size", "steps", "grad_accum",
    "num_substeps", "lora_r", "keep_checkpoints",
)  # fmt: skip


@dataclass(frozen=True)
class Mistake:
    """argv: after --student_model, --teacher_model and SMALL. says: what the one line must hold, the flag first.

    files: written into the working folder. broken: files of a copy of the student's folder, ``broken``, that are
    replaced; None deletes them.
    """

    argv: str
    says: tuple[str, ...]
    files: dict[str, str | bytes] = field(default_factory=dict)
    broken: dict[str, str | bytes | None] = field(default_factory=dict)


def says(*words):
    """What an error has to hold, the flag first."""
    return words


TWO_LANGUAGES: dict[str, str | bytes] = {
    "d/README.md": "---\nconfigs:\n- config_name: en\n  data_files: e*\n- config_name: de\n  data_files: f*\n---\n",
    "d/e.csv": "q\nwhy\n",
    "d/f.csv": "q\nwarum\n",
}
STUDENT, TEACHER = "--student_model broken", "--teacher_model broken"
PROMPTS = {
    "prompts file missing": Mistake("--prompts_file no.txt", says("--prompts_file no.txt", "no such file")),
    "prompts file is a folder": Mistake("--prompts_file .", says("--prompts_file .", "a folder", "--dataset")),
    "prompts file empty": Mistake("--prompts_file p", says("--prompts_file p", "write one prompt"), {"p": ""}),
    "prompts file blank": Mistake("--prompts_file p", says("--prompts_file p", "write one prompt"), {"p": " \n\n"}),
    "prompts file binary": Mistake("--prompts_file p", says("--prompts_file p", "UTF-8"), {"p": b"\x7fELF\0\0"}),
    "prompts file latin-1": Mistake(
        "--prompts_file p", says("--prompts_file p", "line 2", "UTF-8", "iconv"), {"p": b"why\nh\xe9\n"}
    ),
    "prompts file without a name": Mistake("--prompts_file ''", says("--prompts_file", "empty text", "leave the flag")),
    "prompt longer than the context": Mistake(
        "--prompts_file p", says("--prompts_file", "p:2", "context of 128", "shorten"), {"p": "why\n" + "blue " * 99}
    ),
    "JSONL without a prompt": Mistake(
        "--prompts_file p.jsonl", says("--prompts_file p.jsonl", "line 1", "prompt"), {"p.jsonl": '{"text": "why"}'}
    ),
    "prompts file without its end": Mistake(
        "--prompts_file p.json", says("--prompts_file p.json", "not JSON"), {"p.json": '["why",'}
    ),
    "CSV without a prompt": Mistake(
        "--prompts_file p.csv",
        says("--prompts_file p.csv", "line 2", "keys q given", "--prompt_column"),
        {"p.csv": "q\nwhy\nhow\n"},
    ),
    "prompts file a spreadsheet": Mistake(
        "--prompts_file p.xlsx", says("--prompts_file p.xlsx: a .xlsx file", "CSV"), {"p.xlsx": b"PK\3\4x"}
    ),
    "spreadsheet under another name": Mistake(
        "--prompts_file p.txt", says("--prompts_file p.txt: a spreadsheet", "CSV"), {"p.txt": b"PK\3\4x"}
    ),
    "Parquet under another name": Mistake(
        "--prompts_file p", says("--prompts_file p: a Parquet file", "ends in .parquet"), {"p": b"PAR1\0x"}
    ),
    "JSON lines under another name": Mistake(
        "--prompts_file p.txt", says("--prompts_file p.txt: its first line is JSON"), {"p.txt": '{"prompt": "why"}\n'}
    ),
    "CSV under another name": Mistake(
        "--prompts_file p.txt",
        says("--prompts_file p.txt: its first line names columns", "ends in .csv"),
        {"p.txt": "prompt,answer\nwhy,x\n"},
    ),
    "column that is not there": Mistake(
        "--prompts_file p.csv --prompt_column x",
        says("--prompt_column x: not a column of --prompts_file p.csv: line 2; it has q"),
        {"p.csv": "q\nwhy\n"},
    ),
    "column of plain text": Mistake(
        "--prompts_file p.txt --prompt_column x", says("--prompt_column x", "plain text", "drop it"), {"p.txt": "why\n"}
    ),
    "prompts before models": Mistake(
        "--prompts_file p.jsonl --student_model nobody/nothing",
        says("--prompts_file p.jsonl", "not JSON"),
        {"p.jsonl": '["why",'},
    ),
    "most prompts wrong": Mistake(
        "--prompts_file p.jsonl",
        says("--prompts_file p.jsonl", "line 2", "content NoneType", "; 2 of the 3 rows read are wrong"),
        {"p.jsonl": '{"prompt": "why"}\n' + '{"messages": [{"role": "user", "content": null}]}\n' * 2},
    ),
    "configuration of nothing": Mistake("--dataset_config en", says("--dataset_config", "--dataset")),
    "configuration absent": Mistake(
        "--dataset d --prompt_column q --dataset_config fr",
        says("--dataset_config fr", "it has en, de"),
        TWO_LANGUAGES,
    ),
    "configuration not named": Mistake(
        "--dataset d --prompt_column q",
        says("--dataset d", "several configurations", "--dataset_config", "en, de"),
        TWO_LANGUAGES,
    ),
    "no date": Mistake("--template_date tomorrow", says("--template_date", "tomorrow", "2026-01-31")),
    "data set misspelt": Mistake("--dataset depmath", says("--dataset depmath", "did you mean deepmath?")),
    "data set out of reach": Mistake(
        "--dataset deepmath", says("--dataset deepmath", "cannot be loaded", "hf download")
    ),
    "data set of the hub out of reach": Mistake(
        "--dataset nobody/nothing --prompt_column q",
        says("--dataset nobody/nothing", "cannot be loaded", "hf download"),
    ),
    "data set file missing": Mistake("--dataset no.jsonl", says("--dataset no.jsonl", "no such file")),
    "column not named": Mistake(
        "--dataset d.csv", says("--dataset d.csv", "--prompt_column", "it has q"), {"d.csv": "q\nwhy\n"}
    ),
    "column absent": Mistake(
        "--dataset d.csv --prompt_column x", says("--prompt_column x", "it has q"), {"d.csv": "q\nwhy\n"}
    ),
    "split absent": Mistake(
        "--dataset d.csv --prompt_column q --dataset_split test", says("--dataset_split test"), {"d.csv": "q\nwhy\n"}
    ),
    "two sources": Mistake("--dataset deepmath --prompts_file p", says("--dataset and --prompts_file", "drop one")),
    "copy of nothing": Mistake("--dataset_path .", says("--dataset_path", "--dataset", "deepmath or tulu3")),
    "column of nothing": Mistake("--prompt_column q", says("--prompt_column", "--dataset")),
    "all prompts held out": Mistake("--eval_prompts 999", says("--eval_prompts", "999", "or fewer")),
    "no room for a prompt": Mistake("--max_new_tokens 128", says("--max_new_tokens", "128", "context", "lower it")),
    "no chat template": Mistake("--chat_template on", says("--chat_template on", "use --chat_template off")),
    "system prompt without template": Mistake("--system_prompt hello", says("--system_prompt", "chat template")),
    "system prompt, template off": Mistake(
        "--system_prompt '' --chat_template off", says("--system_prompt", "--chat_template off", "drop")
    ),
    "template settings not JSON": Mistake(
        "--chat_template_kwargs {", says("--chat_template_kwargs", "JSON", "such as")
    ),
}

NUMBERS = {
    **{
        f"{name} {n}": Mistake(f"--{name} {n}", says(f"--{name}", n, "at least 1"))
        for name in POSITIVE
        for n in ("0", "-3")
    },
    **{
        f"{name} negative": Mistake(f"--{name} -1", says(f"--{name}", "-1 given", "0 or more"))
        for name in ("save_every", "eval_every", "eval_prompts", "warmup_steps", "seed", "kl_coef", "max_grad_norm")
    },
    **{
        f"temperature {value}": Mistake(
            f"--temperature {value}", says("--temperature", value, "at least", "0.01 is nearly")
        )
        for value in ("0", "-1", "nan", "inf", "1e-300")
    },
    **{
        f"top_p {p}": Mistake(f"--top_p {p}", says("--top_p", p, "at most 1"))
        for p in ("0", "-0.5", "1.5", "nan", "inf")
    },
    **{
        f"rate {x}": Mistake(f"--learning_rate {x}", says("--learning_rate", "at most 1"))
        for x in ("0", "nan", "1e300")
    },
    "discount above 1": Mistake("--kl_discount 1.1", says("--kl_discount", "1.1", "between 0 and 1")),
    "dropout of everything": Mistake("--lora_dropout 1", says("--lora_dropout", "1 given", "below 1")),
    "mixture of one": Mistake("--jsd_beta 1", says("--jsd_beta", "1 given", "below 1")),
    "empty micro-batch": Mistake("--microbatch_tokens 0", says("--microbatch_tokens", "0 given", "at least 1")),
    "no top tokens": Mistake("--loss jsd --top_k 0", says("--top_k", "0 given", "at least 1")),
    "more top tokens than there are": Mistake(
        "--loss jsd --top_k 300", says("--top_k", "300 given", "the vocabulary has 300 tokens", "lower it")
    ),
    "top tokens of a sampled token": Mistake(
        "--loss policy_gradient --top_k 5", says("--top_k", "--loss policy_gradient", "reverse_kl")
    ),
    "discount of a divergence": Mistake(
        "--loss forward_kl --kl_discount 0.5", says("--kl_discount", "0.5", "--loss forward_kl", "no advantages")
    ),
    "whole distribution of a sharded teacher": Mistake(
        "--loss reverse_kl --teacher_ds_zero3", says("--loss reverse_kl", "--teacher_ds_zero3", "--top_k 64")
    ),
    "student's support with a sharded teacher": Mistake(
        "--loss jsd --top_k 5 --top_k_support=student --teacher_ds_zero3", says("--loss jsd", "teacher's support")
    ),
    "unknown engine": Mistake("--rollouts fast", says("--rollouts", "fast", "continuous")),
    "profile longer than the run": Mistake("--profile 9", says("--profile", "9 steps", "--steps")),
    "clip of 1": Mistake("--ppo_clip 1", says("--ppo_clip", "1 given", "below 1")),
    "a number of 400 digits": Mistake(f"--steps {'9' * 400}", says("--steps", "400 digits", "at most")),
    "a seed too large": Mistake(f"--seed {2**63}", says("--seed", "at most")),
    "more substeps than prompts": Mistake(
        "--num_substeps 3", says("--num_substeps", "3 given", "--batch_size 2", "lower")
    ),
}

COMMAND_LINE = {
    "no student": Mistake("--student_model ''", says("--student_model", "not given", "hub id or a local folder")),
    "no teacher": Mistake("--teacher_model ''", says("--teacher_model", "not given")),
    "flag misspelt": Mistake("--batch_sise 3", says("--batch_sise", "did you mean --batch_size?", "--help")),
    "flag misspelt, hyphens": Mistake("--max-new-token=3", says("--max_new_token", "did you mean --max_new_tokens?")),
    "flag unheard of": Mistake("--xyzzy", says("--xyzzy", "unknown flag", "--help")),
    "text for a whole number": Mistake("--batch_size many", says("--batch_size", "'many' given", "a whole number")),
    "fraction for a whole number": Mistake("--batch_size 1.5", says("--batch_size", "'1.5' given", "a whole number")),
    "text for a number": Mistake("--temperature hot", says("--temperature", "'hot' given", "a number")),
    "not a choice": Mistake("--dtype bf17", says("--dtype", "'bf17' given", "auto, bf16, fp16, fp32")),
    "value left out": Mistake("--wandb_name", says("--wandb_name", "needs a value", "--wandb_name=-")),
    "value for a switch": Mistake("--use_lora=true", says("--use_lora", "takes no value", "--no-use_lora")),
    "word after a switch": Mistake("--use_lora true", says("true", "belongs to no flag", "switches")),
    "name without project": Mistake("--wandb_name mine", says("--wandb_name", "--wandb_project")),
    "tracker misspelt": Mistake("--trackers tensorbord", says("--trackers", "did you mean tensorboard?")),
    "sharding without stage 3": Mistake(
        "--teacher_ds_config ds.json", says("--teacher_ds_config", "--teacher_ds_zero3")
    ),
    "fp16 without GPU": Mistake("--dtype fp16", says("--dtype fp16", "GPU", "use fp32 or bf16")),
    "DeepSpeed file missing": Mistake(
        "--teacher_ds_zero3 --teacher_ds_config no", says("--teacher_ds_config no", "No such")
    ),
    "DeepSpeed file not JSON": Mistake(
        "--teacher_ds_zero3 --teacher_ds_config ds", says("--teacher_ds_config ds", "JSON"), {"ds": "stage: 3"}
    ),
    "DeepSpeed stage 2": Mistake(
        "--teacher_ds_zero3 --teacher_ds_config ds",
        says("--teacher_ds_config ds", "stage is 2", "needs to be 3"),
        {"ds": '{"zero_optimization": {"stage": 2}}'},
    ),
}


def yaml_case(text, *words, more=""):
    return Mistake(f"--config c.yaml {more}", says("--config c.yaml", *words), {"c.yaml": text})


YAML = {
    "YAML missing": Mistake("--config no.yaml", says("--config no.yaml", "cannot be read", "existing YAML file")),
    "YAML is a folder": Mistake("--config .", says("--config .", "cannot be read")),
    "YAML without a name": Mistake("--config ''", says("--config", "cannot be read")),
    "YAML empty": yaml_case("", "a mapping", "`batch_size: 8`"),
    "YAML a list": yaml_case("- batch_size\n", "a mapping"),
    "YAML broken": yaml_case("steps: 2\nseed: [\n", "not valid YAML", "line 3", "mend"),
    "YAML not text": yaml_case(b"\xff\xfe\0", "not valid YAML", "utf-8"),
    "YAML with code in it": yaml_case("seed: !!python/object/apply:os.getpid []\n", "not valid YAML", "python/object"),
    "YAML date that is none": yaml_case("wandb_name: 2024-13-45\n", "not valid YAML", "month"),
    "YAML key misspelt": yaml_case("batch_sise: 3\n", "batch_sise: unknown setting", "did you mean batch_size?"),
    "YAML key of another trainer": yaml_case(
        "num_generations: 3\n", "num_generations: not a setting of ours; it is group_size here"
    ),
    "YAML twice": Mistake("c.yaml --config d.yaml", says("c.yaml: given beside --config d.yaml")),
    "YAML by its place missing": Mistake("no.yaml", says("--config no.yaml", "cannot be read")),
    "YAML after --resume": Mistake("--resume c.yaml", says("--resume c.yaml: a file of settings"), {"c.yaml": ""}),
    "YAML key no text": yaml_case("7: 3\n", "7: unknown setting"),
    "YAML key twice": yaml_case("seed: 1\nsteps: 2\nseed: 3\n", "`seed` is given twice"),
    "YAML key twice, hyphens": yaml_case("batch-size: 1\nbatch_size: 2\n", "batch_size: given twice"),
    "YAML text for a whole number": yaml_case("group_size: many\n", "group_size: 'many'", "a whole number"),
    "YAML fraction for a whole number": yaml_case("group_size: 1.5\n", "group_size: '1.5'", "a whole number"),
    "YAML infinity for a whole number": yaml_case("seed: .inf\n", "seed: 'inf'", "a whole number"),
    "YAML switch for a number": yaml_case("group_size: yes\n", "group_size: True", "a whole number"),
    "YAML list for a number": yaml_case("group_size: [1]\n", "group_size: [1]", "a whole number"),
    "YAML list for text": yaml_case("lora_target_modules: [a, b]\n", "lora_target_modules: ['a', 'b']", "text"),
    "YAML number for a switch": yaml_case("use_lora: 1\n", "use_lora: 1", "true or false"),
    "YAML not a choice": yaml_case("wandb_mode: off\n", "wandb_mode: 'off'", "online, offline, disabled"),
    "YAML nan": Mistake("--config c", says("--kl_coef: nan", "finite"), {"c": "kl_coef: .nan\n"}),
}

CONFIG = "its configuration cannot be loaded"
DOWNLOAD = "download the model again"


def weights_of(change):
    return {"model.safetensors": change}


MODELS = {
    "a folder of something else": Mistake(
        "--student_model .", says("--student_model .", "no config.json", "model folder")
    ),
    "a file": Mistake("--student_model f", says("--student_model f", "a file", "hub id"), {"f": "x"}),
    "a path that is not there": Mistake("--teacher_model ./no", says("--teacher_model ./no", "no such folder")),
    "a path of a run": Mistake(
        "--student_model runs/dmeo", says("--student_model runs/dmeo", "no such folder"), {"other/x": ""}
    ),
    "a path in a folder that is here": Mistake(
        "--teacher_model models/qwen",
        says("--teacher_model models/qwen: no such folder; did you mean models/qwen3?", "hub id"),
        {"models/qwen3/x": ""},
    ),
    "an adapter that is not there": Mistake(
        "--use_lora --init_adapter ./no", says("--init_adapter ./no: no such folder; give a local adapter folder")
    ),
    "a path from home": Mistake("--teacher_model '~/no/no'", says("--teacher_model /", "no such folder")),
    "a hub id out of reach": Mistake(
        "--teacher_model nobody/nothing", says("--teacher_model nobody/nothing", "connect", "a hub id (owner/name)")
    ),
    "no hub id": Mistake(
        "--student_model 'a b'", says("--student_model a b", "cannot be loaded", "a local model folder")
    ),
    "an adapter": Mistake(
        STUDENT, says("--student_model broken", "merge"), broken={"config.json": None, "adapter_config.json": "{}"}
    ),
    "no weights": Mistake(TEACHER, says("--teacher_model broken", "no weights", DOWNLOAD), broken=weights_of(None)),
    "weights cut short": Mistake(
        STUDENT, says("--student_model broken", "model.safetensors is damaged or cut short"), broken=weights_of(b"half")
    ),
    "weights are text": Mistake(
        STUDENT, says("--student_model broken", "damaged"), broken=weights_of(b"version https://git-lfs" * 9)
    ),
    "a part of the weights missing": Mistake(
        TEACHER,
        says("--teacher_model broken", "model-2.safetensors is not there", DOWNLOAD),
        broken={"model.safetensors.index.json": '{"weight_map": {"x": "model-2.safetensors"}}', **weights_of(None)},
    ),
    "weights index broken": Mistake(
        TEACHER,
        says("--teacher_model broken", "index.json"),
        broken={"model.safetensors.index.json": "{}", **weights_of(None)},
    ),
    "no tokenizer": Mistake(
        STUDENT,
        says("--student_model broken", "no tokenizer", "copy tokenizer.json"),
        broken={"tokenizer.json": None, "tokenizer_config.json": None},
    ),
    "tokenizer broken": Mistake(
        STUDENT, says("--student_model broken", "its tokenizer"), broken={"tokenizer.json": "{"}
    ),
    "tokenizer half there": Mistake(
        STUDENT, says("--student_model broken", "its tokenizer"), broken={"tokenizer.json": None}
    ),
    "generation settings broken": Mistake(
        STUDENT, says("--student_model broken", "generation_config.json"), broken={"generation_config.json": "{"}
    ),
    "configuration empty": Mistake(STUDENT, says("--student_model broken", CONFIG), broken={"config.json": ""}),
    "configuration broken": Mistake(
        TEACHER, says("--teacher_model broken", CONFIG, "mend"), broken={"config.json": "{"}
    ),
    "configuration not text": Mistake(STUDENT, says("--student_model broken", CONFIG), broken={"config.json": b"\xff"}),
    "configuration without a type": Mistake(
        STUDENT, says("--student_model", "model_type"), broken={"config.json": "{}"}
    ),
    "configuration of an unknown type": Mistake(
        STUDENT, says("--student_model broken", "`abc`"), broken={"config.json": '{"model_type": "abc"}'}
    ),
    "configuration with text for a size": Mistake(
        STUDENT,
        says("--student_model", "hidden_size"),
        broken={"config.json": '{"model_type": "llama", "hidden_size": "x"}'},
    ),
    "configuration that cannot be": Mistake(
        STUDENT,
        says("--student_model", CONFIG),
        broken={"config.json": '{"model_type": "llama", "num_attention_heads": 0}'},
    ),
    **{
        f"a {config.model_type}": Mistake(
            STUDENT,
            says("--student_model broken", f"{config.model_type} is not a causal", "choose"),
            broken={"config.json": config.to_json_string()},
        )
        for config in (BertConfig(), T5Config(), ViTConfig(), WhisperConfig())
    },
    "another tokenizer": Mistake(
        "--teacher_model {other_tokenizer}", says("--teacher_model", "differs from the student's", "family")
    ),
    **{
        f"adapter on {names}": Mistake(
            f"--use_lora --lora_target_modules {names}", says(f"--lora_target_modules {names}", "q_proj", "all-linear")
        )
        for names in ("nope", "lm_head", "q_proj,nope", "embed_tokens", ",")
    },
}

DISK = {
    "output is a file": Mistake("--output_dir f", says("--output_dir f", "a file", "choose another"), {"f": ""}),
    "output below a file": Mistake("--output_dir f/run", says("--output_dir f/run", "cannot be written"), {"f": ""}),
    "output in /proc": Mistake("--output_dir /proc/run", says("--output_dir /proc/run", "cannot be written")),
    "output with a long name": Mistake(f"--output_dir {'x' * 300}", says("--output_dir", "File name too long")),
    "output without a name": Mistake("--output_dir ''", says("--output_dir", "empty text")),
    "output of something else": Mistake(
        "--output_dir out", says("--output_dir out", "not empty", "choose another", "no checkpoint"), {"out/notes": ""}
    ),
    "output of a run": Mistake(
        "--output_dir out", says("--output_dir out", "not empty", "add --resume"), {"out/step-1/model": ""}
    ),
    "an adapter too large for the disk": Mistake(
        "--use_lora --lora_r 2000000000", says("--output_dir run", "GB free", "--keep_checkpoints")
    ),
}

ALL = {**PROMPTS, **NUMBERS, **COMMAND_LINE, **YAML, **MODELS, **DISK}


def write(folder: Path, files: dict[str, str | bytes | None]) -> None:
    """Put the files there; None deletes one."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
