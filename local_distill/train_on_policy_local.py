"""The documented entry: read the settings, then check → open → build → run, which build.py has in this order.

python -m local_distill.train_on_policy_local --student_model … --teacher_model …

torch is imported when there is something to train: it takes seconds, for which a mistake need not wait.
"""

from __future__ import annotations

if __name__ == "__main__":  # before all else is imported
    from local_distill.packages import leave_out_working_folder
    from local_distill.process.signals import end_on_signals

    leave_out_working_folder()
    end_on_signals()

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from local_distill.config.places import look_for_run
from local_distill.config.train_config import TrainConfig, TrainSettings, parse_settings
from local_distill.errors import RunError, UserError, without_advice
from local_distill.monitor.working import working
from local_distill.process.command_line import to_resume
from local_distill.process.exit_codes import exit_code_of
from local_distill.process.signals import ending_on_signals, leaving
from local_distill.runs.checkpoints import last_saved, step_folders
from local_distill.runs.evaluations import TrainResult
from local_distill.runs.layout import SETTINGS_FILE

UNBOUNDED_WORK = 3600.0
"""Seconds that one process may take alone where no setting says: to hash a large checkpoint, for long samples."""
LONGEST_WAIT = 30 * 24 * 3600.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user's mistake, 128 + n after signal n."""
    with ending_on_signals():
        words = sys.argv[1:] if argv is None else argv
        return exit_code_of(lambda: obey(parse_settings(words, look_for_run)))


def obey(settings: TrainSettings) -> int:
    """Train, or with ``--dry_run`` look at what would be done. Returns the exit code."""
    config = settings.config
    if not settings.dry_run:
        return train(config).exit_code
    dry_run(config)
    return 0


def dry_run(config: TrainConfig) -> None:
    """Check all of a run that needs no weights, and print what it would do; nothing of it is loaded or written.

    Raises UserError for the first thing that is wrong.
    """
    from local_distill.dry_run import look
    from local_distill.process.isolation import one_run

    with one_run(longest_wait(config)):
        look(config)


def train(config: TrainConfig) -> TrainResult:
    """Distil as ``config`` says, print what happens, and leave everything in the run's folder.

    As often as wanted in one process, from any thread; Ctrl-C and SIGTERM are heeded in the main thread alone.
    Raises UserError, in one line, for what the user can mend.
    """
    with working("loading torch and transformers"):
        from local_distill.build import build, check, open_models, run
        from local_distill.process.isolation import one_run

    # The processes meet before anything is checked, so that a mistake on one machine ends all.
    with one_run(longest_wait(config)), ExitStack() as holding:
        with working("reading the models' files and the prompts"):
            launch = check(config, holding)
        with ending_in_one_line(launch.folder.path), launch.closing:
            models = open_models(launch)
            steps = build(launch, models)
            result = run(launch, steps)
        del models, steps  # they hold an end of the link between the processes, which part now
        launch.accelerator.end_training()
    return result


def longest_wait(config: TrainConfig) -> timedelta:
    """Return how long one process may lawfully be waited for: what settings bound, and an hour for the rest.

    Requests to a server may follow each other where they are more than may be under way, and weights go before them.
    """
    requests = max(config.batch_size * config.group_size, config.eval_prompts or 0)
    in_turn = 2 + -(-requests // config.server_concurrency) if config.rollouts_url or config.teacher_url else 0
    seconds = UNBOUNDED_WORK + in_turn * (config.server_timeout + config.server_patience)
    return timedelta(seconds=min(seconds, LONGEST_WAIT))


@contextmanager
def ending_in_one_line(folder: Path) -> Iterator[None]:
    """Tell what ends a run early together with what was saved of it, another process's end included."""
    from local_distill.process.distributed import alone, losing_others
    from local_distill.training.device_memory import DidNotFitError, is_out_of_memory

    try:
        with losing_others(), leaving(lambda: f"at once; {last_saved(folder)}{how_to_go_on(folder)}"):
            yield
    except RunError as error:
        told = UserError(f"{error}; {last_saved(folder)}")
        told.alone = error.alone
        raise told from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error)
        if not isinstance(error, DidNotFitError):
            reason = (
                f"--microbatch_tokens: out of memory while loading, scoring or evaluating ({without_advice(error)}); "
                "lower it, or see docs/out_of_memory.md"
            )
        raise alone(UserError(f"{reason}; {last_saved(folder)}")) from error


def how_to_go_on(folder: Path) -> str:
    """Return the line that goes on with a run, after the words for it; nothing where it has saved nothing yet."""
    if not step_folders(folder) or not (folder / SETTINGS_FILE).is_file():
        return ""
    return f"; to go on:\n  {to_resume(folder / SETTINGS_FILE)}"


if __name__ == "__main__":
    sys.exit(main())
