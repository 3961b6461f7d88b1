"""`mamllit export RUN_DIR`: the trained model of a run as one small safetensors file; see `mamllit.pretrained`.

`mamllit export CLASSIFIER --format onnx`: a classifier of `mamllit adapt --save` for other programs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from mamllit.inference.onnx_file import export_onnx
from mamllit.pretrained.export import export
from mamllit.pretrained.files import LIMIT, Checkpoint, DType, read, steps_before


def command(
    run_dir: Path,
    ckpt: Literal["last", "best"] = "last",
    out: Path | None = None,
    dtype: DType = "float32",
    limit: int = LIMIT,
    trusted: Sequence[str] = (),
    format: Literal["safetensors", "onnx"] = "safetensors",
) -> None:
    """Write the trained model of a run, with its configuration and result, as one safetensors file.

    Args:
        run_dir: directory of a run of `mamllit fit`; with `--format onnx` a file of `mamllit adapt --save`.
        ckpt: the last weights, or the best on meta-val.
        out: the file, ending in .safetensors (default: in RUN_DIR, named after the experiment).
        dtype: float16 halves the file and rounds the weights.
        limit: bytes that the file may have.
        trusted: packages of yours whose classes the run's configuration may name; their code is run.
        format: "onnx" writes an adapted classifier for other programs (extra `onnx`).
    """
    if format == "onnx":
        written = export_onnx(run_dir, out, trusted)
        print(
            f"classifier: {written} ({written.stat().st_size:,} bytes); input images [n, C, S, S] in [0, 1], see its metadata"
        )
        return
    path = export(run_dir, ckpt, out, dtype, limit, trusted=trusted)
    checkpoint, tensors = read(path)
    result = checkpoint.result
    print(f"checkpoint: {path} ({path.stat().st_size:,} bytes, {sum(t.numel() for t in tensors.values()):,} parameters)")
    earlier = f"{before:,} + " if (before := steps_before(result)) else ""
    done = f"{earlier}{result['steps_done']:,} of {result['steps_asked']:,}"
    print(f"trained for {done} iterations; measured: {measured(checkpoint)}")


def measured(checkpoint: Checkpoint) -> str:
    """The headline of every evaluation set, in one line."""
    steps, metric = checkpoint.steps, checkpoint.result["metric"]
    sets = checkpoint.result["results"].items()
    texts = [f"{name} {entry['mean'][steps]:.4g} ± {entry['ci95'][steps]:.2g}" for name, entry in sets]
    return f"{metric} after {steps} steps: {', '.join(texts)}" if texts else "nothing yet; run `mamllit test` before exporting"


def main(args: Sequence[str]) -> None:
    """Write the trained model of a run, or an adapted classifier, as one file."""
    parser = ArgumentParser(prog="mamllit export", description=main.__doc__)
    parser.add_function_arguments(command, as_positional=True)
    command(**parser.parse_args(list(args)).as_dict())
