"""One line of progress: a live bar on a terminal, sparse plain lines in a log, nothing where nobody asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between two lines in a log file, where a bar would be noise.
LOG_INTERVAL = 30.0

#: Seconds between two looks at numbers that take a moment to compute.
MORE_INTERVAL = 5.0


class ProgressLine:
    """Report how far a loop has come.

    Args:
        title: What is being done.
        total: Number of steps.
        enabled: ``True`` shows progress on standard error, ``False`` or ``None`` shows nothing.
    """

    def __init__(self, title: str, total: int, enabled: bool | None = None) -> None:
        self.title, self.total, self.enabled = title, total, bool(enabled)
        self._last, self._noted, self._start = -LOG_INTERVAL, -MORE_INTERVAL, time.monotonic()
        self._more: dict[str, Any] = {}
        self._first: tuple[int, float] | None = None
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

    def update(self, done: int, more: Callable[[], dict[str, Any]] | None = None, **values: Any) -> None:
        """Show that ``done`` steps are finished.

        Args:
            done: Steps finished so far.
            more: Gives further numbers; called only when they are shown, so it may take a moment.
            **values: Numbers to show beside the bar, for example ``loss=0.3``.
        """
        if not self.enabled:
            return
        now = time.monotonic() - self._start
        shown = self._bar is not None or now - self._last >= LOG_INTERVAL or done >= self.total
        if more is not None and shown and (now - self._noted >= MORE_INTERVAL or done >= self.total):
            self._noted, self._more = now, more()
        values |= self._more
        if self._first is None:
            self._first = (done, now)
        note = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        if shown:
            self._last = now
            before, since = self._first
            left = f", {(now - since) / (done - before) * (self.total - done):.0f} s left" if before < done else ""
            print(f"{self.title}: {done}/{self.total}  {now:.0f} s{left}  {note}", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
