"""Talking to a model in the terminal, beside its teacher, which colours every token by its disagreement.

voices.py         a model in the middle of a text: what it thinks comes next
answering.py      one answer, token by token, with the teacher's opinion of each
text_stream.py    tokens → text while it is being written
conversation.py   what was said, rendered for the next answer; transcript.py keeps it in a file
screen.py         a terminal with colours, or plain lines; worst_tokens.py explains the colours
session.py        the loop; slash_commands.py what begins with a slash
"""
