"""`mamllit fit|validate|test -c CONFIG.yaml`: LightningCLI with the defaults that episodes need.

What is added to LightningCLI: one run directory per run, in which everything lands; Weights & Biases offline unless
asked; a test at the end of `fit`; a `test` that takes the run's checkpoint, or a pretrained one by name, instead of untrained
weights; and the commands of `mamllit.cli.commands`, which need no Trainer.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
import wandb
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info

from mamllit import pretrained
from mamllit.callbacks import AdaptationFigures, ResultWriter, StepProgressBar, Stopped, WandbDashboard
from mamllit.cli import start
from mamllit.cli.agreement import agree
from mamllit.cli.assemble import check_written, equip, plugins, refuse_intervals, refuse_strategy
from mamllit.cli.commands import TRAINER_COMMANDS
from mamllit.cli.entry import DEBUG
from mamllit.cli.errors import Parser
from mamllit.cli.quiet import quiet
from mamllit.cli.run_directory import is_first_process
from mamllit.cli.save_config import SaveConfig, plain, seed_name, seed_of
from mamllit.cli.start import Start
from mamllit.data import EpisodicDataModule
from mamllit.data.images import weights_meet
from mamllit.pretrained.build import fill
from mamllit.pretrained.files import steps_done
from mamllit.runs import loggers, tracking
from mamllit.runs.stopping import CleanStop, last_checkpoint
from mamllit.systems import EpisodicSystem

TRAINER_DEFAULTS: dict[str, Any] = {
    "inference_mode": False,  # adaptation at test time needs gradients
    "max_epochs": -1,  # the stream of episodes has no end; max_steps counts
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,  # the system's log_every decides
}
# The system of a configuration that names none, as all did once: its settings stand under `model` themselves.
SYSTEM = {"class_path": "mamllit.systems.MetaLearner"}
CALLBACKS = ("checkpoint_last", "checkpoint_best", "results", "figures", "progress", "dashboard")  # settings of a run's own


class MamllitCLI(LightningCLI):
    """See the module; arguments of ours: `--wandb`, `--run_name`, `--threads`, `--init_from` and `--test_after_fit`."""

    pretrained: Path | None = None  # a safetensors file to evaluate; Lightning would take its own checkpoints only

    def __init__(
        self, *args: Any, until_the_end: ExitStack, commands: Sequence[str] = tuple(TRAINER_COMMANDS), **kwargs: Any
    ) -> None:
        self.commands = commands  # a parser is made for each, and takes a tenth of a second
        self.until_the_end = until_the_end  # releases what is held, however the command ends
        super().__init__(*args, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Takes --ckpt_path out of the configuration, into which Lightning would merge the checkpoint's hyper-parameters."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        self.asked, config.ckpt_path = config.ckpt_path, None
        if self.config.subcommand != "fit":
            words = sys.argv[1:] if args is None else args
            if isinstance(words, list) and any(str(word).partition("=")[0] == "--init_from" for word in words):
                named = f"init_from is {config.init_from!r}"
                raise ValueError(f"{named}; it is for `fit`. To evaluate a checkpoint, use --ckpt_path")
            config.init_from = None  # where a YAML says with what its training begins

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Without `predict`: there is nothing to predict before a task is adapted to, which `mamllit adapt` does."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in self.commands}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--wandb", choices=["offline", "online", "disabled"], default=None, help="W&B mode (WANDB_MODE, else offline)"
        )
        parser.add_argument("--run_name", type=str, default="", help="run directory below default_root_dir (seed_<seed>)")
        parser.add_argument(
            "--begin_if_none", type=bool, default=False, help="fit --ckpt_path last: start a new run if there is none"
        )
        parser.add_argument("--test_after_fit", type=bool, default=True, help="test the last weights after fit")
        parser.add_argument("--init_from", type=str | None, default=None, help="fit: start from a trained checkpoint's weights")
        parser.add_argument(
            "--trusted", type=list[str], default=[], help="your own packages whose classes a checkpoint may name"
        )
        parser.add_argument(DEBUG, action="store_true", help="show an error's traceback")
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads (torch's default: one per core)")
        parser.set_defaults({"model": SYSTEM})
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint_last")
        parser.set_defaults({f"checkpoint_last.{k}": v for k, v in _LAST.items()})
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint_best")
        parser.set_defaults({f"checkpoint_best.{k}": v for k, v in _BEST.items()})
        parser.add_lightning_class_args(ResultWriter, "results")
        parser.add_lightning_class_args(AdaptationFigures, "figures")
        parser.add_lightning_class_args(StepProgressBar, "progress")
        parser.add_lightning_class_args(WandbDashboard, "dashboard")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if seed_of(config) is None:
            os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier run in this process
        fitting = self.subcommand == "fit"
        if empty := [name for name in CALLBACKS if config.get(name) is None]:
            raise ValueError(f"{empty[0]} is null; leave it out of the YAML file to use its defaults")
        if self.subcommand in ("test", "validate"):
            config.verbose = False  # ResultWriter prints the table; Lightning's has hundreds of rows
        if config.threads is not None:
            if config.threads < 1:
                raise ValueError(f"threads is {config.threads}; it must be >= 1")
            torch.set_num_threads(config.threads)
        if config.get("weights_only") is False:
            raise ValueError(
                "weights_only is False, but a checkpoint is always loaded as tensors and plain values: to allow your own "
                "classes in it, name their package with --trusted"
            )
        refuse_strategy(config.trainer.strategy)
        refuse_intervals(config.trainer)
        agree(config.model, config.data)
        as_asked = config.clone()  # without a checkpoint: a resumed run is repeated from its beginning
        self.save_config_kwargs = {"as_asked": as_asked}
        begin = self._start(config, fitting)
        run, config.ckpt_path = begin.run, begin.checkpoint
        if begin.held is not None:
            self.until_the_end.enter_context(begin.held)
            begin.held.begun = lambda: hasattr(self, "trainer") and self.trainer.global_step > 0
        config.trainer.default_root_dir = str(run)
        config.checkpoint_last.dirpath = config.checkpoint_best.dirpath = str(run / "checkpoints")
        config.trainer.logger = loggers.of_run(config, run, seed_of(config))
        if config.trainer.enable_progress_bar is False:  # Lightning refuses this beside a bar of our own
            config.trainer.enable_progress_bar, config.progress.refresh = None, 0

    def _start(self, config: Namespace, fitting: bool) -> Start:
        asked = self.asked
        name = config.run_name or f"{seed_name(config)}{tracking.sweep_suffix()}"
        root = Path(config.trainer.default_root_dir or "runs")
        self.pretrained = start.pretrained_file(asked, fitting)
        if fitting and not config.trainer.fast_dev_run:
            first = is_first_process()
            return start.of_fit(root, name, asked, config.trainer.max_steps, config.begin_if_none, first, config.trusted)
        if fitting:  # a try, of which nothing is kept
            found = Start(root, None if asked in (None, "last", "best") else str(start.local_file(asked)))
        elif self.pretrained is not None:  # not the result of this run, so that it goes elsewhere
            name = config.run_name or f"pretrained_{self.pretrained.stem}"
            found = Start(start.apart(root, name, str(self.pretrained)), None)
        else:
            found = start.of_evaluation(root, name, asked)
        if config.trainer.fast_dev_run:
            self.until_the_end.callback(print, "fast_dev_run: one batch of each kind, nothing is saved")
            found = found._replace(run=Path(self.until_the_end.enter_context(TemporaryDirectory(prefix="mamllit-"))))
        return found

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        asked_for, init = self.config[self.subcommand], self.config_init[self.subcommand]
        if any(isinstance(callback, ProgressBar) for callback in init.trainer.get("callbacks") or []):
            init.progress = L.Callback()  # theirs in place of ours: Lightning takes one bar
        asked = init.trainer.get("plugins")
        try:
            trainer = super().instantiate_trainer(plugins=plugins(asked, asked_for.get("trusted")), **kwargs)
        except RuntimeError as error:
            if "more than one stateful callback" not in str(error):
                raise
            raise ValueError(
                "two callbacks of one kind have the same settings, so Lightning cannot tell their states apart; a "
                "ModelCheckpoint beside checkpoint_last and checkpoint_best needs another monitor, mode or every_n_train_steps"
            ) from error
        equip(trainer, asked_for.get("init_from"), init.get("checkpoint_last"))
        return trainer

    def before_test(self) -> None:
        if self.pretrained is not None:
            checkpoint, tensors = pretrained.read(self.pretrained)
            weights_meet(self.datamodule, checkpoint.data, checkpoint.name)
            fill(self.model.method, checkpoint, tensors)
            self.model.trained_steps = steps_done(checkpoint.result)

    before_validate = before_test

    def after_fit(self) -> None:
        if self.trainer.interrupted:
            return
        if any(callback.trained for callback in self.trainer.callbacks if isinstance(callback, CleanStop)):  # type: ignore[attr-defined]
            # max_steps need not be a multiple of every_n_train_steps
            self.trainer.save_checkpoint(last_checkpoint(self.trainer), weights_only=False)
        else:
            rank_zero_info(f"the run already has all of its {self.trainer.global_step} steps: nothing to train")
        if self.config.fit.test_after_fit:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        check_written(self.trainer)


_LAST = {"filename": "step{step}", "auto_insert_metric_name": False, "every_n_train_steps": 1000, "save_last": True}
_LAST["enable_version_counter"] = False  # a resumed run writes over what it had written after its checkpoint
_BEST = {"filename": "best", "enable_version_counter": False, "monitor": "val/accuracy", "mode": "max"}


class Settings(MamllitCLI):
    """The command line as far as the configuration: nothing is made, nothing is run."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        LightningCLI.parse_arguments(self, parser, args)

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass


def _program(kind: type[MamllitCLI], args: ArgsType, until_the_end: ExitStack, **more: Any) -> MamllitCLI:
    return kind(
        EpisodicSystem,
        EpisodicDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        trainer_defaults=TRAINER_DEFAULTS,
        save_config_callback=SaveConfig,
        args=args,
        parser_class=Parser,
        until_the_end=until_the_end,
        **more,
    )


def read(*files: Path, more: Sequence[str] = (), kind: type[MamllitCLI] = Settings) -> MamllitCLI:
    """What `-c` with each of these files, and `more` words after them, means, defaults included; nothing is run."""
    args = [*(word for file in files for word in ("-c", str(file))), *more]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # beside those of the process: it is meant so
        return _program(kind, args, ExitStack(), run=False)


def settings(file: Path) -> dict[str, Any]:
    """The whole configuration that an experiment's file stands for, as plain values."""
    cli = read(file)
    return plain(cli.parser, cli.config)


def run(args: ArgsType = None) -> MamllitCLI:
    """Run the command line with `args` (default: the process's), as LightningCLI does; returns it with its trainer."""
    words = sys.argv[1:] if args is None else args
    asked = words[0] if isinstance(words, list) and words else ""
    commands = [asked] if asked in TRAINER_COMMANDS else list(TRAINER_COMMANDS)
    about = {name: {"description": f"mamllit {name}: {TRAINER_COMMANDS[name]}."} for name in commands}
    quiet()
    with ExitStack() as until_the_end:
        try:
            described = {"description": "mamllit", **about}
            return _program(MamllitCLI, args, until_the_end, commands=commands, parser_kwargs=described)
        except Stopped as stopped:
            if not is_first_process():  # where one process fails, launchers kill the others, and the first may still be writing
                sys.exit(0)
            print(stopped, flush=True)
            sys.exit(stopped.code)
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):  # of Lightning, when it restores a checkpoint
                raise
            raise ValueError(
                "the checkpoint is of another network: take the configuration that it was trained with (config.yaml of its "
                f"run), or begin a new run with those of its weights that fit, by `fit --init_from`. {error}"
            ) from error
        finally:
            _end_tracking()


def _end_tracking() -> None:
    """End the tracker's run, so that the next command in this process gets one of its own."""
    if wandb.run is not None:
        try:
            wandb.finish()
        except Exception as error:  # a signal to all processes of a job ends W&B's as well
            print(f"W&B stopped before the run ({type(error).__name__}: {error}); what it logged is on disk")
