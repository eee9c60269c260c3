"""Runs a script of this project without its docstrings and assertions.

python tests/tuning/without_docstrings.py SCRIPT [OPTIONS]

So does `python -OO`, which would first compile the modules of all packages anew: that
takes longer than the script.
"""

import sys
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Loader(SourceFileLoader):
    """A loader that compiles at each import and keeps no compiled files."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data, path):
        return super().source_to_code(data, path, _optimize=2)


def finder(path):
    """Finds the project's modules in `path`. Others are imported as usual."""
    own = Path(path)
    if own not in (ROOT, ROOT / "tuning") and ROOT / "keras_qrnn" not in (
        own,
        *own.parents,
    ):
        raise ImportError("not of this project", path=path)
    return FileFinder(path, (Loader, [".py"]))


sys.path_hooks.insert(0, finder)
sys.path_importer_cache.clear()
sys.argv.pop(0)
code = compile(Path(sys.argv[0]).read_bytes(), sys.argv[0], "exec", optimize=2)
exec(code, {"__name__": "__main__", "__file__": sys.argv[0]})
