//! The client programs that docs/PROTOCOL.md shows, run against a server as a reader would run them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{path::Path, process::Command};

use common::{server, wait_until_quiet};

/// Each example ends with 0 and leaves nothing behind on the server. They want Python 3 and nothing else.
#[test]
fn protocol_examples() {
    let server = server();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/examples");
    for name in ["json_client.py", "binary_client.py"] {
        let address = server.address();
        let output = Command::new("python3")
            .arg(folder.join(name))
            .args([address.ip().to_string(), address.port().to_string()])
            .output()
            .expect("python3 is there");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {}\n{out}{err}", output.status);
        wait_until_quiet(address, 1);
    }
}
