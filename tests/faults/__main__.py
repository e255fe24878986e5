"""python -m tests.faults [--seed N] [PART …]: the whole campaign, on two cores, and its table."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

# Before torch is imported: forked processes share two cores, no hub is asked, and tokenizers stay in one thread.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}

import local_distill.chat.start
import local_distill.export.export_model
import local_distill.train_on_policy_local  # noqa: F401  what the forked processes need
from tests.faults.damage import damaged_files
from tests.faults.disks import full_disks, limited_files
from tests.faults.ends import kills, pairs, removals, stops
from tests.faults.inputs import mistakes
from tests.faults.servers import faulty_servers
from tests.faults.site import Site, open_site
from tests.faults.tally import Tally

PARTS = {
    part.__name__: part
    for part in (kills, faulty_servers, damaged_files, stops, mistakes, full_disks, pairs, limited_files, removals)
}
"""The longest first: as many as there are cores go on side by side."""
CORES = 2


def main() -> int:
    """Returns 1 where anything happened that must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all where none is named")
    given = parser.parse_args()
    names = [name for name in PARTS if not given.parts or name in given.parts]
    began, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        site = open_site(Path(folder), given.seed, tally)
        under_way: dict[int, str] = {}
        for name in names:
            while len(under_way) == CORES:
                _collect(tally, under_way, Path(folder))
            own = replace(site, rng=random.Random(f"{given.seed} {name}"), tally=Tally())
            under_way[_begin(name, own, Path(folder) / f"{name}.json")] = name
        while under_way:
            _collect(tally, under_way, Path(folder))
    print(*tally.notes, sep="\n\n", end="\n\n" if tally.notes else "")
    print(tally.table())
    print(f"\nseed {given.seed}, {time.monotonic() - began:.0f} s")
    return int(tally.failed)


def _begin(name: str, site: Site, file: Path) -> int:
    """A part in a process of its own, which leaves its tally in ``file``."""
    pid = os.fork()
    if pid == 0:
        try:
            began = time.monotonic()
            PARTS[name](site)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        except BaseException as error:
            site.tally.add(name, "".join(traceback.format_exception(error)), otherwise=1)
        finally:
            file.write_text(json.dumps({"rows": site.tally.rows, "notes": site.tally.notes}))
            os._exit(0)  # what the parent has to clear away is left alone
    return pid


def _collect(tally: Tally, under_way: dict[int, str], folder: Path) -> None:
    """Wait for a part to end and add what came of it."""
    pid, _ = os.wait()
    told = json.loads((folder / f"{under_way.pop(pid)}.json").read_text())
    tally.rows.update(told["rows"])
    tally.notes += told["notes"]


if __name__ == "__main__":
    sys.exit(main())
