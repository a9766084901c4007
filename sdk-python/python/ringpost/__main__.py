"""The ``ringpost`` command, and ``python -m ringpost``, which also runs the handlers of a module."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import re
import signal
import sys
from typing import Any

from ringpost import Client, RingpostError, SyncClient
from ringpost._ringpost import command as _command

_TARGET = re.compile(r"[\w.]+:[\w.]+")


def command() -> int:
    """The ``ringpost`` command, of the wheel: the same as the one that is built by cargo."""
    # It waits outside the interpreter: Ctrl-C must not wait for that to come back.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _command(["ringpost", *sys.argv[1:]], [sys.executable, "-m", "ringpost"])


def main() -> int:
    """``python -m ringpost``: runs ``handle module:client``; all else is the ``ringpost`` command's."""
    line = sys.argv[1:]
    if len(line) >= 2 and line[0] == "handle" and any(_TARGET.fullmatch(word) for word in line[1:2]):
        return handle(line[1:])
    return command()


def handle(line: list[str]) -> int:
    """Runs the client that a module has until SIGINT or SIGTERM, and then lets its handlers finish."""
    parser = argparse.ArgumentParser(
        prog="python -m ringpost handle",
        description="Run the handlers of a module's client until SIGINT or SIGTERM.",
    )
    parser.add_argument("client", metavar="MODULE:CLIENT", help="for example `worker:client`, from the file worker.py")
    parser.add_argument(
        "--drain-timeout", type=float, default=10.0, metavar="SECONDS", help="for what is open (default: 10)"
    )
    arguments = parser.parse_args(line)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    client = _load(arguments.client, parser)
    try:
        return asyncio.run(_serve(client, arguments.drain_timeout))
    except RingpostError as error:
        sys.stderr.write(f"{arguments.client}: {error.code}: {error}\n")
        return error.exit_code


def _load(target: str, parser: argparse.ArgumentParser) -> Client:
    module_name, _, path = target.partition(":")
    # As `python -m` does for its own module.
    sys.path.insert(0, os.getcwd())
    found: Any
    try:
        found = importlib.import_module(module_name)
        for name in path.split("."):
            found = getattr(found, name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        parser.error(f"there is no module {module_name!r} here")
    except AttributeError as error:
        parser.error(f"{target}: {error}")
    if callable(found):
        found = found()
    if isinstance(found, SyncClient):
        found = found._client
    if not isinstance(found, Client):
        parser.error(f"{target} is no Client, but {type(found).__name__}")
    return found


async def _serve(client: Client, drain_timeout: float) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.ensure_future(stop.wait())
    starting = asyncio.ensure_future(client.start())
    await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return 0
    starting.result()
    sys.stderr.write(f"{client!r}\n")
    closed = asyncio.ensure_future(client.closed())
    await asyncio.wait((closed, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if closed.done():
        raise closed.result()
    # A second signal ends it at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    drained = await client.drain(drain_timeout)
    closed.cancel()
    return 0 if drained.is_complete else 1


if __name__ == "__main__":
    sys.exit(main())
