"""Where numbers go: always a CSV file, Weights & Biases by choice."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger


class CSVLog(Logger):
    """`metrics.csv` in the run folder, one row a step; a new column rewrites the header, a resumed run drops rows past its step."""

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """The resolved configuration is already in the run folder."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **{k: f"{v:.6g}" for k, v in metrics.items()}}
        rows = self.rows()
        columns = list(dict.fromkeys([*(rows[0] if rows else {}), *row]))
        if rows and list(rows[0]) == columns:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerow(row)
            return
        self._write([*rows, row], columns)

    def rows(self) -> list[dict[str, str]]:
        """Everything logged so far."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def rewind(self, step: int) -> None:
        """Forget rows after `step`: a resumed run writes them again."""
        rows = self.rows()
        kept = [r for r in rows if int(r["step"]) <= step]
        if len(kept) < len(rows):
            self._write(kept, list(rows[0]))

    def _write(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(partial, self.path)


def wandb_log(folder: str | Path, project: str = "medgen", mode: str = "auto") -> Logger:
    """Weights & Biases, resumed under the run folder's name.

    Args:
        folder: the run folder; its path gives the run's id, so that a resumed run goes on with it.
        project: project to log to.
        mode: "online", "offline", or "auto": online only where an API key is set.
    """
    from lightning.pytorch.loggers import WandbLogger

    offline = mode == "offline" or (mode == "auto" and not os.environ.get("WANDB_API_KEY"))
    run = Path(folder).resolve()
    identity = sha256(str(run).encode()).hexdigest()[:16]
    return WandbLogger(project=project, id=identity, name=run.name, save_dir=str(run), offline=offline, resume=None if offline else "allow")
