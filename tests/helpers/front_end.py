"""Which jupyterlab_widgets shows the widgets of which ipywidgets in JupyterLab 4."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import distributions

SERIES = {"7": "1.1", "8": "3.0"}  # by the first number of ipywidgets


def versions(path: Sequence[str] = ()) -> tuple[str, str]:
    """Return the installed ipywidgets and jupyterlab_widgets; `path` comes first."""
    names = ("ipywidgets", "jupyterlab_widgets")
    search = [*path, *sys.path]
    first = {n: next(iter(distributions(name=n, path=search))) for n in names}
    return first[names[0]].version, first[names[1]].version


def mismatch(ipywidgets: str, jupyterlab_widgets: str) -> str | None:
    """Say what is wrong if JupyterLab cannot show these widgets, else return None."""
    series = SERIES[ipywidgets.partition(".")[0]]
    if jupyterlab_widgets.startswith(f"{series}."):
        return None
    return (
        f"ipywidgets {ipywidgets} is installed with jupyterlab_widgets "
        f"{jupyterlab_widgets}, but needs {series}.x: JupyterLab would show 'Click to "
        "show javascript error' in place of each widget. Run: "
        f"pip install 'jupyterlab_widgets=={series}.*'"
    )
