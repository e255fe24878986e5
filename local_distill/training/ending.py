"""How a run ends before its time: in one line, with what was saved of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_distill.errors import RunError, UserError
from local_distill.process.distributed import alone
from local_distill.process.signals import Stopped
from local_distill.runs.checkpoints import last_saved
from local_distill.training.out_of_memory import DidNotFitError, is_out_of_memory


@contextmanager
def ending_in_one_line(folder: Path) -> Iterator[None]:
    """What ends a run early, told together with what was saved of it."""
    try:
        yield
    except RunError as error:
        told = UserError(f"{error}; {last_saved(folder)}")
        told.alone = error.alone
        raise told from error
    except Stopped as stopped:
        raise Stopped(stopped.signal, f"at once; {last_saved(folder)}") from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
        if not isinstance(error, DidNotFitError):
            reason = (
                f"--microbatch_tokens: out of memory while loading, scoring or evaluating ({reason.split('. ')[0]}); "
                'lower it, or see "Out of memory?" in the README'
            )
        raise alone(UserError(f"{reason}; {last_saved(folder)}")) from error
