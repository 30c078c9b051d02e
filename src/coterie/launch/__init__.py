"""Work on many processes: torchrun on this machine. No torch in this process."""

from coterie.launch.torchrun import on_ranks

__all__ = ["on_ranks"]
