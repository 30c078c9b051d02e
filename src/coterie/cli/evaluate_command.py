"""`coterie evaluate`."""

from __future__ import annotations

from coterie.cli.options import until

NAME = "evaluate"
command = until("evaluation", "Train, mix and evaluate.")
