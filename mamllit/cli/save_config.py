"""The configuration of a run: as a file in its directory, and for its loggers."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger

from mamllit.runs import loggers, tracking


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` to the run directory of a fit, and gives the resolved configuration to the loggers.

    What is written is `as_asked`, the configuration before the run directory was filled in: `fit -c config.yaml` repeats
    the run beside the first one. A later `test` leaves the file alone.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, as_asked: Namespace) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.as_asked = as_asked

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.as_asked, str(path), skip_none=False, skip_validation=True, overwrite=True, multifile=False)
        resolved = plain(self.parser, self.config)
        if not all(isinstance(logger, CSVLogger) for logger in trainer.loggers):  # a file in the run directory needs no name
            resolved["experiment"] = self._described(trainer, resolved)
        for logger in trainer.loggers:
            if isinstance(logger, Logger):
                logger.log_hyperparams(resolved)

    def _described(self, trainer: L.Trainer, resolved: dict[str, Any]) -> dict[str, Any]:
        """Table, cell and seed, and what differs from the experiment's file (see `mamllit.runs.tracking`)."""
        file, before = tracking.cell([str(path) for path in self.config.config or []]), None
        if file is not None:
            try:
                asked = self.parser.parse_path(file)
                before = plain(self.parser, asked)
            except (ArgumentError, SystemExit):  # a file that is not a complete experiment
                file = None
        group = next((str(entry.init_args.group) for entry in loggers.wandb_entries(self.config.trainer.logger)), "")
        return tracking.describe(group, seed_of(self.config), file, before, resolved)


def plain(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A configuration that was parsed, as plain values, defaults included."""
    found: dict[str, Any] = json.loads(parser.dump(config, skip_none=False, skip_validation=True, format="json_compact"))
    return found


def seed_of(config: Any) -> int | None:
    """The seed that a configuration asks for; 0 where it leaves it open, None where nothing is to be seeded."""
    seed = config.get("seed_everything")
    if seed is False:
        return None
    return 0 if seed is True or seed is None else int(seed)


def seed_name(config: Any) -> str:
    """How a run directory is named after the seed."""
    return "unseeded" if (seed := seed_of(config)) is None else f"seed_{seed}"
