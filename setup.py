"""What pyproject.toml cannot say: the trained networks in reports/weights are put into the package, as stn/trained."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWeights(build_py):
    """Also copies the weight files; an editable install finds them where they are."""

    def run(self):
        super().run()
        shutil.rmtree(Path(self.build_lib, "stn/trained"), ignore_errors=True)  # what an earlier build left
        for path, copy in self.weights().items():
            self.mkpath(str(Path(copy).parent))
            self.copy_file(path, copy)

    def weights(self):
        """Where each weight file goes."""
        folder = Path("reports/weights")
        files = [] if self.editable_mode else sorted(folder.glob("*/*.safetensors"))
        return {str(path): str(Path(self.build_lib, "stn/trained", path.relative_to(folder))) for path in files}

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *self.weights().values()]


setup(cmdclass={"build_py": BuildWithWeights})
