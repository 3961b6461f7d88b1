"""From files on a disk to class pools: download, prepare, cache."""
