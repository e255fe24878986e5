"""An evaluation from its settings to its table, in five calls, one after the other.

    check     → EvalInputs   settings, questions, the models' files: all that can be refused before any weights
    open_run  → EvalRun      the folder of the answers, which may hold some already
    ask       → Harness      each model in turn is loaded, answers what it has not answered, and is scored
    judge     → Results      the numbers of each model, and what differs between two
    write                    results.json and the tables

Each but the last stands in a file with what it is made of: questions_and_model.py, asking.py, scores.py.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack

from local_distill.eval.asking import EvalRun, ask, open_run
from local_distill.eval.eval_config import EvalSettings
from local_distill.eval.questions_and_model import check
from local_distill.eval.scores import Results, judge, show, to_record
from local_distill.process.signals import Stopped


def evaluate(settings: EvalSettings) -> int:
    """Evaluate as ``settings`` says. Returns the exit code. Raises UserError for what the user can mend."""
    with ExitStack() as closing:
        inputs = check(settings, closing)
        run = open_run(inputs, closing)
        try:
            on_harness = ask(run)
        except (KeyboardInterrupt, Stopped) as stopped:
            run.say(f"stopped; the same command with --output {run.output.path} goes on from here")
            return stopped.exit_code if isinstance(stopped, Stopped) else 128 + signal.SIGINT
        results = judge(inputs, run.output, on_harness)
        write(run, results)
    return 0


def write(run: EvalRun, results: Results) -> None:
    """Write results.json, and show the numbers."""
    run.output.write_results(to_record(run.inputs, results))
    show(run.console, run.inputs, results)
