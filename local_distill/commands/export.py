"""local-distill export: a trained model as others use it."""

from __future__ import annotations

from local_distill.commands import Command
from local_distill.config.places import look_by_place
from local_distill.export.export_config import ExportSettings

USAGE = """\
local-distill export RUN [settings]

examples:
  local-distill export runs/first                            # into runs/first/export-step-100
  local-distill export runs/first --step best --dtype fp16 --output_dir my-model
  local-distill export runs/first --gguf q8_0 --gguf_converter ~/llama.cpp/convert_hf_to_gguf.py
  local-distill export runs/first --push_to_hub me/my-model --private

What was written is loaded again and compared with the trained model. Nothing leaves this machine without --push_to_hub.
"""


def run(settings: ExportSettings) -> int:
    """Export. Returns the exit code."""
    from local_distill.export.export_model import export  # it imports torch, which takes seconds
    from local_distill.process.isolation import quiet_libraries

    with quiet_libraries():
        export(settings, say=print)
    return 0


COMMAND = Command(
    "export", ExportSettings, run, USAGE, "Merged weights with a model card; GGUF; the hub.", first=look_by_place
)
