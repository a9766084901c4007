"""The reference's example system: it is started, asked all the time, and each of its parts is killed in turn.

    POST /test ── front.py ──┐                      ┌── server_1 ──┐
                             ├── ringpost balance ──┤              │ linked to each other
    service_2.py (twice) ────┤                      └── server_2 ──┘
    ringpost handle (twice) ─┘

Run: make topology        or, in an environment with the wheel: python run.py [--quick] [--port-base N]

Exit code 0 if the system went on after each step, and no request failed but while the front itself was away.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Self

HERE = pathlib.Path(__file__).parent
RINGPOST = str(pathlib.Path(sys.executable).parent / "ringpost")
# Longer than anything here takes on a slow machine.
PATIENCE = 30.0


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Part:
    """A process, which says a line with `ready` in it once it can be used."""

    def __init__(self, name: str, ready: str, command: list[str], environment: dict[str, str]) -> None:
        self.name, self.ready, self.command, self.environment = name, ready, command, environment
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, args=(self.process, lines), daemon=True).start()
        said = []
        while True:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                line = None
            if line is None:
                raise SystemExit(f"{self.name} does not get ready:\n{''.join(said)}")
            said.append(line)
            if self.ready in line:
                return

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    def kill(self) -> None:
        """As `kill -9` does, whatever it was at."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process.stdout.close()
            self.process = None


class Load:
    """Posts one request after the other, and counts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered, self.failed, self.longest_gap = 0, 0, 0.0
        self.away, self.errors = False, []
        self._stop = threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                answer = post(self.port, {"value": number})
                if answer["value"] != number + 1:
                    raise RuntimeError(f"{number + 1} was wanted: {answer}")
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                # While the front is away nobody is there to ask: that is the one thing that callers notice.
                if not self.away:
                    self.failed += 1
                    self.errors.append(f"{number}: {error!r}")
                time.sleep(0.02)
                continue
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - self._last)
            self._last = now
            self.answered += 1

    def goes_on(self, count: int) -> None:
        """Waits until so many more were answered."""
        goal, until = self.answered + count, time.monotonic() + PATIENCE
        while self.answered < goal:
            if time.monotonic() > until:
                raise SystemExit(f"it does not go on: {self.answered} answered, {goal} wanted; {self.errors[-3:]}")
            time.sleep(0.01)


def post(port: int, data: object) -> dict[str, object]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/test", json.dumps(data), {"content-type": "application/json"})
        response = connection.getresponse()
        body = json.loads(response.read())
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{response.status}: {body}")
    return body


class System:
    """All parts, in the order in which they start."""

    def __init__(self, directory: pathlib.Path, ports: list[int]) -> None:
        one, two, balancer, self.front_port = ports
        key, peer_key, admin_key = (directory / f"{role}.key" for role in ("client", "peer", "admin"))
        for file in (key, peer_key, admin_key):
            subprocess.run([RINGPOST, "keygen", "--out", file], check=True, stdout=subprocess.DEVNULL)
        # One key for all clients and another one for the links, as in the reference; a third for who looks in.
        environment = {**os.environ, "RINGPOST_SECURE_KEY_FILE": str(key)}
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RINGPOST_")}
        self.operator = {**os.environ, "RINGPOST_SECURE_KEY_FILE": str(admin_key)}
        self.addresses = {"server_1": f"127.0.0.1:{one}", "server_2": f"127.0.0.1:{two}"}
        others = {"server_1": f"127.0.0.1:{two}", "server_2": f"127.0.0.1:{one}"}
        through = f"127.0.0.1:{balancer}"
        self.parts: dict[str, Part] = {}

        def part(name: str, ready: str, command: list[object], environment: dict[str, str] = environment) -> None:
            self.parts[name] = Part(name, ready, [str(word) for word in command], environment)

        for name, address in self.addresses.items():
            roles = {"client": key, "peer": peer_key, "admin": admin_key}
            keys = [word for role, file in roles.items() for word in ("--secure-key-file", f"{role}:{file}")]
            peer = f"{others[name]},key-file={peer_key},action={name}"
            command = [RINGPOST, "serve", "--id", name, "--listen", address, *keys, "--peer", peer]
            part(name, "listening on", [*command, "--data-dir", directory / name], plain)
        instances = [word for address in self.addresses.values() for word in ("--instance", address)]
        health = ["--health", "ping", "--health-interval", "200ms", "--rise", "1", "--fall", "2", "--slow-start", "0ms"]
        part("balancer", "listening on", [RINGPOST, "balance", "--listen", through, *instances, *health], plain)
        handle = [RINGPOST, "handle", "client_1", "--echo", "--server", through]
        for name in ("service_1a", "service_1b"):
            part(name, "client_1", handle)
        for name in ("service_2a", "service_2b"):
            part(name, "ready", [sys.executable, HERE / "service_2.py", through, name])
        part("front", "ready", [sys.executable, HERE / "front.py", through, self.front_port])

    def __enter__(self) -> Self:
        for name, part in self.parts.items():
            print(f"starting {name}: {' '.join(part.command)}", flush=True)
            part.start()
        return self

    def __exit__(self, *_: object) -> None:
        for part in reversed(self.parts.values()):
            part.kill()

    def asks(self, server: str, *command: str) -> str:
        """What the command shows of a server."""
        whole = [RINGPOST, *command, "--server", self.addresses[server]]
        shown = subprocess.run(whole, check=True, env=self.operator, capture_output=True, text=True, timeout=PATIENCE)
        return shown.stdout

    def is_whole(self) -> bool:
        """Both instances of both services are there, wherever they are, and the servers are linked."""
        handlers = [
            action["action"]
            for server in self.addresses
            for action in json.loads(self.asks(server, "actions", "--json"))
            for handler in action["handlers"]
            if handler["server"] is None
        ]
        links = [
            link for server in self.addresses for link in json.loads(self.asks(server, "topology", "--json"))["links"]
        ]
        dialled = [link["state"] for link in links if link.get("address")]
        counted = all(handlers.count(action) == 2 for action in ("client_1", "client_2"))
        return counted and all(state in ("up", "standsBy") for state in dialled)

    def wait_until_whole(self) -> None:
        until = time.monotonic() + PATIENCE
        while not self.is_whole():
            if time.monotonic() > until:
                raise SystemExit(f"not all is there:\n{self.asks('server_1', 'topology')}")
            time.sleep(0.1)


def main() -> int:
    arguments = argparse.ArgumentParser(description="The reference's example system, and what it survives.")
    arguments.add_argument("--quick", action="store_true", help="fewer requests between two steps")
    arguments.add_argument("--port-base", type=int, help="fixed ports from this one on; free ones otherwise")
    given = arguments.parse_args()
    base = given.port_base
    ports = free_ports(4) if base is None else [base, base + 1, base + 2, base + 3]
    some = 20 if given.quick else 200
    # Whoever stops this gets all of it stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as directory, System(pathlib.Path(directory), ports) as system:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                print(f'\nPOST http://127.0.0.1:{ports[3]}/test {{"value": 1}}  ->  {post(ports[3], {"value": 1})}')
                break
            except RuntimeError:
                if time.monotonic() > until:
                    raise
        system.wait_until_whole()
        print("\n" + system.asks("server_1", "topology"), flush=True)
        with Load(ports[3]) as load:
            load.goes_on(some)
            print(f"all is well: {load.answered} answered\n")
            for name in system.parts:
                part = system.parts[name]
                answered, failed, load.longest_gap = load.answered, load.failed, 0.0
                load.away = name == "front"
                part.kill()
                if name not in ("front", "balancer"):
                    # The others go on without it.
                    load.goes_on(some)
                part.start()
                load.goes_on(some)
                load.away = False
                system.wait_until_whole()
                print(
                    f"{name:11} killed and started again: {load.answered - answered} answered, "
                    f"{load.failed - failed} failed, longest pause {load.longest_gap * 1000:.0f} ms",
                    flush=True,
                )
            print(f"\n{load.answered} answered, {load.failed} failed: {load.errors[:3]}")
        return 1 if load.failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
