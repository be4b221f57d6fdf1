"""One line of progress: a live bar on a terminal, sparse plain lines in a log, nothing where nobody asked."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between two lines in a log file, where a bar would be noise.
LOG_INTERVAL = 30.0


class ProgressLine:
    """Report how far a loop has come.

    Args:
        title: What is being done.
        total: Number of steps.
        enabled: ``True`` shows progress on standard error, ``False`` or ``None`` shows nothing.
    """

    def __init__(self, title: str, total: int, enabled: bool | None = None) -> None:
        self.title, self.total, self.enabled = title, total, bool(enabled)
        self._last, self._start = -LOG_INTERVAL, time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        """Start the clock and, on a terminal, the bar."""
        if self.enabled and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            fields = TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, fields, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self.title, total=self.total, note="")
            self._bar.start()
        return self

    def update(self, done: int, **values: Any) -> None:
        """Show that ``done`` steps are finished.

        Args:
            done: Steps finished so far.
            **values: Numbers to show beside the bar, for example ``loss=0.3``.
        """
        if not self.enabled:
            return
        note = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic() - self._start
        if now - self._last >= LOG_INTERVAL or done >= self.total:
            self._last = now
            print(f"{self.title}: {done}/{self.total}  {now:.0f} s  {note}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
