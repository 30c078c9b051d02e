"""`coterie train`."""

from __future__ import annotations

from coterie.cli.options import until

NAME = "train"
command = until("experts", "Train a recipe's experts, each distinct one once.")
