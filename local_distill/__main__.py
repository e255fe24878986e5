"""python -m local_distill: the same as the command ``local-distill``."""

import sys

from local_distill.commands import main
from local_distill.packages import leave_out_working_folder

if __name__ == "__main__":
    leave_out_working_folder()
    sys.exit(main())
