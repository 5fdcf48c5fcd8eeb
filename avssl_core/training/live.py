"""A curve that grows in the notebook while the cell runs.

Outside a notebook it only collects. In recorded runs (``AVSSL_QUIET=1``) it shows the finished figure once, so that the
committed notebook holds one picture and no history of it.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from avssl_core.training.logs import Row

QUIET_VARIABLE = "AVSSL_QUIET"
_DRAWING_SHARE = 0.02  # of the time, at most


class LiveCurve:
    """Listener for ``fit(on_log=…)`` that draws metrics against the step, as vector graphics.

    Use it as a context, so that the last figure is drawn however the cell ends::

        with LiveCurve("loss", label="loss (nats)") as curve:
            result = fit(model, batches, loss_fn, config, on_log=curve)

    Args:
        names: metrics to draw, one line each.
        label: of the vertical axis, with its unit.
        live: None draws along the way in a notebook unless ``AVSSL_QUIET`` is set; True and False insist.
        every_s: least time between two drawings; drawing never takes more than two per cent of the time.
    """

    def __init__(self, *names: str, label: str = "loss (nats)", live: bool | None = None, every_s: float = 2.0) -> None:
        self.names: Sequence[str] = names or ("loss",)
        self.label = label
        self.rows: list[Row] = []
        quiet = os.environ.get(QUIET_VARIABLE, "0") not in ("", "0", "false")
        self._in_notebook = _in_notebook()
        self._live = (not quiet if live is None else live) and self._in_notebook
        self._every_s = every_s
        self._next_draw = 0.0
        self._handle: Any = None

    def __call__(self, row: Row) -> None:
        """Take one line of the log."""
        self.rows.append(row)
        if self._live and time.monotonic() >= self._next_draw:
            began = time.monotonic()
            self._show()
            now = time.monotonic()
            self._next_draw = now + max(self._every_s, (now - began) / _DRAWING_SHARE)

    def __enter__(self) -> LiveCurve:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Show the figure as it stands; nothing outside a notebook, or without lines (ranks other than 0)."""
        if self._in_notebook and self.rows:
            self._show()

    def svg(self) -> str:
        """The figure as SVG text; the same lines give the same text."""
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for name, style in zip(self.names, _styles(len(self.names)), strict=True):
            points = [(row["step"], row[name]) for row in self.rows if name in row]
            axes.plot(*zip(*points, strict=True) if points else ([], []), style, label=name)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(self.label)
        if len(self.names) > 1:
            axes.legend(frameon=False)
        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": "avssl"}):
            figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def _show(self) -> None:
        from IPython.display import SVG, display

        picture = SVG(self.svg())  # type: ignore[no-untyped-call]
        if self._handle is None:
            self._handle = display(picture, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(picture)


def _styles(count: int) -> list[str]:
    """Line styles that differ in grey as well as in colour."""
    return [("-", "--", ":", "-.")[index % 4] for index in range(count)]


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
