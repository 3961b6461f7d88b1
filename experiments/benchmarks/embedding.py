"""Own images by pretrained features, timed: python experiments/benchmarks/embedding.py

How many images a second `mamllit adapt` embeds beside a plain loop over timm's network and timm's transforms, in turns on the
same files; and how long adapting and predicting take once the features lie in the cache. The images are JPEGs of 500x375
pixels, made here. CPU seconds of the process stand beside seconds of the clock: on a machine that others use they vary less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

from mamllit.backbones import Timm
from mamllit.inference import Settings, fewshot
from mamllit.inference.features import DEFAULT, TimmFeatures

BATCH = 32


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT.removeprefix("timm:"))
    parser.add_argument("--queries", type=int, default=1000, help="query images (1000)")
    parser.add_argument("--block", type=int, default=96, help="images of a turn (96)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each (4)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few images, random weights: tries the script out")
    return parser.parse_args(arguments)


def images(folder: Path, count: int) -> list[Path]:
    """JPEGs of coloured blobs, in five folders."""
    random = np.random.default_rng(0)
    files = []
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (8, 10, 3), dtype=np.uint8))
        path = folder / f"class_{i % 5}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
        files.append(path)
    return files


def plain_loop(net: torch.nn.Module, transform: Callable[[Image.Image], torch.Tensor], files: Sequence[Path]) -> torch.Tensor:
    """What one would write with timm alone."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(files), BATCH):
            batch = [transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
            found.append(net(torch.stack(batch)))
    return torch.cat(found)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of the CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    asked = parse(arguments)
    if asked.quick:
        asked.model, asked.queries, asked.block, asked.rounds = "test_resnet", 10, 5, 1
    torch.set_num_threads(asked.threads)
    network = Timm(asked.model, None if asked.quick else "pretrained").eval()
    source = TimmFeatures(asked.model, "benchmark", lambda: network)
    plain = timm.create_model(asked.model, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(plain.pretrained_cfg))
    with tempfile.TemporaryDirectory() as folder:
        files = images(Path(folder) / "query", asked.queries)
        support = images(Path(folder) / "support", 25)
        block = files[: asked.block]
        source.of_files(block[:BATCH]), plain_loop(plain, transform, block[:BATCH])
        turns = [
            (timed(lambda: source.of_files(block)), timed(lambda: plain_loop(plain, transform, block)))
            for _ in range(asked.rounds)
        ]
        ours, theirs = (statistics.median(turn[i][1] for turn in turns) for i in (0, 1))
        ratio = statistics.median(turn[1][1] / turn[0][1] for turn in turns)
        clock = statistics.median(turn[1][0] / turn[0][0] for turn in turns)
        print(f"{asked.model}, {asked.threads} threads, {asked.rounds} turns of {len(block)} images, CPU time:")
        print(f"  mamllit {len(block) / ours:.1f} images/s, a plain timm loop {len(block) / theirs:.1f}; ratio {ratio:.3f}")
        print(f"  ratio by the clock {clock:.3f}")
        weights = Path(folder) / "weights.pth"
        if asked.quick:
            torch.save(plain.state_dict(), weights)
        settings = Settings(features=f"timm:{asked.model}", weights=weights if asked.quick else "pretrained")

        def adapt() -> None:
            fewshot(support[0].parents[1], files[0].parents[1], settings=settings)

        first = timed(adapt)
        again = [timed(adapt) for _ in range(5)]
        wall, cpu = (statistics.median(turn[i] for turn in again) for i in (0, 1))
        print(f"{len(support)} support and {len(files)} query images, adapted, estimated and predicted:")
        print(f"  first {first[0]:.1f} s ({first[1]:.1f} s CPU), from the cache {wall:.2f} s ({cpu:.2f} s CPU)")
    return {"ratio": ratio, "clock": clock, "cached": wall, "cached_cpu": cpu}


if __name__ == "__main__":
    main()
