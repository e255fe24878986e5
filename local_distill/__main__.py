"""python -m local_distill: the same as the command ``local-distill``."""

import sys

from local_distill.packages import leave_out_working_folder

if __name__ == "__main__":
    leave_out_working_folder()
    from local_distill.commands import main  # only now: a yaml of the working folder would be taken for the library

    sys.exit(main())
