"""What happens to processes: signals, forks, exits, and the command line."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from ringpost import SyncClient

DEADLINE = 60


def python(program, *arguments, **options):
    """Starts a program in Python, with its output as text."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@contextlib.contextmanager
def ended(process):
    """Gives the process, and makes sure that it is gone behind the block."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(process):
    """Waits for its end: what it printed, what it complained about, and how it ended."""
    output, complaints = process.communicate(timeout=DEADLINE)
    return output, complaints, process.returncode


ASYNC_WAITS = """
    import asyncio, sys
    from ringpost import Client

    async def slow(data):
        print("waiting", flush=True)
        await asyncio.sleep(600)

    async def main():
        async with Client(port=int(sys.argv[1]), action="slow", request_handler=slow) as client:
            await client.request("slow", 1, timeout=600)

    asyncio.run(main())
"""

SYNC_WAITS = """
    import sys, time
    from ringpost import SyncClient

    def slow(data):
        print("waiting", flush=True)
        time.sleep(600)

    with SyncClient(port=int(sys.argv[1]), action="slow", request_handler=slow) as client:
        client.request("slow", 1, timeout=600)
"""

SYNC_ONLY_HANDLES = """
    import sys
    from ringpost import SyncClient

    with SyncClient(port=int(sys.argv[1]), action="x", request_handler=len) as client:
        print("waiting", flush=True)
        client.closed()
"""


@pytest.mark.parametrize("program", [ASYNC_WAITS, SYNC_WAITS, SYNC_ONLY_HANDLES], ids=["async", "sync", "handles"])
def test_ctrl_c(plain_server, program):
    """Ctrl-C ends a program that waits, at once and with the usual traceback; handlers at work hold nothing up."""
    with ended(python(program, plain_server.port)) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, complaints, code = finished(process)
        assert code == -signal.SIGINT
        assert complaints.rstrip().endswith("KeyboardInterrupt")
        assert complaints.count("Traceback") <= 2
        # Far from the ten minutes that the handler takes.
        assert time.monotonic() - began < 30


EXITS = {
    "async, never closed": """
        import asyncio, sys
        from ringpost import Client

        async def main():
            client = await Client(port=int(sys.argv[1]), action="x", request_handler=str).start()
            for _ in range(200):
                asyncio.ensure_future(client.request("x", 1))
            await asyncio.sleep(0.01)

        asyncio.run(main())
    """,
    "sync, never closed": """
        import sys, threading
        from ringpost import SyncClient

        client = SyncClient(port=int(sys.argv[1]), action="x", request_handler=lambda data: data).start()

        def ask():
            while True:
                try:
                    client.request("x", 1)
                except Exception:
                    return

        for _ in range(8):
            threading.Thread(target=ask, daemon=True).start()
        for _ in range(50):
            client.request("x", 1)
    """,
    "sys.exit in the middle": """
        import sys
        from ringpost import SyncClient

        client = SyncClient(port=int(sys.argv[1])).start()
        sys.exit(0)
    """,
}


@pytest.mark.parametrize("program", EXITS.values(), ids=EXITS.keys())
def test_exit_while_busy(plain_server, program):
    """A program that ends in the middle of its requests ends at once, and without a word."""
    for _ in range(3):
        with ended(python(program, plain_server.port)) as process:
            _, complaints, code = finished(process)
            assert code == 0
            assert "Traceback" not in complaints
            assert "Fatal" not in complaints


FORKS = """
    import asyncio, os, sys
    from ringpost import Client, ClosedError, SyncClient

    port = int(sys.argv[1])

    async def one(data):
        return [data]

    async def new_one():
        async with Client(port=port) as client:
            return (await client.request("x", 2)).data

    def in_child(client, sync_client):
        try:
            sync_client.request("x", 1)
            return "the parent's SyncClient was used"
        except ClosedError as error:
            assert "forked" in str(error), error

        async def use_the_parents():
            client._link.loop = asyncio.get_running_loop()
            for use in (client.request("x", 1), client.handle("y", one), client.drain(1)):
                try:
                    await use
                except ClosedError as error:
                    assert "forked" in str(error), error
                else:
                    return "the parent's Client was used"

        wrong = asyncio.run(use_the_parents())
        if wrong:
            return wrong
        assert asyncio.run(new_one()) == [2]
        with SyncClient(port=port) as own:
            assert own.request("x", 3).data == [3]
        return None

    async def main():
        async with Client(port=port, action="x", request_handler=one) as client:
            with SyncClient(port=port) as sync_client:
                assert await asyncio.to_thread(lambda: sync_client.request("x", 1).data) == [1]
                for _ in range(5):
                    busy = [asyncio.ensure_future(client.request("x", n)) for n in range(100)]
                    await asyncio.sleep(0)
                    child = os.fork()
                    if child == 0:
                        # As multiprocessing does it: the parent's loop is not the child's.
                        asyncio._set_running_loop(None)
                        asyncio.set_event_loop(None)
                        code = 1
                        try:
                            wrong = in_child(client, sync_client)
                            print(wrong, flush=True) if wrong else None
                            code = 1 if wrong else 0
                        except BaseException:
                            import traceback
                            traceback.print_exc()
                        finally:
                            os._exit(code)
                    # While the child is at work, so is the parent.
                    waited = asyncio.to_thread(os.waitpid, child, 0)
                    replies = await asyncio.gather(*busy)
                    assert [reply.data for reply in replies] == [[n] for n in range(100)]
                    _, status = await waited
                    assert status == 0, status
        print("good")

    asyncio.run(main())
"""


def test_fork(plain_server):
    """In a forked child the parent's clients raise ClosedError, new ones work, and the parent's go on undisturbed."""
    with ended(python(FORKS, plain_server.port)) as process:
        output, complaints, code = finished(process)
        assert (output, code) == ("good\n", 0), complaints


PREFORK = """
    import multiprocessing, sys
    from ringpost import SyncClient

    def work(port, number):
        with SyncClient(port=port) as client:
            return client.request("x", number).data

    if __name__ == "__main__":
        port = int(sys.argv[1])
        with SyncClient(port=port, action="x", request_handler=lambda data: data * 2) as client:
            with multiprocessing.get_context("fork").Pool(3) as pool:
                print(sum(pool.starmap(work, [(port, number) for number in range(20)])))
"""


def test_prefork_workers(plain_server):
    """Worker processes forked from one that has a client make their own, and exit cleanly."""
    with ended(python(PREFORK, plain_server.port)) as process:
        output, complaints, code = finished(process)
        assert (output, code) == ("380\n", 0), complaints


def run(*line, **options):
    """Runs the command of this installation to its end."""
    options.setdefault("env", os.environ)
    return subprocess.run(
        [sys.executable, "-m", "ringpost", *line],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        **options,
    )


def test_the_command(plain_server):
    """`ringpost` is the whole command: versions, requests, and exit codes."""
    assert run("--version").stdout.startswith("ringpost ")
    asked = run("request", "nobody", "1", "--server", plain_server.address)
    assert asked.returncode == 3
    assert "nobody" in asked.stderr
    assert run("request").returncode == 2
    with SyncClient(port=plain_server.port, action="x", request_handler=lambda data: [data]):
        asked = run("request", "x", "1", "--server", plain_server.address)
        assert (asked.stdout, asked.returncode) == ("[1]\n", 0)


def test_the_command_serves():
    """`ringpost serve` runs a server in the interpreter's process; SIGTERM and Ctrl-C end it in good order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        line = [sys.executable, "-m", "ringpost", "serve", "--listen", "127.0.0.1:0"]
        with ended(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)) as process:
            started = next(line for line in process.stderr if "listening" in line)
            port = int(started.rsplit("127.0.0.1:", 1)[1].split()[0].strip('",\x1b[0m'))
            with SyncClient(port=port, action="x", request_handler=lambda data: data) as client:
                assert client.request("x", 1).data == 1
            process.send_signal(number)
            _, _, code = finished(process)
            assert code == 0


def test_the_command_starts_itself():
    """What of the command starts another of its kind starts this one."""
    ended = run("bench", "--spawn", "--duration", "100ms", "--warm-up", "0s", "--in-flight", "1", "--requesters", "1")
    assert ended.returncode == 0, ended.stderr


MODULE = """
import asyncio
import os
from ringpost import Client

client = Client(port=int(os.environ["PORT"]))

def made():
    return client

nothing = 7

@client.handler("double")
async def double(value: int) -> int:
    return 2 * value

@client.handler("slow")
async def slow(data):
    await asyncio.sleep(0.3)
    return "finished"
"""


@pytest.mark.parametrize("target", ["worker:client", "worker:made"])
def test_handle_runs_a_module(plain_server, tmp_path, target):
    """`python -m ringpost handle module:client` runs a module's handlers, and SIGTERM lets them finish."""
    (tmp_path / "worker.py").write_text(MODULE)
    environment = {**os.environ, "PORT": str(plain_server.port)}
    line = [sys.executable, "-m", "ringpost", "handle", target]
    process = subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with ended(process), SyncClient(port=plain_server.port) as client:
        assert "connected" in process.stderr.readline()
        assert client.request("double", 21).data == 42
        import threading

        asked = []
        asking = threading.Thread(target=lambda: asked.append(client.request("slow").data))
        asking.start()
        deadline = time.monotonic() + DEADLINE
        while client._client._link.connection.open_requests == 0 and time.monotonic() < deadline:
            time.sleep(0.002)
        # It has reached the handler when a later request to the same client has been answered.
        client.request("double", 1)
        process.send_signal(signal.SIGTERM)
        asking.join(DEADLINE)
        assert asked == ["finished"]
        assert finished(process)[2] == 0


@pytest.mark.parametrize(
    ("target", "says", "code"),
    [
        ("nowhere:client", "no module 'nowhere'", 2),
        ("worker:other", "'other'", 2),
        ("worker:nothing", "is no Client, but int", 2),
        ("worker:client", "connect: cannot connect", 69),
    ],
)
def test_handle_that_cannot_run(tmp_path, target, says, code):
    """What is no module's client is a usage error; without a server it ends as the command does."""
    (tmp_path / "worker.py").write_text(MODULE)
    result = run("handle", target, cwd=tmp_path, env={**os.environ, "PORT": "1"})
    assert says in result.stderr
    assert result.returncode == code
