//! The files in `vectors/proxy/` and the code say the same.

use std::net::SocketAddr;

use ringpost_protocol::proxy::{self, Ends, Header};

use crate::files::{ProxyVector, code, proxy_vectors};

fn ends(vector: &ProxyVector) -> Option<Ends> {
    let address = |member: &str| vector.description[member].as_str()?.parse::<SocketAddr>().ok();
    Some(Ends { source: address("source")?, destination: address("destination")? })
}

/// Every vector is read as what it describes or refused as it says, and of the good ones no part is.
#[test]
fn proxy_headers_are_read_as_they_say() {
    let mut seen = (0, 0);
    for vector in &proxy_vectors() {
        let ProxyVector { name, bytes, description, .. } = vector;
        let read = proxy::decode(bytes);
        if let Some(error) = description["error"].as_str() {
            seen.0 += 1;
            let expected = code(error).unwrap_or_else(|| panic!("{name}: there is no code `{error}`"));
            assert_eq!(read.map_err(|error| error.code), Err(expected), "{name}");
            assert!(name.starts_with("bad-"), "{name} is refused");
            continue;
        }
        seen.1 += 1;
        assert_eq!(description["local"] == true, ends(vector).is_none(), "{name}: local, or two addresses");
        assert_eq!(read, Ok(Some(Header { bytes: bytes.len(), ends: ends(vector) })), "{name}");
        for cut in 0..bytes.len() {
            assert_eq!(proxy::decode(&bytes[..cut]), Ok(None), "{cut} bytes of {name}");
        }
    }
    assert!(seen.0 >= 5 && seen.1 >= 5, "{seen:?}");
}

/// What is written is byte by byte what the vectors have.
#[test]
fn proxy_headers_are_written_as_they_say() {
    let mut written = 0;
    for vector in proxy_vectors() {
        if vector.description["decodeOnly"] == true || !vector.description["error"].is_null() {
            continue;
        }
        let mut bytes = Vec::new();
        match ends(&vector) {
            Some(Ends { source, destination }) => proxy::encode(source, destination, &mut bytes),
            None => proxy::encode_local(&mut bytes),
        }
        assert_eq!(bytes, vector.bytes, "{}", vector.name);
        written += 1;
    }
    assert!(written >= 3, "{written}");
}
