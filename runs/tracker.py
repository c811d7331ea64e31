"""Where results are sent besides the table: nowhere, or Weights & Biases (offline unless WANDB_MODE says otherwise)."""

import os
from pathlib import Path

from sige.runs.errors import UserError

NAMES = ("none", "wandb")


class NoTracker:
    """Sends nothing."""

    def log(self, rows: list[dict]) -> None:
        """Rows of one run have been stored."""

    def finish(self, files: list[Path]) -> None:
        """The end; ``files`` are worth keeping."""


class Wandb(NoTracker):
    """One W&B run for one call of the runner: scalars by method and metric, and all rows as a table."""

    def __init__(self, folder: Path, config: dict):
        # Online without a key fails, without a network waits 100 s: offline is the default, `wandb sync` sends later.
        os.environ.setdefault("WANDB_MODE", "offline")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        self.run = wandb.init(project="sige-incremental", dir=str(folder), config=config, job_type=config["experiment"])
        self.rows: list[dict] = []

    def log(self, rows):
        """Scalars of one run; rows without a number go into the table only."""
        self.rows += rows
        scalars = {f"{row['method']}/{row['metric']}": row["value"] for row in rows if row["status"] == "ok"}
        if scalars:
            self.run.log({"edit_area": rows[0]["edit_area"], "edit": rows[0]["edit"], **scalars})

    def finish(self, files):
        """The table of all rows, the files, and the end of the run."""
        if self.rows:
            columns = [name for name in self.rows[0] if name != "config"]
            self.run.log(
                {"runs": self.wandb.Table(columns=columns, data=[[row[name] for name in columns] for row in self.rows])}
            )
        artifact = self.wandb.Artifact("results", type="results")
        for path in files:
            if path.is_file():
                artifact.add_file(str(path))
        self.run.log_artifact(artifact)
        self.run.finish()


def check(name: str) -> None:
    """UserError lists the names if this is none of them."""
    if name not in NAMES:
        raise UserError(f"unknown tracker {name!r}; choose {' or '.join(NAMES)}.")


def open_tracker(name: str, folder: Path, config: dict) -> NoTracker:
    """The tracker of this name."""
    check(name)
    return Wandb(folder, config) if name == "wandb" else NoTracker()
