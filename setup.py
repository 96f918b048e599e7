"""What pyproject.toml cannot say: an installed package has a copy of what a project is made of."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
TEMPLATE = ("dvc.yaml", ".dvcignore", *(f"presets/{path.name}" for path in sorted((HERE / "presets").glob("*.yaml"))))


class BuildWithTemplate(build_py):
    """Copies these files into the package, unless it stays in the clone, where they lie at the top."""

    def run(self) -> None:
        """Builds as usual, then copies."""
        super().run()
        if self.editable_mode:
            return
        for name in TEMPLATE:
            target = Path(self.build_lib, "pipeline", "template", name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE / name, target)


setup(cmdclass={"build_py": BuildWithTemplate})
