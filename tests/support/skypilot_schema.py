"""Validates a task on stdin by the schema in SkyPilot's wheel, unpacked in the folder given: its module alone, without what SkyPilot needs."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
from pathlib import Path
from unittest.mock import MagicMock

TAKEN = {"sky.utils.schemas", "sky.skylet.constants", "sky.utils.kubernetes_enums"}

PACKAGES = {"sky", "sky.utils", "sky.skylet", "sky.setup_files"}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The modules that hold the schema; mocks for what they import of the rest."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "sky":
            return None
        if name in TAKEN:
            return importlib.util.spec_from_file_location(name, self.top / f"{name.replace('.', '/')}.py")
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        if spec.name in PACKAGES:
            package = types.ModuleType(spec.name)
            package.__dict__.update(__path__=[], __version__="0.0.0", __commit__="")
            return package
        module = MagicMock(__name__=spec.name, __spec__=spec, __version__="0.0.0", __path__=[])
        module.AutostopWaitFor.supported_modes.return_value = ["none"]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main() -> None:
    sys.meta_path.insert(0, Finder(Path(sys.argv[1])))
    import jsonschema

    schemas, task = importlib.import_module("sky.utils.schemas"), json.load(sys.stdin)
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())


if __name__ == "__main__":
    main()
