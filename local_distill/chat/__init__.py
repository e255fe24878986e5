"""Talking to a model in the terminal, beside its teacher, which colours every token by its disagreement.

start.py          from the settings to a session
session.py        the loop, what begins with a slash, and the lines that are typed
answering.py      one answer, token by token, with the teacher's opinion of each
conversation.py   what was said, rendered for the next answer; how it is kept in a file
screen.py         a terminal with colours, or plain lines; what explains the colours
"""
