"""The experiments, one folder each, and the index of their tables.

A folder with a `table.py` that has `TABLES`, a tuple of `stn.report.table.Table`, is all that a table needs to be known
to the pipeline and to every format of the report. Neither torch nor matplotlib is imported here.
"""

import pkgutil
from importlib import import_module

from stn.report.table import Table


def find_tables() -> dict[int, Table]:
    """The tables of all experiments by number, in ascending order; ValueError if two have the same number."""
    tables: dict[int, Table] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if module.ispkg:
            for table in import_module(f"{module.name}.table").TABLES:
                if tables.setdefault(table.number, table) is not table:
                    raise ValueError(
                        f"{module.name}: there is a Table {table.number} already, {tables[table.number].title}"
                    )
    return dict(sorted(tables.items()))
