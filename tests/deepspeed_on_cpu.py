"""The entry point with a DeepSpeed student on CPU processes, which accelerate's own launcher does not offer.

accelerate takes a launch for the CPU or for DeepSpeed, never both; making the processes' state first
lets it have both. Run by torchrun, with ACCELERATE_USE_DEEPSPEED set as ``accelerate launch`` sets it.
"""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

from accelerate import PartialState

if __name__ == "__main__":
    PartialState(cpu=True)
    from local_distill.train_on_policy_local import main

    sys.exit(main())
