"""A resumed run goes on with the optimiser settings that are asked for now, or says which of them it cannot take.

A checkpoint restores the optimiser's and the scheduler's state, and with it the settings of the earlier run. So each
checkpoint records the settings its optimiser was made with; those that differ now are set again after the state is restored.
A schedule is replayed from its beginning to the step reached.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

HOW = ("foreach", "fused", "capturable", "differentiable")  # how an update is computed, not what it is
WAY_ON = "resume with the settings of the run, or start a new one from its weights: `mamllit export`, then `fit --init_from`"


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """Kind, and options of each parameter group, as plain data."""
    groups = [{"parameters": len(group["params"]), **_options(group)} for group in optimizer.param_groups]
    return {"optimizer": _name(optimizer), "groups": groups}


def schedule_settings(optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    """Kind and settings of a scheduler that has just been made, as plain data; some are kept in the parameter groups."""
    if scheduler is None:
        return {"lr_scheduler": None, "schedule": {}}
    groups = [_options(group) for group in optimizer.param_groups]
    return {"lr_scheduler": _name(scheduler), "schedule": {**_plain(scheduler.state_dict()), "groups": groups}}


def resumed_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings that the checkpoint's run had; of older checkpoints no more than the names of the optimiser's options."""
    if (known := checkpoint.get("optimizer_settings")) is not None:
        return dict(known)
    states = checkpoint.get("optimizer_states") or []
    return {"options": sorted(set(states[0]["param_groups"][0]) - {"params"})} if states else None


def check_resumable(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """To be called before a state is restored.

    Raises:
        ValueError: where the optimiser or the scheduler is of another kind, groups other parameters, or cannot be given other
            settings on its way.
    """
    if "options" in before:
        if missing := sorted(set(now["groups"][0]) - set(before["options"]) - {"parameters"}):
            raise ValueError(f"the checkpoint's optimiser has no {', '.join(missing)}: it is not {now['optimizer']}; {WAY_ON}")
        return
    for what in ("optimizer", "lr_scheduler"):
        if before[what] != now[what]:
            raise ValueError(f"{what} is {now[what]}, but the run to resume has {before[what]}; {WAY_ON}")
    sizes, others = ([group["parameters"] for group in settings["groups"]] for settings in (before, now))
    if sizes != others:
        raise ValueError(f"the optimiser's groups have {others} parameters, and those of the run to resume {sizes}; {WAY_ON}")
    if str(now["lr_scheduler"]).endswith(".ReduceLROnPlateau") and (found := changes(before, now)):
        raise ValueError(f"a plateau scheduler cannot be replayed with other settings ({found}); {WAY_ON}")


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ, "name old -> new"; "" where none does."""
    found: dict[str, None] = {}
    pairs = [*zip(before["groups"], now["groups"], strict=True), (before["schedule"], now["schedule"])]
    for old, new in pairs:
        names = [name for name in {**old, **new} if name != "groups" and old.get(name) != new.get(name)]
        found |= dict.fromkeys(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)
    if not found and before["schedule"] != now["schedule"]:  # kept in the groups by the scheduler: max_lr and the like
        for old, new in zip(before["schedule"]["groups"], now["schedule"]["groups"], strict=True):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            found |= dict.fromkeys(f"{name} {old.get(name)} -> {new.get(name)}" for name in names)
    return ", ".join(found)


def obey(trainer: L.Trainer, before: Mapping[str, Any], now: Mapping[str, Any], make: Callable[..., Any] | None) -> None:
    """Give the restored optimiser, and its scheduler (made by `make`), the settings that are asked for now.

    Raises:
        ValueError: where the schedule that is asked for ends before the step reached.
    """
    if "options" in before or not (found := changes(before, now)):
        return
    optimizer, step = trainer.optimizers[0], trainer.global_step
    for group, asked in zip(optimizer.param_groups, now["groups"], strict=True):
        for name in [name for name in group if name not in asked and name not in ("params", *HOW)]:
            del group[name]  # what the old scheduler keeps there
        known = {name: value for name, value in asked.items() if name != "parameters" and value is not None}
        group.update({name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
    if make is not None:
        config = trainer.lr_scheduler_configs[0]
        taken = getattr(config.scheduler, "last_epoch", step)
        config.scheduler = make(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps of the scheduler before those of the optimiser
            try:
                for _ in range(taken):
                    config.scheduler.step()  # type: ignore[call-arg]
            except ValueError as error:
                raise ValueError(f"the new schedule ends before step {step} of this run: {error}") from error
    rank_zero_info(f"resumed at step {step} with changed settings: {found}")


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return _plain({name: value for name, value in group.items() if name not in ("params", *HOW)})


def _plain(value: Any) -> Any:
    """Numbers, words, lists and mappings; what is none of them, and a scheduler's own notes, are left out."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        own = ("base_lrs", "last_epoch")
        kept = {str(k): v for k, v in value.items() if not (str(k).startswith("_") and k not in ("_schedulers", "_milestones"))}
        return {k: _plain(v) for k, v in kept.items() if k not in own}
    return value if isinstance(value, bool | int | float | str) else None


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
