"""Hides warnings of other libraries that come in every run and that no user can act on; a run's own warnings stay."""

import logging
import os
import warnings

IGNORED = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch
    r".*does not have many workers which may be a bottleneck",  # drawing an episode's numbers is none
    r"Checkpoint directory .* exists and is not empty",  # a resumed run goes on in its own
)
ADVERT = "\N{ELECTRIC LIGHT BULB} Tip: "


def quiet() -> None:
    """Leave out deprecations of what Lightning uses, its adverts, and warnings of what is meant to be so."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of LightningCLI's use of it
    for message in IGNORED:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advert)


def _no_advert(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(ADVERT)
