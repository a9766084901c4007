#!/usr/bin/env python3
"""Writes the vectors of this folder.

It shares no code with Ringpost: keys, handshake and records are made here from the primitives of Python's `cryptography`
(`pip install cryptography`), as docs/PROTOCOL.md, section 8, describes them. Where both agree, neither is alone in being
wrong.
"""

import hashlib
import hmac
import json
import os
import struct

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

MAGIC = bytes.fromhex("b5525031")
NOISE = b"Noise_NNpsk0_25519_AESGCM_SHA256"
REKEY_RECORDS = 1 << 20


def hkdf(salt, ikm, outputs):
    """HKDF as Noise has it, which for one output is RFC 5869's with the output's number as its info."""
    temp, last, all_of_them = hmac.digest(salt, ikm, "sha256"), b"", []
    for number in range(1, outputs + 1):
        last = hmac.digest(temp, last + bytes([number]), "sha256")
        all_of_them.append(last)
    return all_of_them


def key_id(psk):
    prk = hmac.digest(bytes(32), psk, "sha256")
    return hmac.digest(prk, b"ringpost/key-id/v1\x01", "sha256")[:8]


def of_passphrase(text):
    return Argon2id(
        salt=b"ringpost/psk/v1", length=32, iterations=3, lanes=4, memory_cost=64 << 10
    ).derive(text.encode())


def nonce(number):
    return bytes(4) + struct.pack(">Q", number)


class Symmetric:
    """Noise's SymmetricState."""

    def __init__(self, prologue):
        assert len(NOISE) == 32
        self.h = self.ck = NOISE
        self.mix_hash(prologue)

    def mix_hash(self, data):
        self.h = hashlib.sha256(self.h + data).digest()

    def mix_key(self, ikm):
        self.ck, self.k = hkdf(self.ck, ikm, 2)

    def mix_key_and_hash(self, ikm):
        self.ck, temp, self.k = hkdf(self.ck, ikm, 3)
        self.mix_hash(temp)

    def tag(self):
        """What is left of an empty payload."""
        tag = AESGCM(self.k).encrypt(nonce(0), b"", self.h)
        self.mix_hash(tag)
        return tag


def handshake(psk, role, client, server):
    """Both hellos, and the keys of both directions."""
    ours, theirs = (X25519PrivateKey.from_private_bytes(key) for key in (client, server))
    prologue = MAGIC + bytes([1, 1, role, 0]) + bytes(8) + key_id(psk)
    state = Symmetric(prologue)
    state.mix_key_and_hash(psk)
    public = ours.public_key().public_bytes_raw()
    state.mix_hash(public)
    state.mix_key(public)
    client_hello = prologue + public + state.tag()
    public = theirs.public_key().public_bytes_raw()
    state.mix_hash(public)
    state.mix_key(public)
    state.mix_key(ours.exchange(X25519PublicKey.from_public_bytes(public)))
    server_hello = MAGIC + bytes([1, 1]) + bytes(10) + public + state.tag()
    to_server, to_client = hkdf(state.ck, b"", 2)
    return client_hello, server_hello, to_server, to_client


def record(key, number, plaintext, end=False):
    header = struct.pack("<HBB", len(plaintext), int(end), 0)
    return header + AESGCM(key).encrypt(nonce(number), plaintext, header)


def rekey(key):
    return AESGCM(key).encrypt(nonce(2**64 - 1), bytes(32), b"")[:32]


def write(name, content):
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")


def main():
    psk = bytes(range(32))
    keys = [{"text": text, "psk": secret.hex(), "id": key_id(secret).hex()} for text, secret in [
        ("rpk1_" + psk.hex(), psk),
        ("correct horse battery staple", of_passphrase("correct horse battery staple")),
        ("Grüße, Schlüssel 🔑", of_passphrase("Grüße, Schlüssel 🔑")),
    ]]
    write("keys.json", {"description": "texts of keys, and what is made of them", "keys": keys})

    for name, role in (("client", 0), ("peer", 1)):
        client, server = bytes([0x11] * 32), bytes([0x22] * 32)
        client_hello, server_hello, to_server, to_client = handshake(psk, role, client, server)
        said = [b"", b"{}", b'{"id":"a","action":"init"}\n', bytes(range(256)) * 4]
        write(f"handshake-{name}.json", {
            "description": f"the handshake of a {name}, and the first records of both directions",
            "psk": psk.hex(),
            "role": name,
            "clientEphemeral": client.hex(),
            "serverEphemeral": server.hex(),
            "clientHello": client_hello.hex(),
            "serverHello": server_hello.hex(),
            "toServerKey": to_server.hex(),
            "toClientKey": to_client.hex(),
            "records": [
                {
                    "from": side,
                    "number": number,
                    "plaintext": plaintext.hex(),
                    "end": number == len(said),
                    "record": record(key, number, plaintext, number == len(said)).hex(),
                }
                for side, key in (("client", to_server), ("server", to_client))
                for number, plaintext in enumerate(said + [b""])
            ],
        })

    key = bytes([0x33] * 32)
    after = rekey(key)
    write("rekey.json", {
        "description": "the records around a change of the key: their numbers go on",
        "key": key.hex(),
        "nextKey": after.hex(),
        "records": [
            {"number": number, "plaintext": b"said".hex(), "record": record(which, number, b"said").hex()}
            for number, which in (
                (REKEY_RECORDS - 1, key),
                (REKEY_RECORDS, after),
                (2 * REKEY_RECORDS - 1, after),
                (2 * REKEY_RECORDS, rekey(after)),
            )
        ],
    })


if __name__ == "__main__":
    main()
