//! Reads the vectors' files. `vectors/README.md` describes their form.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ringpost_protocol::Code;
use serde_json::Value;

/// Which side sends a vector's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sender {
    Client,
    Server,
}

impl Sender {
    /// What the names of its vectors begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Client => "client-",
            Self::Server => "server-",
        }
    }
}

/// One vector of the binary dialect: `NAME.hex` and `NAME.json`.
#[derive(Debug)]
pub(crate) struct Vector {
    pub(crate) name: String,
    /// The `.hex` file as it is.
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) sender: Sender,
    pub(crate) description: Value,
}

impl Vector {
    /// The error that ends the connection, if that is what the vector shows.
    pub(crate) fn error(&self) -> Option<Code> {
        let text = self.description["error"].as_str()?;
        Some(code(text).unwrap_or_else(|| panic!("{}: there is no code `{text}`", self.name)))
    }

    /// Whether these bytes are understood but never written by version 1.
    pub(crate) fn is_decode_only(&self) -> bool {
        self.description["decodeOnly"] == true
    }

    /// Whether it is a preface rather than a frame.
    pub(crate) fn is_preface(&self) -> bool {
        self.name.contains("-preface")
    }
}

/// One vector of a PROXY header: `NAME.hex` and `NAME.json`.
#[derive(Debug)]
pub(crate) struct ProxyVector {
    pub(crate) name: String,
    /// The `.hex` file as it is.
    pub(crate) text: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) description: Value,
}

/// The code of this text.
pub(crate) fn code(text: &str) -> Option<Code> {
    Code::ALL.iter().copied().find(|code| code.text() == text)
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All vectors of the binary dialect, in the order of their names.
pub(crate) fn binary_vectors() -> Vec<Vector> {
    let folder = vectors().join("binary");
    let vectors: Vec<_> = names(&folder, "hex").iter().map(|name| binary_vector(&folder, name)).collect();
    assert_eq!(vectors.len(), names(&folder, "json").len(), "each .hex file has its .json file");
    vectors
}

/// All vectors of PROXY headers, in the order of their names.
pub(crate) fn proxy_vectors() -> Vec<ProxyVector> {
    let folder = vectors().join("proxy");
    let read = |name: String| {
        let text = fs::read_to_string(folder.join(&name).with_extension("hex")).unwrap();
        let bytes = unhex(&text).unwrap_or_else(|| panic!("{name}.hex: not hexadecimal"));
        let description = json(&folder.join(&name).with_extension("json"));
        ProxyVector { name, text, bytes, description }
    };
    names(&folder, "hex").into_iter().map(read).collect()
}

/// The name of every vector of the JSON dialect, and what it says on the wire.
pub(crate) fn json_vectors() -> Vec<(String, Sender, String)> {
    let folder = vectors().join("json");
    let read = |name: &String| {
        let vector = json(&folder.join(name).with_extension("json"));
        let (sender, key) = match vector.get("client") {
            Some(_) => (Sender::Client, "client"),
            None => (Sender::Server, "bytes"),
        };
        Some((name.clone(), sender, vector[key].as_str()?.to_owned()))
    };
    names(&folder, "json").iter().filter_map(read).collect()
}

fn binary_vector(folder: &Path, name: &str) -> Vector {
    let path = folder.join(name);
    let text = fs::read_to_string(path.with_extension("hex")).unwrap();
    let bytes = unhex(&text).unwrap_or_else(|| panic!("{name}.hex: not hexadecimal"));
    let description = json(&path.with_extension("json"));
    let sender = match description["from"].as_str() {
        Some("client") => Sender::Client,
        Some("server") => Sender::Server,
        from => panic!("{name}.json: from {from:?}"),
    };
    Vector { name: name.to_owned(), text, bytes, sender, description }
}

/// Two digits a byte; from `#` on a line is a comment; white space means nothing.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
    let digits: String = lines.flat_map(str::split_ascii_whitespace).collect();
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of the files with this extension, sorted.
fn names(folder: &Path, extension: &str) -> Vec<String> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort_unstable();
    names
}
