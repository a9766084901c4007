//! The PROXY protocol, version 2: what a balancer says in front of a client's own bytes, so that the server learns where
//! the client is.
//!
//! The format is HAProxy's (`doc/proxy-protocol.txt` there); docs/PROTOCOL.md has the bytes. Version 1, which is text, is
//! refused: nobody who can choose uses it, and a second parser in front of everything is a second thing to get wrong.
//!
//! Nothing here decides whether to believe what a header says: that is for who knows which networks may say it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{Code, WireError};

/// What a header begins with. No dialect begins so: they all are told apart by their first byte.
pub const SIGNATURE: [u8; 12] = [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A];
/// Signature, version and command, family and protocol, length of the rest.
pub const FIXED_BYTES: usize = 16;
/// The longest header that is read, all of it. Those of real balancers have less than 600 bytes; this is what the first
/// read of a connection has room for.
pub const MAX_HEADER_BYTES: usize = 4096;

/// What a header of version 1 begins with.
const VERSION_1: &[u8] = b"PROXY ";
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// Both addresses and both ports.
const TCP4_BYTES: usize = 12;
const TCP6_BYTES: usize = 36;
/// A TLV's kind and length.
const TLV_HEAD_BYTES: usize = 3;
/// A CRC-32C over the whole header, its own four bytes taken as zeros.
const TLV_CRC32C: u8 = 0x03;

/// A header that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its length: the client's own bytes follow.
    pub bytes: usize,
    /// The two ends of the client's connection. `None`: those of the connection itself count, because the balancer speaks
    /// for itself (`LOCAL`, a health check), or for a client whose address is none of TCP.
    pub ends: Option<Ends>,
}

/// The two ends of the connection that a balancer has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The client's.
    pub source: SocketAddr,
    /// The one that the client has connected to.
    pub destination: SocketAddr,
}

/// Reads a header off the front of `bytes`. `Ok(None)`: more bytes are needed.
///
/// ```
/// use ringpost_protocol::proxy;
/// let (client, port) = ("192.0.2.7:40000".parse()?, "198.51.100.1:8888".parse()?);
/// let mut bytes = Vec::new();
/// proxy::encode(client, port, &mut bytes);
/// assert_eq!(proxy::decode(&bytes[..20])?, None);
/// let header = proxy::decode(&bytes)?.expect("it is whole");
/// assert_eq!((header.bytes, header.ends.map(|ends| ends.source)), (bytes.len(), Some(client)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Code::Malformed`] as soon as the bytes can be no header of version 2, or contradict themselves;
/// [`Code::Unsupported`] for version 1; [`Code::TooLarge`] for a claim beyond [`MAX_HEADER_BYTES`].
pub fn decode(bytes: &[u8]) -> Result<Option<Header>, WireError> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(no_header(bytes));
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    if command != LOCAL && command != PROXY {
        return Err(WireError::malformed(format!(
            "a PROXY header of version and command {command:#04x}: version 2 has 0x20 (LOCAL) and 0x21 (PROXY)"
        )));
    }
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_HEADER_BYTES {
        let message = format!("a PROXY header of {length} bytes: {MAX_HEADER_BYTES} are allowed");
        return Err(WireError::new(Code::TooLarge, message));
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    // Of a LOCAL header nothing counts, not even what family it says: the specification wants it thrown away.
    let ends = if command == PROXY { ends(family, header)? } else { None };
    Ok(Some(Header { bytes: length, ends }))
}

/// Whether a header, of either version, begins here, or what can be nothing else. The first four bytes of a signature do
/// not tell: they are white space, which may stand in front of a dialect.
pub fn is_begun(bytes: &[u8]) -> bool {
    let known = bytes.len().min(SIGNATURE.len());
    bytes.starts_with(VERSION_1) || (known > 4 && bytes[..known] == SIGNATURE[..known])
}

fn no_header(bytes: &[u8]) -> WireError {
    if bytes.starts_with(VERSION_1) {
        return WireError::new(
            Code::Unsupported,
            "a PROXY header of version 1: have the balancer send version 2 (HAProxy: send-proxy-v2)",
        );
    }
    WireError::malformed(
        "there is no PROXY header, and the server takes nobody from this network without one of version 2 (its \
         --proxy-from): have the balancer send it (`ringpost balance --proxy-v2`; HAProxy: send-proxy-v2), connect from \
         elsewhere, or take the network out of --proxy-from",
    )
}

/// What the part behind the fixed one says.
fn ends(family: u8, header: &[u8]) -> Result<Option<Ends>, WireError> {
    let addresses = match family {
        TCP4 => TCP4_BYTES,
        TCP6 => TCP6_BYTES,
        // Unspecified; UDP over both families; both protocols of Unix sockets. These are allowed, and say nothing here.
        0x00 => 0,
        0x12 => TCP4_BYTES,
        0x22 => TCP6_BYTES,
        0x31 | 0x32 => 216,
        _ => {
            let message = format!("a PROXY header of family and protocol {family:#04x}: there is none");
            return Err(WireError::malformed(message));
        }
    };
    let Some((addresses, tlvs)) = header[FIXED_BYTES..].split_at_checked(addresses) else {
        let (is, needs) = (header.len(), FIXED_BYTES + addresses);
        let message =
            format!("a PROXY header of {is} bytes: its addresses ({family:#04x}) alone need {needs}");
        return Err(WireError::malformed(message));
    };
    // What follows an unspecified family is of no known form: there is nothing to look for a checksum in.
    if family != 0 {
        check_tlvs(header, tlvs)?;
    }
    Ok(match family {
        TCP4 => addresses.first_chunk().map(tcp4),
        TCP6 => addresses.first_chunk().map(tcp6),
        _ => None,
    })
}

fn tcp4(&[a, b, c, d, e, f, g, h, source_high, source_low, high, low]: &[u8; TCP4_BYTES]) -> Ends {
    Ends {
        source: (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([source_high, source_low])).into(),
        destination: (Ipv4Addr::new(e, f, g, h), u16::from_be_bytes([high, low])).into(),
    }
}

fn tcp6(bytes: &[u8; TCP6_BYTES]) -> Ends {
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&bytes[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    Ends { source: (address(0), port(32)).into(), destination: (address(16), port(34)).into() }
}

/// Steps over what may follow the addresses; a checksum among it must be right.
fn check_tlvs(header: &[u8], mut tlvs: &[u8]) -> Result<(), WireError> {
    while !tlvs.is_empty() {
        let at = header.len() - tlvs.len();
        let Some((&[kind, high, low], rest)) = tlvs.split_first_chunk::<TLV_HEAD_BYTES>() else {
            return Err(WireError::malformed(format!("a PROXY header ends within the TLV at byte {at}")));
        };
        let Some((value, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low]))) else {
            return Err(WireError::malformed(format!("a PROXY header ends within the TLV at byte {at}")));
        };
        if kind == TLV_CRC32C {
            let said = value.try_into().map(u32::from_be_bytes).map_err(|_| {
                WireError::malformed(format!("the CRC-32C at byte {at} of a PROXY header has not 4 bytes"))
            })?;
            let value_at = at + TLV_HEAD_BYTES;
            let is = checksum(header, value_at);
            if said != is {
                return Err(WireError::malformed(format!(
                    "a PROXY header's CRC-32C is {is:08x}, and it says {said:08x}: it was changed on its way"
                )));
            }
        }
        tlvs = rest;
    }
    Ok(())
}

/// The CRC-32C of a header whose checksum stands at `at`, and counts as zeros.
fn checksum(header: &[u8], at: usize) -> u32 {
    let crc = crc32c(u32::MAX, &header[..at]);
    let crc = crc32c(crc, &[0; 4]);
    !crc32c(crc, &header[at + 4..])
}

/// Goes on with a CRC-32C (Castagnoli), bit by bit: it is asked for a hundred bytes, once in a connection.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    const REVERSED: u32 = 0x82F6_3B78;
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (REVERSED & (crc & 1).wrapping_neg()))
    })
}

/// Appends the header for a client at `source` that has connected to `destination`, with a checksum.
///
/// Where one address is of IPv4 and the other of IPv6, both are written as IPv6, the first mapped (`::ffff:…`).
pub fn encode(source: SocketAddr, destination: SocketAddr, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    let (family, addresses) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (TCP4, TCP4_BYTES),
        _ => (TCP6, TCP6_BYTES),
    };
    put_fixed(PROXY, family, addresses + TLV_HEAD_BYTES + 4, buffer);
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source.ip(), destination.ip()) {
        buffer.extend_from_slice(&source.octets());
        buffer.extend_from_slice(&destination.octets());
    } else {
        buffer.extend_from_slice(&in_v6(source.ip()).octets());
        buffer.extend_from_slice(&in_v6(destination.ip()).octets());
    }
    buffer.extend_from_slice(&source.port().to_be_bytes());
    buffer.extend_from_slice(&destination.port().to_be_bytes());
    buffer.extend_from_slice(&[TLV_CRC32C, 0, 4, 0, 0, 0, 0]);
    let at = buffer.len() - 4;
    let crc = checksum(&buffer[start..], at - start);
    buffer[at..].copy_from_slice(&crc.to_be_bytes());
}

/// Appends the header for a connection of the balancer's own, such as a health check (`LOCAL`).
pub fn encode_local(buffer: &mut Vec<u8>) {
    put_fixed(LOCAL, 0, 0, buffer);
}

fn put_fixed(command: u8, family: u8, rest_bytes: usize, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&SIGNATURE);
    buffer.extend_from_slice(&[command, family]);
    buffer.extend_from_slice(&(rest_bytes as u16).to_be_bytes());
}

fn in_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(source: &str, destination: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(source.parse().unwrap(), destination.parse().unwrap(), &mut bytes);
        bytes
    }

    fn source(bytes: &[u8]) -> Option<SocketAddr> {
        decode(bytes).unwrap().unwrap().ends.map(|ends| ends.source)
    }

    /// The checksum is the one that the specification means: the check value of CRC-32C.
    #[test]
    fn castagnoli() {
        assert_eq!(!crc32c(u32::MAX, b"123456789"), 0xE306_9283);
    }

    /// Addresses of mixed families are written as IPv6.
    #[test]
    fn mixed_families() {
        let bytes = encoded("192.0.2.7:1", "[2001:db8::1]:2");
        assert_eq!(source(&bytes), Some("[::ffff:192.0.2.7]:1".parse().unwrap()));
    }

    /// With a checksum, no byte that is changed, whichever and however, gives another address. Signature and addresses are
    /// never read with a change; of the others, some turn the header into one that says nothing, or that has no checksum.
    #[test]
    fn every_flip_is_seen() {
        for good in
            [encoded("192.0.2.7:40000", "198.51.100.1:8888"), encoded("[2001:db8::7]:1", "[2001:db8::1]:2")]
        {
            for at in 0..good.len() {
                for bits in 1..=u8::MAX {
                    let mut bad = good.clone();
                    bad[at] ^= bits;
                    let read = decode(&bad);
                    if let Ok(Some(Header { ends: Some(ends), .. })) = read {
                        assert_eq!(Some(ends.source), source(&good), "byte {at} ^ {bits:#04x}");
                    }
                    let is_guarded = at < 12 || (FIXED_BYTES..good.len() - 7).contains(&at);
                    assert!(!is_guarded || read.is_err(), "byte {at} ^ {bits:#04x} is read as {read:?}");
                }
            }
        }
    }

    /// TLVs are stepped over whatever they are, and must end where the header ends.
    #[test]
    fn tlvs() {
        let mut bytes = encoded("192.0.2.7:40000", "198.51.100.1:8888");
        bytes.truncate(FIXED_BYTES + TCP4_BYTES);
        for (tlvs, good) in [
            (&[0x05, 0, 2, 1, 2, 0xEE, 0, 0][..], true),
            (&[0x04, 0, 1], false),
            (&[0x04, 0], false),
            (&[TLV_CRC32C, 0, 3, 1, 2, 3], false),
        ] {
            let mut header = bytes.clone();
            header.extend_from_slice(tlvs);
            let length = (header.len() - FIXED_BYTES) as u16;
            header[14..16].copy_from_slice(&length.to_be_bytes());
            assert_eq!(decode(&header).is_ok(), good, "{tlvs:?}");
        }
    }

    /// Who comes without a header is told where to set it, also who speaks version 1; a claim beyond the bound is refused
    /// before its bytes are there.
    #[test]
    fn refusals() {
        let error = decode(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n").unwrap_err();
        assert!(error.code == Code::Unsupported && error.message.contains("send-proxy-v2"), "{error}");
        for bytes in [&b"{\"action\":\"ping\"}"[..], b"\xB5RP1", b"\r\n\r\n\0\r\nQUIT\r"] {
            let error = decode(bytes).unwrap_err();
            assert!(error.code == Code::Malformed && error.message.contains("--proxy-from"), "{error}");
        }
        let mut long = SIGNATURE.to_vec();
        long.extend_from_slice(&[PROXY, TCP4, 0x10, 0x00]);
        assert_eq!(decode(&long).unwrap_err().code, Code::TooLarge);
    }

    fn address() -> impl Strategy<Value = SocketAddr> {
        let v4 = any::<([u8; 4], u16)>().prop_map(|(octets, port)| (Ipv4Addr::from(octets), port).into());
        let v6 = any::<([u8; 16], u16)>().prop_map(|(octets, port)| (Ipv6Addr::from(octets), port).into());
        prop_oneof![v4, v6]
    }

    proptest! {
        /// What is written is read, however its bytes arrive, and not one byte of the client's is taken with it.
        #[test]
        fn any_addresses(source in address(), destination in address(), behind in any::<Vec<u8>>()) {
            let mut bytes = Vec::new();
            encode(source, destination, &mut bytes);
            let length = bytes.len();
            bytes.extend_from_slice(&behind);
            for cut in 0..length {
                prop_assert_eq!(decode(&bytes[..cut]), Ok(None));
            }
            let header = decode(&bytes).unwrap().unwrap();
            prop_assert_eq!(header.bytes, length);
            let ends = header.ends.unwrap();
            prop_assert_eq!(ends.source.ip().to_canonical(), source.ip().to_canonical());
            prop_assert_eq!(ends.destination.ip().to_canonical(), destination.ip().to_canonical());
            prop_assert_eq!((ends.source.port(), ends.destination.port()), (source.port(), destination.port()));
        }

        /// Whatever comes, nothing panics; and what is read is no longer than what came.
        #[test]
        fn any_bytes(rest in proptest::collection::vec(any::<u8>(), 0..300), signed in any::<bool>()) {
            let mut bytes = if signed { SIGNATURE.to_vec() } else { Vec::new() };
            bytes.extend_from_slice(&rest);
            if let Ok(Some(header)) = decode(&bytes) {
                prop_assert!(header.bytes <= bytes.len());
            }
        }
    }
}
