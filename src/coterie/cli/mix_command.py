"""`coterie mix`."""

from __future__ import annotations

from coterie.cli.options import until

NAME = "mix"
command = until("mixtures", "Train, fit routers and assemble a recipe's mixtures.")
