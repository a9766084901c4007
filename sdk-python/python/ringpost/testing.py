"""A real server within a test.

>>> from ringpost import SyncClient
>>> from ringpost.testing import Server
>>> def double(value):
...     return 2 * value
>>> with Server() as server, SyncClient(port=server.port, action="double", request_handler=double) as client:
...     client.request("double", 21).data
42

Each server has threads and a port of its own, so that tests run side by side. It needs Linux with io_uring, as every
Ringpost server does. With pytest there is the fixture ``ringpost_server``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ringpost import _ringpost
from ringpost._times import Seconds, interval_ms

if TYPE_CHECKING:
    from typing import Self


class Server:
    """A server on a free port of 127.0.0.1, with a log in a temporary folder, that ends with its ``with`` block.

    ``durable``
        Whether it has a folder for durable requests. ``data_dir`` names one that is kept.
    ``port``
        The port; 0 takes a free one.
    ``secure_key``
        The key that its clients need, if any.
    ``config``
        Anything else of the server's configuration, with underscores for hyphens: ``Server(max_payload="1MiB")``.

    It can be stopped and started again at the same port; with its log it knows then what it had accepted.
    """

    def __init__(
        self,
        *,
        durable: bool = True,
        data_dir: Path | str | None = None,
        port: int = 0,
        secure_key: str | None = None,
        **config: bool | int | str | list[str],
    ) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._keys: tempfile.TemporaryDirectory[str] | None = None
        if data_dir is None and durable:
            self._folder = tempfile.TemporaryDirectory(prefix="ringpost-")
            data_dir = self._folder.name
        if secure_key is not None:
            self._keys = tempfile.TemporaryDirectory(prefix="ringpost-key-")
            file = Path(self._keys.name, "key")
            file.touch(mode=0o600)
            file.write_text(secure_key)
            config["secure_key_file"] = [str(file)]
        if data_dir is not None:
            config["data_dir"] = str(data_dir)
        self._config = config
        self._port = port
        self._server: _ringpost.Server | None = None

    @property
    def host(self) -> str:
        """Where it listens."""
        return "127.0.0.1"

    @property
    def port(self) -> int:
        """Its port: the same after a `restart`."""
        return self._port

    @property
    def address(self) -> str:
        """Host and port, as the ``ringpost`` command wants them."""
        return f"{self.host}:{self.port}"

    def start(self) -> Self:
        """Starts it; clients can connect then. Raises ``OSError`` or ``ValueError``, which say what to do."""
        if self._server is None:
            config = {**self._config, "listen": [f"{self.host}:{self._port}"]}
            # JSON's strings, numbers, booleans and arrays are TOML's too.
            text = "".join(f"{key.replace('_', '-')} = {json.dumps(value)}\n" for key, value in config.items())
            self._server = _ringpost.Server(text)
            self._port = self._server.port
        return self

    def stop(self) -> None:
        """Ends it at once, as a crash would, but that the connections are closed."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def drain(self, grace: Seconds = 10.0) -> None:
        """Ends it in good order: clients are told, and what is open has as long as ``grace`` to end."""
        if self._server is not None:
            server, self._server = self._server, None
            server.drain(interval_ms(grace, "grace"))

    def restart(self) -> None:
        """Stops it, and starts it again at the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        for folder in (self._folder, self._keys):
            if folder is not None:
                folder.cleanup()

    def __repr__(self) -> str:
        return f"<Server {self.address}{'' if self._server is not None else ' stopped'}>"
