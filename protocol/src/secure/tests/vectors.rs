//! The files in `vectors/secure/`, which another implementation wrote, say the same as this one.

use std::{fs, path::Path};

use serde_json::Value;

use super::*;

fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/secure").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

/// Texts become the keys and ids that they became elsewhere: generated ones, passphrases, also beyond ASCII.
#[test]
fn keys() {
    for known in file("keys.json")["keys"].as_array().unwrap() {
        let key = SecureKey::parse(known["text"].as_str().unwrap()).unwrap();
        assert_eq!((key.psk(), key.id().0), (&array(&known["psk"]), array(&known["id"])), "{known}");
        assert_eq!(key.is_passphrase(), !known["text"].as_str().unwrap().starts_with("rpk1_"));
    }
}

/// Both hellos are what they were elsewhere, byte by byte, and so are the records behind them.
#[test]
fn handshakes() {
    for (name, role) in [("client", Role::Client), ("peer", Role::Peer)] {
        let known = file(&format!("handshake-{name}.json"));
        let key = SecureKey::from_bytes(array(&known["psk"]));
        let initiator = Initiator::repeatable(&key, role, &array(&known["clientEphemeral"])).unwrap();
        assert_eq!(initiator.hello()[..], bytes(&known["clientHello"]));
        let hello = ClientHello::decode(initiator.hello()).unwrap().unwrap();
        assert_eq!((hello.role(), hello.key_id()), (role, key.id()));
        let mut responder = Responder::repeatable(&hello, &key, &array(&known["serverEphemeral"])).unwrap();
        assert_eq!(responder.hello[..], bytes(&known["serverHello"]));
        let Some(ServerHello::Secure(answer)) = ServerHello::decode(&responder.hello).unwrap() else {
            panic!("no hello")
        };
        let (mut sealer, mut opener) = initiator.finish(&answer).unwrap();
        let mut split =
            [Sealer::new(&array(&known["toServerKey"])), Sealer::new(&array(&known["toClientKey"]))];
        for record in known["records"].as_array().unwrap() {
            let of_client = record["from"] == "client";
            let (sealer, opener) = match of_client {
                true => (&mut sealer, &mut responder.opener),
                false => (&mut responder.sealer, &mut opener),
            };
            let (plaintext, expected) = (bytes(&record["plaintext"]), bytes(&record["record"]));
            for sealer in [sealer, &mut split[usize::from(!of_client)]] {
                let mut out = Vec::new();
                match (record["end"] == true, plaintext.is_empty()) {
                    (true, _) => sealer.end(&mut out),
                    (false, false) => sealer.seal(&plaintext, &mut out),
                    // Nobody writes a record without anything in it, but it may be there.
                    (false, true) => sealer.seal_nothing(&mut out),
                }
                assert_eq!(out, expected, "{record}");
            }
            assert_eq!(open(opener, &expected).unwrap().unwrap(), plaintext);
            assert_eq!(opener.has_ended(), record["end"] == true);
        }
    }
}

/// The key changes where it changed elsewhere, to what it changed to, and the numbers go on.
#[test]
fn rekeying() {
    let known = file("rekey.json");
    let records = known["records"].as_array().unwrap();
    for (key, at) in [(&known["key"], 0), (&known["nextKey"], 2)] {
        let mut sealer = Sealer::at(&array(key), records[at]["number"].as_u64().unwrap());
        for record in &records[at..at + 2] {
            assert_eq!(seal(&mut sealer, &bytes(&record["plaintext"])), bytes(&record["record"]), "{record}");
        }
    }
}
