"""ProgressLine: silent unless asked, sparse in a log."""

from __future__ import annotations

import pytest

from prunelimit import progress
from prunelimit.progress import ProgressLine


def run(enabled: bool | None, steps: int = 5) -> None:
    with ProgressLine("Training", steps, enabled) as line:
        for step in range(steps):
            line.update(step + 1, loss=0.123456, epoch=step)


@pytest.mark.parametrize("enabled", [None, False])
def test_nothing_unless_asked(capsys: pytest.CaptureFixture[str], enabled: bool | None) -> None:
    run(enabled)
    assert capsys.readouterr() == ("", "")


def test_log_has_the_first_and_the_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    run(True)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[0] for line in err.splitlines()] == ["Training: 1/5", "Training: 5/5"]
    assert "loss 0.1235" in err
    assert "epoch 4" in err


def test_log_has_a_line_per_interval(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.0)
    run(True)
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_terminal_gets_a_bar_and_is_left_clean(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with ProgressLine("Training", 3, True) as line:
        line.update(2, loss=0.5)
        assert line._bar is not None
        assert line._bar.tasks[0].completed == 2
    assert line._bar.finished is False
    assert not line._bar.live.is_started
