"""One self-contained HTML page from a folder of runs: figures, a table, and the paper's claims.

Reads runs through `batchramp.store` alone, and never torch.
"""

from batchramp.report import claims
from batchramp.report.page import write
from batchramp.report.table import write_csv

__all__ = ["claims", "write", "write_csv"]
