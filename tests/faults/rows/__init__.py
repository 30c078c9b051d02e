"""The kinds of fault: each file declares its rows in `ROWS`, and campaign, short tests and table follow from that."""

import importlib
import pkgutil

from tests.faults.row import Row

ROWS: list[Row] = [
    row for file in pkgutil.iter_modules(__path__) for row in importlib.import_module(f"{__name__}.{file.name}").ROWS
]
