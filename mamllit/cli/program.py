"""The command line, `mamllit fit|validate|test -c CONFIG.yaml`: LightningCLI with the defaults that episodes need.

What is added to LightningCLI: one run directory per run, in which everything lands; Weights & Biases offline unless
asked; a test at the end of `fit`; a `test` that takes the run's checkpoint, or a pretrained one by name, instead of untrained
weights; and the commands of `mamllit.cli.commands`, which need no Trainer.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
import wandb
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger

from mamllit import pretrained
from mamllit.callbacks import AdaptationFigures, ResultWriter, StepProgressBar, Stopped, WandbDashboard
from mamllit.cli import commands
from mamllit.cli.assemble import check_written, equip, plugins, starting_point
from mamllit.data import EpisodicDataModule
from mamllit.pretrained.build import fill
from mamllit.pretrained.files import is_meant, steps_done
from mamllit.runs import loggers, tracking
from mamllit.runs.stopping import last_checkpoint
from mamllit.systems import MetaLearner

RUN_DIR_VARIABLE = "MAMLLIT_RUN_DIR"  # tells processes that Lightning starts for the other ranks where the run lives
TRAINER_DEFAULTS: dict[str, Any] = {
    "inference_mode": False,  # adaptation at test time needs gradients
    "max_epochs": -1,  # the stream of episodes has no end; max_steps counts
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,  # MetaLearner.log_every decides
}


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
            self.parser.save(self.as_asked, str(path), skip_none=False, overwrite=True, multifile=False)
        resolved = json.loads(self.parser.dump(self.config, skip_none=False, format="json_compact"))
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
                before = json.loads(self.parser.dump(asked, skip_none=False, format="json_compact"))
            except (ArgumentError, SystemExit):  # a file that is no whole experiment by itself
                file = None
        group = next((str(entry.init_args.group) for entry in loggers.wandb_entries(self.config.trainer.logger)), "")
        return tracking.describe(group, _seed(self.config), file, before, resolved)


class MamllitCLI(LightningCLI):
    """See the module; arguments of ours: `--wandb`, `--run_name`, `--threads`, `--init_from` and `--test_after_fit`."""

    pretrained: Path | None = None  # a safetensors file to evaluate; Lightning would take its own checkpoints only

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--wandb", choices=["offline", "online", "disabled"], default="offline", help="W&B mode")
        parser.add_argument("--run_name", type=str, default="", help="run directory below default_root_dir (seed_<seed>)")
        parser.add_argument("--test_after_fit", type=bool, default=True, help="evaluate the last weights after fit")
        parser.add_argument("--init_from", type=str | None, default=None, help="fit: begin with a trained checkpoint's weights")
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (torch's default: one per core)")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint_last")
        parser.set_defaults({f"checkpoint_last.{k}": v for k, v in _LAST.items()})
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint_best")
        parser.set_defaults({f"checkpoint_best.{k}": v for k, v in _BEST.items()})
        parser.add_lightning_class_args(ResultWriter, "results")
        parser.add_lightning_class_args(AdaptationFigures, "figures")
        parser.add_lightning_class_args(StepProgressBar, "progress")
        parser.add_lightning_class_args(WandbDashboard, "dashboard")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            parser.set_defaults({"verbose": False})  # ResultWriter prints the table; Lightning's has hundreds of rows
        return parser

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        fitting = self.subcommand == "fit"
        if config.threads is not None:
            if config.threads < 1:
                raise ValueError(f"threads is {config.threads}; it must be >= 1")
            torch.set_num_threads(config.threads)
        if config.init_from is not None and not fitting:
            raise ValueError(f"init_from is {config.init_from!r}; it is for `fit`. To evaluate a checkpoint, use --ckpt_path")
        as_asked = config.clone()
        as_asked.ckpt_path = None  # a resumed run is repeated from its beginning
        self.save_config_kwargs = {"as_asked": as_asked}
        self.pretrained = _pretrained(config.get("ckpt_path"), fitting)
        if self.pretrained is not None:  # its result is none of this run's, so that it does not go where that lies
            config.ckpt_path, config.run_name = None, config.run_name or f"pretrained_{self.pretrained.stem}"
        run = _run_dir(config, fresh=fitting and not config.get("ckpt_path"))
        config.trainer.default_root_dir = str(run)
        config.checkpoint_last.dirpath = config.checkpoint_best.dirpath = str(run / "checkpoints")
        config.trainer.logger = loggers.of_run(config, run, _seed(config))
        if config.trainer.enable_progress_bar is False:  # Lightning refuses this beside a bar of our own
            config.trainer.enable_progress_bar, config.progress.refresh = None, 0
        if fitting:
            config.ckpt_path = starting_point(run, config.get("ckpt_path"), config.trainer.max_steps)
        elif self.pretrained is None:
            config.ckpt_path = _checkpoint(run, config.get("ckpt_path"))

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        asked = self._get(self.config_init, "trainer").get("plugins")
        trainer = super().instantiate_trainer(plugins=plugins(asked), **kwargs)
        equip(trainer, self._get(self.config, "init_from"))
        return trainer

    def before_test(self) -> None:
        if self.pretrained is not None:
            checkpoint, tensors = pretrained.read(self.pretrained)
            fill(self.model.method, checkpoint, tensors)
            self.model.trained_steps = steps_done(checkpoint.result)

    before_validate = before_test

    def after_fit(self) -> None:
        if self.trainer.interrupted:
            return
        # max_steps need not be a multiple of every_n_train_steps
        self.trainer.save_checkpoint(last_checkpoint(self.trainer), weights_only=False)
        if self.config.fit.test_after_fit:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        check_written(self.trainer)


_LAST = {"filename": "step{step}", "auto_insert_metric_name": False, "every_n_train_steps": 1000, "save_last": True}
_LAST["enable_version_counter"] = False  # a resumed run writes over what it had written after its checkpoint
_BEST = {"filename": "best", "enable_version_counter": False, "monitor": "val/accuracy", "mode": "max"}


def _seed(config: Any) -> int:
    seed = config.get("seed_everything")
    return 0 if seed is True or seed is None else int(seed)


def _run_dir(config: Any, fresh: bool) -> Path:
    """default_root_dir/run_name; a fresh fit never writes into a directory that holds a run, but beside it."""
    if known := os.environ.get(RUN_DIR_VARIABLE):
        return Path(known)
    name = config.run_name or f"seed_{_seed(config)}{tracking.sweep_suffix()}"
    root = Path(config.trainer.default_root_dir or "runs")
    named = (path for path in root.glob(f"{name}*") if re.fullmatch(rf"{re.escape(name)}(_v\d+)?", path.name))
    taken = [path for path in named if _holds_a_run(path)]
    version = max((int(path.name.rsplit("_v", 1)[1]) if "_v" in path.name[len(name) :] else 1 for path in taken), default=0)
    version = version + 1 if fresh else max(version, 1)
    run = root / (name if version == 1 else f"{name}_v{version}")
    if "WORLD_SIZE" not in os.environ:  # launched by us, not by torchrun: the ranks that Lightning starts inherit it
        os.environ[RUN_DIR_VARIABLE] = str(run)
    return run


def _holds_a_run(path: Path) -> bool:
    """More than an id: that one the first rank writes while other ranks still look for their, the same, directory."""
    return any(inside.name != tracking.ID_FILE for inside in path.iterdir()) if path.is_dir() else True


def _pretrained(asked: str | None, fitting: bool) -> Path | None:
    """The file of the pretrained checkpoint that `asked` names; None where it means one of a run."""
    if asked is None or not is_meant(asked):
        return None
    path = pretrained.find(asked)
    if fitting:
        raise ValueError(
            f"{path} holds a trained model without the optimiser's state, so `fit` cannot resume it; begin a new run "
            f"with its weights by --init_from {asked}, or resume from a .ckpt file of a run"
        )
    return path


def _checkpoint(run: Path, asked: str | None) -> str:
    """The checkpoint to evaluate: "last" (default) and "best" are those of the run, else a path."""
    path = run / "checkpoints" / f"{asked or 'last'}.ckpt" if asked in (None, "last", "best") else Path(str(asked))
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {path}: train first with `mamllit fit` and the same configuration, "
            "or name a file with --ckpt_path"
        )
    return str(path)


def names_a_system(args: ArgsType = None) -> bool:
    """Whether the command or one of its files names the class of the model (`model: {class_path: ...}`); where none does, the
    model is a `MetaLearner`, and its settings stand under `model` themselves."""
    given = sys.argv[1:] if args is None else args
    if not isinstance(given, list):
        return any("class_path" in (part.get("model") or {}) for part in (given, *given.values()) if hasattr(part, "get"))
    files = [after for flag, after in zip(given, given[1:], strict=False) if flag in ("-c", "--config")]
    files += [word.partition("=")[2] for word in given if word.startswith("--config=")]
    if any(word == "--model" or word.startswith(("--model=", "--model.class_path")) for word in given):
        return True
    documents = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in files if Path(file).is_file())
    return any(isinstance(document, dict) and "class_path" in (document.get("model") or {}) for document in documents)


def run(args: ArgsType = None) -> MamllitCLI:
    """Run the command line with `args` (default: the process's), as LightningCLI does; returns it with its trainer."""
    inherited = RUN_DIR_VARIABLE in os.environ
    try:
        return MamllitCLI(
            MetaLearner,
            EpisodicDataModule,
            subclass_mode_model=names_a_system(args),
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            save_config_callback=SaveConfig,
            parser_kwargs={"epilog": commands.LISTED},
            args=args,
        )
    except Stopped as stopped:
        rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))))
        if rank:  # where one process fails, launchers kill the others, and the first may still be writing
            sys.exit(0)
        print(stopped, flush=True)
        sys.exit(stopped.code)
    finally:
        if wandb.run is not None:  # a run of its own for the next call
            try:
                wandb.finish()
            except Exception as error:  # a signal to all processes of a job ends W&B's as well
                print(f"W&B has ended before the run ({type(error).__name__}: {error}); what it had logged is on the disk")
        if not inherited:  # else a second run of this process would write into the directory of the first
            os.environ.pop(RUN_DIR_VARIABLE, None)


def main() -> None:
    """Entry point of the `mamllit` command."""
    if sys.argv[1:] and sys.argv[1] in commands.COMMANDS:
        commands.run(sys.argv[1], sys.argv[2:])
    else:
        run()
