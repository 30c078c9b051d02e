"""What a job is as a process: ``python -m coterie.launch.run_job OWNER ARGUMENT...`` is ``coterie ARGUMENT...``, ended
with its owner; see `coterie.launch.run_jobs`. ``COTERIE_JOB`` tells the store so."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

from coterie.launch.process import end_with

if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.environ["COTERIE_JOB"] = sys.argv[1]
    if hasattr(signal, "SIGUSR2"):  # SLURM tells every process of a job that its time is nearly up; one of them acts on it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.argv = ["coterie", *sys.argv[2:]]
    import_module("coterie.cli").main()
