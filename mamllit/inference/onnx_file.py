"""A saved classifier as an ONNX file, for programs without Python (extra `onnx`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mamllit.backbones.first_rows import normalised_by_first
from mamllit.core.episode import Episode
from mamllit.engine.company import company
from mamllit.inference.classifier import CheckpointImages, Classifier, load_classifier, weighed
from mamllit.inference.features import TimmFeatures
from mamllit.runs import durable

SUFFIX = ".onnx"
INPUT, OUTPUT = "images", "probabilities"


class Deployed(nn.Module):
    """A classifier as one function of images; it has adapted, and nothing of the support is asked for any more.

    Args:
        classifier: what it does.

    Shape: [n, C, S, S] in [0, 1], of the size, channels and ink of `preparation` -> probabilities [n, N].
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier, self.method = classifier, classifier.method.eval()
        self.support = weighed(self.method, classifier.support)
        with torch.no_grad():
            self.state = self.method.adapt(self.support, classifier.steps)
        self.alone = True  # whether an image is predicted by itself in any case
        if isinstance(classifier.seen, CheckpointImages):
            found = company(self.method, Episode(self.support, self.support))
            self.alone = found is None or found.kind == "none"
            if not self.alone:
                self.method = normalised_by_first(self.method, len(self.support.x)).eval()

    def forward(self, images: Tensor) -> Tensor:
        seen = self.classifier.seen
        x = seen.seen(images) if isinstance(seen, CheckpointImages) else seen.network(images)
        behind = x if self.alone else torch.cat([self.support.x, x])  # normalised by the support
        logits = self.method.predict(self.state, behind)[behind.shape[0] - x.shape[0] :]
        return (logits / (self.classifier.temperature or 1.0)).softmax(-1)

    @property
    def example(self) -> Tensor:
        """Two images of the right shape."""
        how = self._how
        return torch.rand(2, how.channels, how.image_size, how.image_size)

    @property
    def _how(self) -> Any:
        seen = self.classifier.seen
        return seen.preparation if isinstance(seen, TimmFeatures) else seen.how

    @property
    def described(self) -> dict[str, str]:
        """What a user of the file needs: the classes, in the order of the output, and how a picture becomes the input."""
        return {"classes": json.dumps(self.classifier.classes), "preparation": json.dumps(self._how.as_dict())}


def export_onnx(classifier: str | Path, out: str | Path | None = None, trusted: Sequence[str] = ()) -> Path:
    """Write a classifier as an ONNX file: input "images" [n, C, S, S], output "probabilities" [n, N], any n.

    Its metadata name the `classes`, and the `preparation` of an image as `mamllit.inference.Preparation` has it; the values are
    in [0, 1], and the network normalises them itself.

    Args:
        classifier: a file of `mamllit adapt --save`.
        out: the file, ending in .onnx; by default beside the classifier.
        trusted: as in `load_classifier`.

    Raises:
        ValueError: without the extra, for another ending, for a file that is no classifier, and for one that torch.export does
            not take.
        FileNotFoundError: where there is no such file.
        OSError: where the file cannot be written, before it is computed.
    """
    source = Path(classifier).expanduser()
    path = source.with_suffix(SUFFIX) if out is None else Path(out).expanduser()
    if path.suffix != SUFFIX:
        raise ValueError(f"the file is {path}; its name must end in {SUFFIX}")
    loaded = load_classifier(source, trusted)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'an ONNX file needs {error.name}: pip install "mamllit[onnx]"') from error
    durable.check_place(path, "--out")
    deployed = Deployed(loaded).eval()
    example = deployed.example
    try:
        with torch.no_grad():
            program = torch.export.export(deployed, (example,), dynamic_shapes=({0: torch.export.Dim("n")},), strict=False)
            written = torch.onnx.export(
                program, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    except Exception as error:  # of torch's exporter, which says in many ways what it does not know
        text = str(error).strip().split("\n")[0]
        raise ValueError(f"the head {loaded.head} of {loaded.seen.name} cannot be written as ONNX: {text}") from error
    assert written is not None
    written.model.metadata_props.update(deployed.described)
    durable.write(path, written.model_proto.SerializeToString())
    return path
