"""Print the table of pretrained models; with `--write`, put it into README.md between its two markers."""

import sys
from pathlib import Path

from medgen.cli.zoo import entries

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"
EMPTY = "No model has been added to `zoo/` yet."


def table() -> str:
    """One line per model of the zoo in Markdown, from the models' own files."""
    rows = entries()
    if not rows:
        return EMPTY
    head = ["| name | model | channels | grid | training data | licence | MB | metrics |", "|---|---|---|---|---|---|---|---|"]
    return "\n".join(head + [line(row) for row in rows])


def line(row: dict) -> str:
    """A model's line."""
    channels = " + ".join(row["source"]) + (" → " if row["source"] else "") + " + ".join(row["target"])
    grid = " × ".join(map(str, row["size"]))
    metrics = ", ".join(f"{name} {value}" for name, value in row["metrics"].items()) or "see its card"
    cells = [f"[`{row['name']}`](zoo/{row['name']})", row["model"], channels, grid, row["data"], row["licence"]]
    return "| " + " | ".join([*cells, f"{row['bytes'] / 1e6:.1f}", metrics]) + " |"


def with_table(text: str) -> str:
    """README's text with the block between the markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    if "--write" in sys.argv:
        README.write_text(with_table(README.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
