"""python -m local_distill: the same as the command ``local-distill``."""

import sys

from local_distill.commands import main

if __name__ == "__main__":
    sys.exit(main())
