"""The optimiser's parameter groups: those that a method asks for, and one for all other meta-parameters."""

from fnmatch import fnmatchcase
from typing import Any

from mamllit.methods import Method


def parameter_groups(method: Method) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimiser, after the method's `optimizer_groups`.

    First the parameters that no pattern matches, with the optimiser's own settings, then one group per pattern with that
    pattern's settings. Every parameter is in one group; a pattern that matches nothing makes no group.

    Raises:
        ValueError: for a parameter that two patterns match.
    """
    groups: dict[str, list] = {pattern: [] for pattern in ("", *method.optimizer_groups)}
    for name, value in method.named_parameters():
        found = [pattern for pattern in method.optimizer_groups if fnmatchcase(name, pattern)]
        if len(found) > 1:
            raise ValueError(
                f"the parameter {name} of {type(method).__name__} matches the optimizer_groups {found}; only one may match it"
            )
        groups[found[0] if found else ""].append(value)
    return [{"params": params, **method.optimizer_groups.get(pattern, {})} for pattern, params in groups.items() if params]
