"""A learn2learn user's script, MetaCurvature on a learn2learn task set, with mamllit in the place of the training loop.

    python experiments/learn2learn/metacurvature_taskset.py --root data/omniglot

What a learn2learn user has, `tasksets` and `algorithm`, is made as ever; the last lines are mamllit's. Task sets of your own
or of `learn2learn.vision.benchmarks.get_tasksets` take the place of these, which are made of the Omniglot images in `--root`.
"""

import argparse

import learn2learn as l2l
import lightning as L
from lightning.pytorch.loggers import WandbLogger

from mamllit.bridges.learn2learn import ClassPoolDataset, Learn2Learn, TasksetDataModule
from mamllit.callbacks import AdaptationFigures, ResultWriter
from mamllit.data.sources.omniglot import load_omniglot
from mamllit.objectives import Classification
from mamllit.systems import MetaLearner

WAYS, SHOTS, QUERIES = 5, 1, 1


def tasksets(root: str) -> l2l.vision.benchmarks.BenchmarkTasksets:
    """As in learn2learn's examples; the data set could be any with labels."""
    pools = load_omniglot(root, split="vinyals", resize="nearest", download=False)

    def taskset(split: str) -> l2l.data.Taskset:
        data = l2l.data.MetaDataset(ClassPoolDataset(pools[split]))
        transforms = [
            l2l.data.transforms.FusedNWaysKShots(data, n=WAYS, k=SHOTS + QUERIES),
            l2l.data.transforms.LoadData(data),
            l2l.data.transforms.RemapLabels(data),
            l2l.data.transforms.ConsecutiveLabels(data),
            l2l.vision.transforms.RandomClassRotation(data, [0.0, 90.0, 180.0, 270.0]),
        ]
        return l2l.data.TaskDataset(data, transforms)

    return l2l.vision.benchmarks.BenchmarkTasksets(*map(taskset, ("train", "val", "test")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data/omniglot", help="the Omniglot images: the official zips, or extracted")
    parser.add_argument("--steps", type=int, default=200, help="meta-updates")
    parser.add_argument("--meta-batch-size", type=int, default=8)
    parser.add_argument("--test-episodes", type=int, default=100)
    parser.add_argument("--out", default="runs/learn2learn/metacurvature_taskset")
    arguments = parser.parse_args()
    L.seed_everything(0)

    network = l2l.vision.models.OmniglotCNN(output_size=WAYS, hidden_size=64)
    algorithm = l2l.algorithms.GBML(network, transform=l2l.optim.MetaCurvatureTransform, lr=0.5)

    method = Learn2Learn(algorithm, Classification(), inner_steps=1)
    data = TasksetDataModule(
        tasksets(arguments.root), WAYS, SHOTS, QUERIES, arguments.meta_batch_size, val_episodes=20,
        test_episodes=arguments.test_episodes,
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=arguments.steps,
        val_check_interval=arguments.steps,
        check_val_every_n_epoch=None,
        default_root_dir=arguments.out,
        logger=WandbLogger(project="mamllit", save_dir=arguments.out, offline=True),
        callbacks=[ResultWriter(), AdaptationFigures()],
        enable_checkpointing=False,
    )
    learner = MetaLearner(method, eval_steps=5, report_step=1, log_every=10)
    trainer.fit(learner, datamodule=data)
    trainer.test(learner, datamodule=data, verbose=False)


if __name__ == "__main__":
    main()
