"""Where prompts come from, how they become token ids, and which of them a step gets.

``open_prompts`` reads a source, ``Renderer`` turns one prompt into ids, ``PromptSource`` holds some
prompts out and deals the others to the steps.
"""

from local_distill.prompts.opening import PromptRecord, open_prompts, prompts_are_here, source_in_words
from local_distill.prompts.raw import Message, RawPrompt, RawPrompts
from local_distill.prompts.rendering import Renderer, parse_template_kwargs
from local_distill.prompts.source import PromptSource

__all__ = [
    "Message",
    "PromptRecord",
    "PromptSource",
    "RawPrompt",
    "RawPrompts",
    "Renderer",
    "open_prompts",
    "parse_template_kwargs",
    "prompts_are_here",
    "source_in_words",
]
