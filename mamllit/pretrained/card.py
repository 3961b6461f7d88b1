"""The model card of a checkpoint: what it is, what it was trained and tested on, what it scores, and what it is not for.

All of it comes from the file; a policy has returns in the place of accuracies. The YAML block at its head is the one that
huggingface.co reads.
"""

from collections.abc import Mapping
from typing import Any

import torch
import yaml

from mamllit.pretrained.build import build
from mamllit.pretrained.files import Checkpoint, steps_before

LICENSE = "mit"  # of the weights, as of mamllit
DATA = {
    "OmniglotDataModule": (
        "Omniglot (Lake, Salakhutdinov & Tenenbaum 2015; MIT licence): 1,623 handwritten characters, 20 drawings each; "
        "28 x 28, ink is 1"
    ),
    "MiniImagenetDataModule": (
        "mini-ImageNet (Vinyals et al. 2016), the split of Ravi & Larochelle 2017: 64 / 16 / 20 classes of 600 photographs; "
        "84 x 84. The photographs are ImageNet's, for research only: weights trained on them may not be free of its terms"
    ),
}
POLICY_LIMITS = (
    "It acts in the world it was trained in, and adapts to that world's tasks. Returns are those of this world's physics and "
    "rewards; a task outside the range that it was trained on gives numbers that mean nothing."
)
LIMITS = (
    "It adapts to new classes of the kind of images that it was trained on, prepared as above; other images give numbers that "
    "mean nothing. Its probabilities are not calibrated. Transductive values need a query batch with as many images of each "
    "class; with one image at a time, inductive values hold."
)


def card(checkpoint: Checkpoint) -> str:
    """The card in Markdown."""
    result, model = checkpoint.result, checkpoint.model
    data = checkpoint.data["class_path"].rpartition(".")[2]
    arguments = checkpoint.data.get("init_args") or {}
    earlier = steps_before(result)
    head = {"library_name": "mamllit", "license": LICENSE, "tags": ["meta-learning", "few-shot", result["method"]]}
    versions = ", ".join(f"{name} {version}" for name, version in (result.get("versions") or {}).items())
    fit = result.get("fit") or {}
    about = [
        f"- Method: {result['method']} ({model['method']['class_path']})",
        f"- Data: {DATA.get(data, data)}",
        f"- Settings of the data: {_listed(arguments)}",
        f"- Settings of the method: {_listed((model['method'].get('init_args') or {}), ('backbone', 'objective'))}",
        f"- Network: {_named((model['method'].get('init_args') or {}).get('backbone'))}",
        f"- Trained: {f'{earlier:,} + ' if earlier else ''}{result['steps_done']:,} of {result['steps_asked']:,} iterations, "
        f"seed {result['seed']}, the {result['checkpoint']} checkpoint{_minutes(fit, earlier)}",
        f"- Code: commit {(result['commit'] or 'unknown')[:7]}; {versions}",
        f"- Stored as {checkpoint.stored_as}",
    ]
    acts = result["metric"] == "return"
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", "", f"# {checkpoint.name}", "", *about, ""]
    measured = _returns(checkpoint) if acts else _results(checkpoint)
    lines += ["## Measured on meta-test", "", *measured, "", "## Use", "", *_use(checkpoint, acts), "", "## Limits", ""]
    lines.append(POLICY_LIMITS if acts else LIMITS)
    return "\n".join([*lines, "", f"Licence of the weights: {LICENSE.upper()}.", ""])


def _use(checkpoint: Checkpoint, acts: bool) -> list[str]:
    if acts:
        try:
            world = build((checkpoint.data.get("init_args") or {}).get("world"))
            values = world.tasks(torch.full((1, len(world.task_names)), 0.75))[0].tolist()
            task = ",".join(f"{name}={value:g}" for name, value in zip(world.task_names, values, strict=True))
        except ValueError:  # a world of somebody's own, or one that needs MuJoCo
            task = "NAME=VALUE"
        return ["```bash", f'mamllit rollout {checkpoint.name} --task "{task}" --video before_and_after.gif', "```"]
    call = f'method = load("{checkpoint.name}")  # method.adapt(support), method.predict(state, x)'
    return ["```python", "from mamllit.pretrained import load", "", call, "```"]


def _returns(checkpoint: Checkpoint) -> list[str]:
    """Mean returns after each gradient step, and the published ones below them."""
    result = checkpoint.result
    if not result["results"]:
        return ["Nothing was measured."]
    steps = range(max(len(entry["mean"]) for entry in result["results"].values()))
    lines = [
        "Mean return after each gradient step, and 95% interval over the tasks.",
        "",
        f"| tasks | trajectories for a step | {' | '.join(f'after {step}' for step in steps)} |",
        f"| --- | --- |{' --- |' * len(steps)}",
    ]
    for name, entry in result["results"].items():
        values = [f"{mean:.4g} ± {ci95:.3g}" for mean, ci95 in zip(entry["mean"], entry["ci95"], strict=True)]
        lines.append(f"| {entry['protocol']}, {entry['episodes']:,} | {entry['shots']} | {' | '.join(values)} |")
        if published := result["published"].get(name):
            cells = [f"{published[str(step)]:.4g}" if str(step) in published else "" for step in steps]
            lines.append(f"| {entry['protocol']}, published | {entry['shots']} | {' | '.join(cells)} |")
    return lines


def _results(checkpoint: Checkpoint) -> list[str]:
    result, steps = checkpoint.result, checkpoint.steps
    percent = result["metric"] == "accuracy"

    def number(value: float) -> str:
        return f"{100 * value:.2f}%" if percent else f"{value:.4g}"

    lines = [
        f"After {steps} inner steps, mean and 95% interval over the episodes.",
        "",
        "| episodes | shots | queries per class | batch norm | measured | published |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, entry in result["results"].items():
        published = (result["published"].get(name) or {}).get(str(steps))
        norm = "inductive" if name.endswith("/inductive") else "transductive" if result["transductive"] else "none"
        cells = [
            f"{entry['protocol']}, {entry['episodes']:,}", str(entry["shots"]), str(entry["queries"]), norm,
            f"{number(entry['mean'][steps])} ± {number(entry['ci95'][steps])}", "" if published is None else number(published),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines if result["results"] else ["Nothing was measured."]


def _minutes(fit: Mapping[str, Any], earlier: int) -> str:
    of_these = " for the last part" if earlier else ""
    return f", {fit['seconds'] / 60:,.0f} minutes{of_these}" if fit.get("seconds") else ""


def _named(config: Any) -> str:
    if not isinstance(config, Mapping):
        return str(config)
    return f"{config['class_path'].rpartition('.')[2]} ({_listed(config.get('init_args') or {})})"


def _listed(arguments: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    plain = {name: value for name, value in arguments.items() if name not in without and value is not None}
    return ", ".join(f"{name} {value}" for name, value in plain.items()) or "the defaults"
