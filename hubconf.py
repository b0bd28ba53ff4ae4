"""The trained networks for `torch.hub`: `torch.hub.load("path/of/a/clone", "mnist_rts/st_cnn_tps", source="local")`.

Each name that `stn.load` takes is an entry point; so is `load`, which takes the name. `torch.hub.list` lists them.
"""

import sys
from pathlib import Path as _Path  # what has no underscore is an entry point

dependencies = ["torch", "numpy", "omegaconf", "safetensors"]

_SOURCE = str(_Path(__file__).parent / "src")
sys.path.insert(0, _SOURCE)
try:
    from stn.weights import list_weights as _list_weights
    from stn.weights import load
finally:
    sys.path.remove(_SOURCE)


def _entry(name):
    def entry(map_location=None):
        return load(name, map_location)

    entry.__doc__ = f'`stn.load("{name}")`: see `load`.'
    return entry


globals().update({name: _entry(name) for name in _list_weights()})
