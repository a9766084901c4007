"""The secure key: both sides have it, or nothing is said."""

import pytest
from shared import one

from ringpost import AuthError, Client, ProtocolError, SyncClient
from ringpost.testing import Server

KEY = "someSecureKey"


@pytest.fixture(scope="module")
def keyed_server():
    with Server(durable=False, secure_key=KEY) as server:
        yield server


async def test_both_have_it(keyed_server):
    """With the server's key everything works as without one, large payloads too."""
    async with Client(port=keyed_server.port, secure_key=KEY, action="x", request_handler=one) as client:
        assert (await client.request("x", 1)).data == [1]
        text = "long " * 100_000
        assert (await client.request("x", text)).data == [text]


@pytest.mark.parametrize("key", [None, "another"])
async def test_without_it(keyed_server, key):
    """Without the key, and with another one, start fails at once, and says why; the key is nowhere in it."""
    with pytest.raises(AuthError) as caught:
        await Client(port=keyed_server.port, secure_key=key).start()
    assert caught.value.code == "unauthorized"
    assert KEY not in str(caught.value)


async def test_a_key_that_is_none(keyed_server):
    """What cannot be a key is refused before anything is said."""
    with pytest.raises(ProtocolError):
        await Client(port=keyed_server.port, secure_key="").start()


def test_by_the_environment(keyed_server, monkeypatch):
    """The environment's key serves where none is given."""
    monkeypatch.setenv("RINGPOST_SECURE_KEY", KEY)
    with SyncClient(port=keyed_server.port, action="x", request_handler=lambda data: data) as client:
        assert client.request("x", 1).data == 1


def test_by_a_file_of_the_environment(keyed_server, monkeypatch, tmp_path):
    """The file that the environment names counts before its key, with a role before its name or without one."""
    file = tmp_path / "ringpost.key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    monkeypatch.setenv("RINGPOST_SECURE_KEY", "another")
    for named in (str(file), f"client:{file}"):
        monkeypatch.setenv("RINGPOST_SECURE_KEY_FILE", named)
        with SyncClient(port=keyed_server.port, action="x", request_handler=lambda data: data) as client:
            assert client.request("x", 1).data == 1


def test_a_file_without_a_key(keyed_server, monkeypatch, tmp_path):
    """A file that is not there, or has no key in it, is an error that names it; a key that is given does without."""
    empty = tmp_path / "empty.key"
    empty.write_text("\n")
    empty.chmod(0o600)
    for file in (empty, tmp_path / "nowhere.key"):
        monkeypatch.setenv("RINGPOST_SECURE_KEY_FILE", str(file))
        with pytest.raises(ProtocolError, match=file.name):
            SyncClient(port=keyed_server.port).start()
        with SyncClient(port=keyed_server.port, secure_key=KEY) as client:
            assert client.connected
