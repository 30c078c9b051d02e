"""The first of us that Python runs: until a command can say what is kept, Ctrl-C ends it without a word.

Nothing has been started then. Python's own way would be a traceback through its import system. A program that imports
coterie keeps its own way.
"""

from __future__ import annotations

import signal
import sys

COMMAND = sys.argv[:1] != [] and (sys.argv[0].endswith(("/coterie", "\\coterie")) or sys.orig_argv[1:3] == ["-m", "coterie"])
if COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
