"""The experiments' YAML files go into the wheel, as mamllit/experiments/; `setup.cfg` alone would have to list each folder."""

from pathlib import Path
from shutil import copyfile

from setuptools.command.build_py import build_py

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.rglob("*.yaml"))


class WithExperiments(build_py):
    """`build_py`, and a copy of every YAML file of experiments/; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in FILES:
                target = Path(self.build_lib, "mamllit", "experiments", path.relative_to(FOLDER))
                target.parent.mkdir(parents=True, exist_ok=True)
                copyfile(path, target)

    def get_source_files(self) -> list[str]:
        """What a source distribution needs to build the same wheel."""
        return [*super().get_source_files(), *(str(path.relative_to(FOLDER.parent)) for path in [*FILES, Path(__file__)])]
