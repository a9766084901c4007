//! Secure keys that are read again while the server runs: whoever asks for it waits for nothing, and hears of it in the log.

use std::{rc::Rc, sync::Arc};

use ringpost_io::event::Event;
use tokio::sync::oneshot;

use crate::{
    Config, ConfigError, KeysError,
    keys::{KeySources, Keyring},
    shard::Shard,
    tasks::CrashWithMe,
};

/// Says what the configuration is now, or what is wrong with it.
pub(crate) type Reload = Arc<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Why the keys stay as they were.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{0}")]
    Unusable(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// Its listeners are secure or plain from the start.
    #[error("whether a server has keys at all is settled when it starts: restart it")]
    OtherKind,
}

/// What reading again has come to.
#[derive(Debug)]
enum Read {
    Keys {
        keys: Keyring,
        /// The configuration has changed in something that only a restart takes over.
        more: bool,
    },
    /// No file is named, and nothing has changed.
    Nothing,
}

/// Reads the keys again each time that it is wanted, one time after the other. It is a task of its own, so that the signal to
/// leave is heard meanwhile: a passphrase takes a moment, and a file may be a pipe that nobody writes.
pub(crate) async fn keep_keys(shard: Rc<Shard>, wanted: Rc<Event>, began: Config, reload: Reload) {
    let _crash = CrashWithMe(shard.clone());
    let began = Arc::new(began);
    loop {
        wanted.wait().await;
        read_again(&shard, began.clone(), reload.clone()).await;
    }
}

/// On a thread of its own: to hash a passphrase takes so long that others would feel it.
async fn read_again(shard: &Shard, began: Arc<Config>, reload: Reload) {
    let (done, read) = oneshot::channel();
    let started = std::thread::Builder::new().name("ringpost-keys".into()).spawn(move || {
        // Nobody waits for it any more when the server has ended meanwhile.
        done.send(read_now(&began, &*reload)).ok();
    });
    if let Err(error) = started {
        return tracing::error!(%error, "the secure keys stay as they were: no thread to read them");
    }
    match read.await {
        Ok(Ok(Read::Keys { keys, more })) => {
            tracing::info!(keys = keys.describe(), "the secure keys were read again");
            if more {
                tracing::warn!("only secure keys are read again: other changes need a restart");
            }
            shard.change_keys(keys);
        }
        Ok(Ok(Read::Nothing)) => {
            tracing::info!("there are no files with secure keys, and nothing else is read again");
        }
        Ok(Err(error)) => tracing::error!(%error, "the secure keys stay as they were"),
        Err(_) => tracing::error!("the secure keys stay as they were: the thread that read them panicked"),
    }
}

fn read_now(began: &Config, reload: &dyn Fn() -> Result<Config, String>) -> Result<Read, ReloadError> {
    let config = reload().map_err(ReloadError::Unusable)?;
    let more = !config.differs_only_in_keys(began);
    let sources = KeySources::of(&config);
    if !sources.has_files() && sources == KeySources::of(began) && !more {
        return Ok(Read::Nothing);
    }
    if config.has_keys() != began.has_keys() {
        return Err(ReloadError::OtherKind);
    }
    config.validate()?;
    Ok(Read::Keys { keys: sources.read()?, more })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use ringpost_protocol::secure::SecureKey;

    use super::*;

    fn named(files: &[&Path]) -> String {
        files.iter().map(|file| format!("[[key]]\nfile = {file:?}\n")).collect()
    }

    /// What the configuration names now is read; what only a restart takes over is told apart; and a server does not become
    /// one with keys, or one without.
    #[test]
    fn what_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let files = [1, 2].map(|byte| {
            let path = folder.path().join(format!("key-{byte}"));
            fs::write(&path, SecureKey::text_of(&[byte; 32]).as_bytes()).unwrap();
            path
        });
        let [one, two] = files.each_ref().map(|file| file.as_path());
        let read = |began: &str, now: &str| {
            let began = Config::from_toml_text(began).unwrap();
            read_now(&began, &|| Config::from_toml_text(now).map_err(|error| error.to_string()))
        };
        let id = SecureKey::from_bytes([2; 32]).id();
        match read(&named(&[one]), &named(&[one, two])) {
            Ok(Read::Keys { keys, more: false }) => assert!(keys.find(id).is_some()),
            other => panic!("{other:?}"),
        }
        match read(&named(&[one, two]), &format!("id = \"b\"\n{}", named(&[one]))) {
            Ok(Read::Keys { keys, more: true }) => assert!(keys.find(id).is_none()),
            other => panic!("{other:?}"),
        }
        assert!(matches!(read("", ""), Ok(Read::Nothing)));
        assert!(matches!(read("", &named(&[one])), Err(ReloadError::OtherKind)));
        assert!(matches!(read(&named(&[one]), ""), Err(ReloadError::OtherKind)));
        assert!(matches!(read(&named(&[one]), "id = 1"), Err(ReloadError::Unusable(_))));
        assert!(matches!(read(&named(&[one]), &named(&[one, one])), Err(ReloadError::Keys(_))));
    }
}
