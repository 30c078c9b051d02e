"""`coterie run`."""

from __future__ import annotations

from coterie.cli.options import until

NAME = "run"
command = until("report", "Do everything a recipe asks for: train, mix, evaluate, report.")
