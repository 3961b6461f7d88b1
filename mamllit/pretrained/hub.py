"""A checkpoint in the conventions of the Hugging Face hub: `save_pretrained`, `from_pretrained`, `push_to_hub`.

    from mamllit.pretrained.hub import HubCheckpoint

    HubCheckpoint("maml_omniglot_5way_1shot").push_to_hub("me/maml-omniglot")  # needs an account, and `hf auth login`
    method = HubCheckpoint.from_pretrained("me/maml-omniglot").method()

What is published is the file that `mamllit export` writes, and its model card. It needs pip install "mamllit[hub]".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, constants, hf_hub_download

from mamllit.methods import Method
from mamllit.pretrained.build import rebuild
from mamllit.pretrained.card import card
from mamllit.pretrained.files import find, read
from mamllit.runs import durable

WEIGHTS = constants.SAFETENSORS_SINGLE_FILE  # model.safetensors
CARD = "README.md"


class HubCheckpoint(ModelHubMixin, library_name="mamllit"):
    """A trained checkpoint that the hub's commands save, publish and fetch.

    Args:
        name_or_path: a name of `mamllit.pretrained.names()`, or the path of a file that `mamllit export` wrote.

    Raises:
        FileNotFoundError, ValueError: see `mamllit.pretrained.read`.
    """

    def __init__(self, name_or_path: str | Path) -> None:
        self.file = find(name_or_path)
        self.checkpoint, self._tensors = read(self.file)

    def method(self, trusted: Sequence[str] = ()) -> Method:
        """The method with its trained weights; see `mamllit.pretrained.load`, for `trusted` too."""
        return rebuild(self.checkpoint, self._tensors, trusted)

    def save_pretrained(self, save_directory: str | Path, **more: Any) -> str | None:
        """Write model.safetensors, its card and a config.json; see huggingface_hub's `ModelHubMixin` for what else it takes."""
        more["config"] = {"model_type": "mamllit", "name": self.checkpoint.name, "format": self.checkpoint.format}
        return super().save_pretrained(save_directory, **more)

    def _save_pretrained(self, save_directory: Path) -> None:
        durable.write(save_directory / WEIGHTS, self.file.read_bytes())
        durable.write(save_directory / CARD, card(self.checkpoint))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **more: Any,
    ) -> "HubCheckpoint":
        if more:
            raise TypeError(f"from_pretrained does not take {', '.join(sorted(more))}: the file defines the model")
        if Path(model_id).is_dir():
            return cls(Path(model_id) / WEIGHTS)
        found = hf_hub_download(
            model_id,
            WEIGHTS,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(found)
