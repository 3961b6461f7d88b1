"""Trained checkpoints: one small safetensors file each, with all that is needed to rebuild and to judge the model.

    from mamllit.pretrained import load
    method = load("maml_omniglot_5way_1shot")  # ready for method.adapt(support) and method.predict(state, x)

The files lie in `mamllit/checkpoints/`, inside the package, so that an installed mamllit finds them by name as a clone does.
"""

from mamllit.pretrained.build import load
from mamllit.pretrained.files import Checkpoint, find, names, read

__all__ = ["Checkpoint", "find", "load", "names", "read"]
