"""``local-distill``: every command introduces itself quickly, mistakes are one line, the shell completes."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from local_distill import __version__
from local_distill.commands import COMMANDS, load, main
from local_distill.commands.completion import SHELLS

HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_introduces_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert f"local-distill {name}" in shown
    assert load(name).description.split()[0] in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_all_introductions_together_load_nothing_heavy():
    program = f"""
import sys
from local_distill.commands import COMMANDS, load
for name in COMMANDS:
    load(name).parser()
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_overview_names_every_command(capsys):
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        assert all(f"  {name} " in line for name, line in zip(COMMANDS, told(capsys.readouterr().out), strict=True))


def told(overview):
    """Its lines about commands."""
    return [line for line in overview.splitlines() if line.startswith("  ")]


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"local-distill {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "trian: not a command; did you mean train?"),
        (["xyzzy"], "xyzzy: not a command; choose from train, demo"),
        (["--train"], "--train: not a command; did you mean train?"),
        (["demo", "--modles", "x"], "did you mean --models?"),
        (["completion"], "SHELL: not given"),
        (["completion", "fish"], "fish: not a shell that can be completed for"),
        (["demo", "--models", ""], "--models: empty text given"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_python_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "local_distill", "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: trian: not a command")


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_a_script_that_its_shell_reads(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out)
    assert "gradient_checkpointing" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("local-distill pl", {"plan"}),
        ("local-distill plan --gpu_m", {"--gpu_memory"}),
        ("local-distill train --teacher_q", {"--teacher_quantization"}),
        ("local-distill train --loss rev", {"reverse_kl"}),
        ("local-distill demo --lo", {"--lora"}),
    ],
)
def test_bash_completes(line, offered, tmp_path, capsys):
    """As bash does it: the words, the place of the cursor, the registered function, what it offers."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    function = re.search(r"complete .*-F (\S+) local-distill", script)[1]
    words = line.split()
    ask = (
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; {function}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    (tmp_path / "ask").write_text(f"{script}\n{ask}\n")
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", str(tmp_path / "ask")], capture_output=True, text=True, env=environment, check=True)
    assert set(done.stdout.split()) == offered
