"""A shell, or another program, on a pseudo terminal, with the commands of terminal.py."""

import sys

import desk
from terminal import Terminal

terminal = Terminal(sys.argv[1:], PS1="prompt> ", TERM="dumb")
for words, answer in desk.commands():
    answer(terminal.command(words))
