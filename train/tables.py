"""How are words and numbers laid out for a person to read?"""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

PREFIXES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
STRONG = ("total", "forward", "training", "peak")  # rows that sum up


def grid(
    console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1
) -> None:
    """A table whose first `words` columns are words and whose others are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for i, title in enumerate(header):
        table.add_column(title, justify="left" if i < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in STRONG else "")
    console.print()
    console.print(table, highlight=False)


def si(value: float, unit: str) -> str:
    """With a prefix of thousands and two decimals: `1.23 GB`."""
    for prefix, size in PREFIXES.items():
        if value >= size:
            return f"{value / size:.2f} {prefix}{unit}"
    return f"{value:.0f} {unit}"
