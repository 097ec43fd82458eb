"""The command line itself: help, versions, progress, and mistakes of any kind in one sentence."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

import avatar

ROOT = Path(avatar.__file__).parent


def test_bench_alone_names_the_four(capsys: pytest.CaptureFixture[str]) -> None:
    assert avatar.main(["bench"]) == 0
    alone = capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        avatar.main(["bench", "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out == alone
    for name in ("latency", "loopback", "capacity", "quality"):
        assert f"\n  {name} " in alone


def test_a_benchmarks_own_help_is_reached(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        avatar.main(["bench", "latency", "--help"])
    assert left.value.code == 0
    assert "avatar bench latency" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as left:
        avatar.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"avatar {version('avatar-engine')}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--persona", "nobody"], "avatar persona list"),
        (["--carry-strip", "-1"], "--carry-strip"),
        (["--dwpose", "absent"], "There is no yolox_l.onnx and no dw-ll_ucoco_384.onnx in 'absent'"),
        (["--ice-server", "turn:relay.example:3478"], "turn:user:password@host:port"),
        (["--ice-server", "turns:user@relay.example:443"], "turn:user:password@host:port"),
    ],
)
def test_a_server_that_cannot_be_says_why(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATAR_HOME", str(tmp_path))
    monkeypatch.setattr("streaming.server.asyncio.run", lambda main: main.close())  # one that is let through does not stay
    assert avatar.main(["serve", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "sentence", "status"),
    [
        (PermissionError(13, "Permission denied", "/srv/x"), "/srv/x", 1),
        (ModuleNotFoundError("No module named 'mediapipe'", name="mediapipe"), "mediapipe", 1),
        (MemoryError(), "memory", 1),
        (KeyError("face"), "KeyError: 'face'", 1),
    ],
)
def test_nothing_is_a_traceback(
    error: Exception, sentence: str, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("engine.persona.list_personas", lambda: fail(None))
    monkeypatch.delenv("AVATAR_DEBUG", raising=False)
    assert avatar.main(["persona", "list"]) == status
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1
    monkeypatch.setenv("AVATAR_DEBUG", "1")
    with pytest.raises(type(error)):
        avatar.main(["persona", "list"])


@pytest.mark.parametrize("command", [["doctor"], ["persona", "list"]])
def test_without_numpy_it_says_what_to_install(command: list[str]) -> None:
    code = f"import sys; sys.modules['numpy'] = None; import avatar; raise SystemExit(avatar.main({command!r}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "NumPy" in ran.stderr
    assert "make venv" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_progress_is_a_bar_in_a_terminal_and_rare_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for total, last in ((0, "100 frames"), (100, "#" * 30 + " 100/100")):
        terminal, log = Terminal(), io.StringIO()
        for stream in (terminal, log):
            monkeypatch.setattr(sys, "stderr", stream)
            bar = avatar._Bar()
            for done in range(1, 101):
                bar(done, total)
            bar.end()
        assert terminal.getvalue().endswith(last + "\n")
        assert log.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", log)
    bar = avatar._Bar()
    bar._told -= avatar.RARELY + 1.0
    bar(7, 0)
    bar(8, 0)
    assert log.getvalue() == "7 frames\n"
