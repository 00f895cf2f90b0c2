"""A configuration handed over: from its file to the supervisor, and from there to a worker that runs.

Owns `Source`, which can read the file again, and `Handover`, a piece of memory that both processes share. A
configuration may be too long for a request between them; and what has been checked once is not read twice.
"""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from nfqlb.config import load
from nfqlb.core.spec import Config


class Reading(NamedTuple):
    """A configuration, and the text that it was made of."""

    config: Config
    text: str


class Source:
    """The file that a gateway's configuration comes from. `socket` takes the place of what that says."""

    def __init__(self, path: Path, socket: Path | None = None) -> None:
        self.path = path.absolute()  # it is to be found again from wherever that is asked for
        self._socket = socket

    def read(self, path: Path | None = None) -> Config:
        """What the file says, or the one at `path`. Raises ConfigError."""
        return self.reading(path).config

    def reading(self, path: Path | None = None) -> Reading:
        """The same with its text. Raises ConfigError."""
        file = path or self.path
        return self.understood(load.read(file), str(file))

    def understood(self, text: str, name: str) -> Reading:
        """What a text says; `name` is how the report of its mistakes calls it. Raises ConfigError."""
        config = load.parse(text, name)
        if self._socket is not None:
            config = replace(config, gateway=replace(config.gateway, socket=str(self._socket)))
        return Reading(config, text)


class Handover:
    """The memory. To be made before the worker is forked. Raises OSError."""

    def __init__(self) -> None:
        self._file = os.memfd_create("nfqlb-configuration")

    def give(self, config: Config) -> int:
        """In the supervisor: put a configuration there; returns how many bytes it has."""
        data = pickle.dumps(config)
        os.ftruncate(self._file, 0)
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._file, view, len(data) - len(view)) :]
        return len(data)

    def take(self, size: int) -> Config:
        """In the worker: the configuration of so many bytes. Raises ValueError where another one is there."""
        data = os.pread(self._file, size + 1, 0)
        if len(data) != size:
            raise ValueError(f"a configuration of {size} bytes is asked for, and {len(data)} are there")
        config = pickle.loads(data)  # noqa: S301  nobody but the supervisor can write there
        assert isinstance(config, Config)
        return config

    def close(self) -> None:
        """Give it back."""
        os.close(self._file)
