"""local-distill chat: talk to a model, beside its teacher."""

from __future__ import annotations

from local_distill.chat.chat_config import ChatSettings
from local_distill.commands import Command
from local_distill.config.places import look_by_place

USAGE = """\
local-distill chat MODEL [settings]

examples:
  local-distill chat runs/first                          # the last step of a run; an adapter on its base
  local-distill chat runs/first --step best --teacher_model Qwen/Qwen3-4B
  local-distill chat runs/first --teacher_model self     # an adapter beside the model it was put on
  echo "What is the capital of France?" | local-distill chat runs/first

In a terminal, /help lists what can be said to the program instead of the model. With a teacher, each token of the
student's is coloured by the reverse KL at that place: none below 0.05 nats, yellow, red from 5.
Piped in, each line is a question or a command; piped out, each answer is a line, its own line ends written as \\n.
"""


def run(settings: ChatSettings) -> int:
    """Chat until the questions end. Returns the exit code."""
    from local_distill.chat.start import chat  # it imports torch, which takes seconds
    from local_distill.process.isolation import quiet_libraries

    with quiet_libraries():
        return chat(settings)


COMMAND = Command(
    "chat", ChatSettings, run, USAGE, "Talk to a model in the terminal, beside its teacher.", first=look_by_place
)
