"""Puts nfqlb in place as a service of this machine, and takes it away again.

Owns the list of files. Everything goes below `/usr/local`, where what no Debian package owns belongs, and
nothing that it has not put there itself is ever replaced or removed; the configuration is the operator's
from its first moment. What is done is a list of lines, one for each thing.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

CONFIG = Path("/etc/nfqlb/nfqlb.toml")
"""Where the configuration is, unless the operator says otherwise."""
LINK = Path("/usr/local/bin/nfqlb")
"""The command where every shell finds it."""
RUN = Path("/run/nfqlb")
GROUPS = ("nfqlb", "nfqlb-read")
UNIT = "nfqlb.service"

_UNITS = Path("/usr/local/lib/systemd/system")
#: Each file of the package and where it goes.
PLACES = {
    UNIT: _UNITS / UNIT,
    "sysusers.conf": Path("/usr/local/lib/sysusers.d/nfqlb.conf"),
    "nfqlb.8": Path("/usr/local/share/man/man8/nfqlb.8"),
    "nfqlb.toml.5": Path("/usr/local/share/man/man5/nfqlb.toml.5"),
    "completion.bash": Path("/usr/local/share/bash-completion/completions/nfqlb"),
    "completion.zsh": Path("/usr/local/share/zsh/site-functions/_nfqlb"),
}
_SAMPLE = "nfqlb.toml"
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))


class InstallError(Exception):
    """It cannot be put in place; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What is installed where.

    `root` is the directory that stands for /, of an image perhaps. `command` is the program that the unit
    starts, as it is called when that image runs.
    """

    command: Path
    root: Path = Path("/")
    config: Path = CONFIG

    def __post_init__(self) -> None:
        """Refuse what a unit file cannot say. Raises InstallError."""
        for path in (self.command, self.config):
            if not path.is_absolute() or any(c in "\"'\\%$ \t" or not c.isprintable() for c in str(path)):
                raise InstallError(f"{path}: an absolute path without blanks and quotes is needed")

    def install(self) -> Iterator[str]:
        """Put everything in place; a line for each thing done. Doing it again changes nothing."""
        for name, place in PLACES.items():
            yield self._put(place, self._text(name))
        yield from self._link()
        yield self._sample()
        yield from self._add_groups()
        yield from self._reload_systemd()

    def remove(self) -> Iterator[str]:
        """Take everything away but the configuration; a line for each thing done."""
        yield from self._stop()
        for place in PLACES.values():
            yield from self._take(place)
        link = self._in_root(LINK)
        if link.is_symlink() and link.readlink() == self.command:
            yield from self._take(LINK)
        yield from self._drop_groups()
        if self._live and RUN.is_dir() and not any(RUN.iterdir()):
            RUN.rmdir()
            yield f"removed {RUN}"
        yield from self._reload_systemd()
        if self._in_root(self.config).exists():
            yield f"kept    {self.config}"

    # --- files

    def _in_root(self, place: Path) -> Path:
        return self.root / place.relative_to("/")

    def _text(self, name: str) -> str:
        text = (files("nfqlb.service") / name).read_text(encoding="utf-8")
        if name != UNIT:
            return text
        seen = any(path.is_relative_to(home) for home in _HOMES for path in (self.command, self.config))
        for word, value in (
            ("COMMAND", str(self.command)),
            ("CONFIG", str(self.config)),
            ("HOME", "read-only" if seen else "yes"),
        ):
            text = text.replace(f"@{word}@", value)
        return text

    def _put(self, place: Path, text: str) -> str:
        """Write a file as a whole, of mode 0644 whatever the umask."""
        target = self._in_root(place)
        data = text.encode()
        if target.is_file() and not target.is_symlink() and target.read_bytes() == data:
            return f"is      {place}"
        _make_directory(target.parent)
        fresh = target.with_name(f".{target.name}.new")
        fresh.write_bytes(data)
        fresh.chmod(0o644)
        fresh.replace(target)
        return f"wrote   {place}"

    def _take(self, place: Path) -> Iterator[str]:
        """Remove a file, and the directories that it leaves empty and no system has by itself."""
        target = self._in_root(place)
        if not target.is_symlink() and not target.exists():
            return
        target.unlink()
        yield f"removed {place}"
        for directory in target.parents:
            if directory in (self._in_root(Path("/usr/local")), self.root) or any(directory.iterdir()):
                return
            if directory.name in ("bin", "lib", "share", "man"):
                return
            directory.rmdir()

    def _link(self) -> Iterator[str]:
        """The command for every shell, unless the name is taken or leads to it already."""
        if self.command == LINK:
            return
        target = self._in_root(LINK)
        if target.is_symlink() and target.readlink() == self.command:
            yield f"is      {LINK}"
        elif target.is_symlink() or target.exists():
            yield f"kept    {LINK}, which is another program"
        else:
            _make_directory(target.parent)
            target.symlink_to(self.command)
            yield f"wrote   {LINK} -> {self.command}"

    def _sample(self) -> str:
        if self._in_root(self.config).exists():
            return f"kept    {self.config}"
        return self._put(self.config, self._text(_SAMPLE))

    # --- groups and systemd

    @property
    def _live(self) -> bool:
        return self.root == Path("/")

    def _add_groups(self) -> Iterator[str]:
        missing = [group for group in GROUPS if group not in self._groups()]
        if not missing:
            yield from (f"is      group {group}" for group in GROUPS)
            return
        if _program("systemd-sysusers"):
            self._run("systemd-sysusers", f"--root={self.root}", PLACES["sysusers.conf"].name)
        elif _program("groupadd"):
            for group in missing:
                self._run("groupadd", "--system", *self._prefix(), group)
        else:
            yield f"left    the groups {' and '.join(missing)}: neither systemd-sysusers nor groupadd is here"
            return
        yield from (f"added   group {group}" for group in missing)

    def _drop_groups(self) -> Iterator[str]:
        for group, members in self._groups().items():
            if group not in GROUPS:
                continue
            if members or not _program("groupdel"):
                yield f"kept    group {group}" + (f", which has members: {members}" if members else "")
            else:
                self._run("groupdel", *self._prefix(), group)
                yield f"removed group {group}"

    def _groups(self) -> dict[str, str]:
        """Every group of the machine with its members."""
        try:
            lines = self._in_root(Path("/etc/group")).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        return {line.split(":")[0]: line.rpartition(":")[2] for line in lines if line.count(":") == 3}

    def _prefix(self) -> tuple[str, ...]:
        return () if self._live else ("--prefix", str(self.root))

    def _stop(self) -> Iterator[str]:
        """Stop the service and forget that it was to be started, where systemd runs and knows it."""
        if self._manages() and self._in_root(PLACES[UNIT]).exists():
            self._run("systemctl", "--quiet", "disable", "--now", UNIT)
            yield f"stopped {UNIT}"

    def _reload_systemd(self) -> Iterator[str]:
        if self._manages():
            self._run("systemctl", "daemon-reload")
            yield "reload  systemd has read its units anew"

    def _manages(self) -> bool:
        return self._live and Path("/run/systemd/system").is_dir() and _program("systemctl") is not None

    def _run(self, name: str, *words: str) -> None:
        """Run a program of the system. Raises InstallError with what it said."""
        program = _program(name)
        assert program is not None
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["failed"]
            raise InstallError(f"{name}: {said[-1]}")


def next_steps(installation: Installation) -> Sequence[str]:
    """What is left to the operator after an installation."""
    config = installation.config
    return (
        "",
        f"Next: write {config} (man nfqlb.toml), try it with `nfqlb check --host {config}`, then",
        "start it, now and at every boot: systemctl enable --now nfqlb",
    )


def this_command() -> Path:
    """The installed program that is running. Raises InstallError where it is none that a unit can start."""
    command = Path(sys.argv[0]) if os.sep in sys.argv[0] else Path(shutil.which(sys.argv[0]) or sys.argv[0])
    beside = Path(sys.executable).with_name("nfqlb")  # of the environment, also when called by the link
    for candidate in (beside, command):
        if candidate.name == "nfqlb" and os.access(candidate, os.X_OK):
            return candidate.absolute()
    raise InstallError(
        "this nfqlb is not installed as a program: pip install it, and run the `nfqlb` that this brings"
    )


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _make_directory(directory: Path) -> None:
    missing = [level for level in (directory, *directory.parents) if not level.exists()]
    for level in reversed(missing):
        level.mkdir(exist_ok=True)
        level.chmod(0o755)
