"""Real shells on terminals of their own, as an operator types in them."""

import os
import pty
import re
import select
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import nfqlb

TAB = "\t"
HOME = "\x01"  # Ctrl-A: to the beginning of the line
_PROMPT = "ready> "
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][0AB]?|\r|\0|\x07")
_START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {completion}; PS1='{prompt}'"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "bindkey -e; fpath=({directory} $fpath); autoload -U compinit; compinit -u -D; PS1='{prompt}'",
    ),
}


class Shell:
    """A shell in which `nfqlb` is the one that is tested, and completion as it is installed.

    `completion` is the installed file. What the terminal showed is in `screen`, without controls.
    """

    def __init__(self, name: str, completion: Path, directory: Path, environment: Mapping[str, str]) -> None:
        words, start = _START[name]
        self._pid, self._terminal = pty.fork()
        if not self._pid:
            os.chdir(directory)
            os.execvpe(words[0], words, {**environment, "TERM": "xterm", "COLUMNS": "200"})
        self._raw = self.screen = ""
        # The prompt is put together by the shell, so that the echo of this line is not taken for it.
        prompt = _PROMPT[:3] + "''" + _PROMPT[3:]
        self._send(start.format(completion=completion, directory=completion.parent, prompt=prompt) + "\r")
        self.see(_PROMPT)

    def close(self) -> None:
        """End it."""
        os.close(self._terminal)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def completed(self, line: str) -> list[str]:
        """The words of the line after Tab was pressed at its end, as the shell understands them."""
        self._raw = self.screen = ""
        self._send(line + TAB + HOME + "printf 'word:%s:\\n' \r")
        self.see(_PROMPT, after="word:")
        return re.findall(r"^word:(.*):$", self.screen, flags=re.MULTILINE)

    def listed(self, line: str) -> str:
        """What the shell shows when Tab is pressed twice at the end of the line, which is left there."""
        self._raw = self.screen = ""
        self._send(line + TAB)
        self._quiet()
        self._send(TAB)
        self._quiet()
        return self.screen

    def see(self, text: str, *, after: str = "") -> None:
        """Read until the terminal shows `text`, after the last of `after`."""
        deadline = time.monotonic() + 20
        while text not in self.screen[self.screen.rfind(after) if after else 0 :]:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.screen!r}"
            self._read(0.1)

    def _quiet(self) -> None:
        """Read until nothing more comes and the program that the shell asks has ended."""
        before = -1
        while before != len(self.screen) or self._asks():
            before = len(self.screen)
            self._read(1.0)

    def _asks(self) -> bool:
        return bool(Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text())

    def _read(self, seconds: float) -> None:
        if select.select([self._terminal], [], [], seconds)[0]:
            self._raw += os.read(self._terminal, 1 << 16).decode(errors="replace")
            self.screen = _CONTROLS.sub("", self._raw)

    def _send(self, text: str) -> None:
        os.write(self._terminal, text.encode())


def program(directory: Path) -> Path:
    """A directory for PATH in which `nfqlb` is this package's."""
    directory.mkdir()
    root = Path(nfqlb.__file__).parents[1]
    script = directory / "nfqlb"
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {sys.executable} -P -m nfqlb "$@"\n'
    )
    script.chmod(0o755)
    return directory
