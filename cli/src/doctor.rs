//! `ringpost doctor`: whether this machine has what a server needs, and what to do where it has not.

use clap::Args;
use ringpost::ErrorKind;
use ringpost_io::{
    probe::{self, Probe},
    ring::RingConfig,
};
use ringpost_server::LEAST_OPEN_FILES;
use serde::Serialize;

use crate::{
    client::{self, ServerArgs},
    exit::{Failure, NOT_USABLE, Outcome},
    output,
};

/// Fewer open files than this are soon used up.
const FEW_DESCRIPTORS: u64 = 4096;
/// Where kernels count rings against the limit of locked memory, one ring needs about as much.
const RING_BYTES: u64 = 1 << 20;

/// Check whether this machine can run a server, with a remedy for what is missing
///
/// Ends with 0 if a server can run here, with 71 if not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  ringpost doctor\n  ringpost doctor --server 127.0.0.1:8888 --json")]
pub(crate) struct DoctorArgs {
    /// Print a JSON object for each check
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// Good.
    Ok,
    /// It works, but not as well as it could.
    Warn,
    /// A server cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, finding: finding.into(), remedy: None }
    }

    fn not_ok(
        name: &'static str,
        level: Level,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, level, finding: finding.into(), remedy: Some(remedy.into()) }
    }
}

/// Runs the command.
pub(crate) fn run(args: &DoctorArgs, server: &ServerArgs) -> Outcome {
    let mut checks = of_machine(&probe::probe(&RingConfig::default()));
    let asked = client::block_on(async { Ok(of_server(server).await) });
    checks
        .push(asked.unwrap_or_else(|failure| {
            Check::not_ok("server", Level::Warn, "not asked", failure.to_string())
        }));
    for check in &checks {
        if args.json {
            let text = serde_json::to_vec(check).map_err(|error| Failure::system("JSON", &error.into()))?;
            output::line(&text)?;
        } else {
            output::line(for_people(check).as_bytes())?;
        }
    }
    if checks.iter().any(|check| check.level == Level::Fail) {
        return Err(Failure::new(
            NOT_USABLE,
            "a server cannot run here: see the lines marked `fail` for what to do",
        ));
    }
    Ok(())
}

fn for_people(check: &Check) -> String {
    let level = match check.level {
        Level::Ok => "ok  ",
        Level::Warn => "warn",
        Level::Fail => "fail",
    };
    let line = format!("{level}  {:<15} {}", check.name, check.finding);
    match &check.remedy {
        Some(remedy) => format!("{line}\n      {:<15} → {remedy}", ""),
        None => line,
    }
}

fn of_machine(probe: &Probe) -> Vec<Check> {
    vec![kernel(&probe.kernel), io_uring(probe), sysctl(probe), open_files(probe), locked_memory(probe)]
}

fn kernel(release: &str) -> Check {
    let finding = format!("Linux {release}");
    match version(release) {
        Some(version) if version < (5, 11) => {
            Check::not_ok("kernel", Level::Fail, finding, "install Linux 5.11 or newer; 6.0 or newer is best")
        }
        Some(version) if version < (6, 0) => {
            let remedy = "Linux 6.0 or newer spares the server some processor time";
            Check::not_ok("kernel", Level::Warn, finding, remedy)
        }
        Some(_) => Check::ok("kernel", finding),
        None => {
            Check::not_ok("kernel", Level::Warn, finding, "its version cannot be read; 6.0 or newer is best")
        }
    }
}

/// Major and minor of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn io_uring(probe: &Probe) -> Check {
    match &probe.ring {
        Ok(flags) if flags.coop_taskrun && flags.single_issuer => {
            Check::ok("io_uring", "a ring can be set up, with all flags that the server wants")
        }
        Ok(flags) => {
            let missing = match (flags.coop_taskrun, flags.single_issuer) {
                (false, false) => "coop_taskrun and single_issuer",
                (false, true) => "coop_taskrun",
                (true, _) => "single_issuer",
            };
            let finding = format!("a ring can be set up, without {missing}");
            Check::not_ok("io_uring", Level::Warn, finding, "Linux 6.0 or newer has them")
        }
        // A ring's error says by itself what to do.
        Err(error) => Check::not_ok("io_uring", Level::Fail, "no ring can be set up", error.to_string()),
    }
}

fn sysctl(probe: &Probe) -> Check {
    const NAME: &str = "io_uring sysctl";
    let Some(value) = probe.io_uring_disabled else {
        return Check::ok(NAME, "this kernel has no kernel.io_uring_disabled, which Linux 6.6 brought");
    };
    let finding = format!("kernel.io_uring_disabled = {value}");
    // What the setting means for this process is known best from the ring itself.
    let level = match (value, probe.ring.is_ok()) {
        (0, _) => return Check::ok(NAME, finding),
        (_, true) => Level::Warn,
        (_, false) => Level::Fail,
    };
    let remedy = match value {
        1 => {
            "only members of the group in kernel.io_uring_group, and the privileged, may use it: run the server as one \
             of them, or set it to 0"
        }
        _ => {
            "nobody may use it: `sysctl -w kernel.io_uring_disabled=0`, and a file in /etc/sysctl.d to keep it so"
        }
    };
    Check::not_ok(NAME, level, finding, remedy)
}

fn open_files(probe: &Probe) -> Check {
    let limit = probe.descriptors;
    let finding = match (amount(limit.soft), amount(limit.hard)) {
        (soft, hard) if soft == hard => format!("{soft} open files"),
        (soft, hard) => format!("{soft} open files, which the server raises to {hard}"),
    };
    if limit.hard < LEAST_OPEN_FILES {
        let remedy = format!(
            "a server needs at least {LEAST_OPEN_FILES}: raise it with `ulimit -Hn`, or LimitNOFILE= in a systemd unit"
        );
        return Check::not_ok("open files", Level::Fail, finding, remedy);
    }
    if limit.hard < FEW_DESCRIPTORS {
        let remedy =
            "each connection needs one: raise it with `ulimit -Hn`, or LimitNOFILE= in a systemd unit";
        return Check::not_ok("open files", Level::Warn, finding, remedy);
    }
    Check::ok("open files", finding)
}

fn locked_memory(probe: &Probe) -> Check {
    let limit = probe.locked_memory;
    let counted = version(&probe.kernel).is_some_and(|version| version < (5, 12));
    let finding = format!("{} bytes", amount(limit.soft));
    if counted && limit.soft < RING_BYTES {
        let remedy = "this kernel counts rings against it: raise it with `ulimit -l`, or LimitMEMLOCK= in a systemd unit";
        return Check::not_ok("locked memory", Level::Warn, finding, remedy);
    }
    let meaning = if counted { "enough for a ring" } else { "rings are not counted against it" };
    Check::ok("locked memory", format!("{finding}; {meaning}"))
}

fn amount(limit: u64) -> String {
    if limit == u64::MAX { "unlimited".to_owned() } else { limit.to_string() }
}

/// Whether a server answers. Without one this machine may be just as good, so that it is never more than a warning.
async fn of_server(server: &ServerArgs) -> Check {
    let address = server.address();
    match server.ask("$sys.stats", "null").await {
        Ok(_) if server.secure_key().is_ok_and(|key| key.is_some()) => {
            Check::ok("server", format!("one answers at {address}, with the same secure key"))
        }
        Ok(_) => Check::ok("server", format!("one answers at {address}, in clear: there is no secure key")),
        Err(error) if error.kind() == ErrorKind::Unauthorized => {
            let remedy = "give the key that the server has: --secure-key-file FILE or RINGPOST_SECURE_KEY";
            Check::not_ok("server", Level::Warn, format!("one answers at {address}: {error}"), remedy)
        }
        Err(error) => {
            let remedy = "start one with `ringpost serve`, or say where it is with --server HOST:PORT";
            Check::not_ok("server", Level::Warn, format!("none answers at {address}: {error}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpost_io::{
        descriptors::Limit,
        ring::{RingError, RingFlags},
    };

    use super::*;

    fn good() -> Probe {
        Probe {
            kernel: "6.12.3-amd64".to_owned(),
            ring: Ok(RingFlags { coop_taskrun: true, single_issuer: true }),
            io_uring_disabled: Some(0),
            descriptors: Limit { soft: 1024, hard: 1 << 20 },
            locked_memory: Limit { soft: 65_536, hard: 65_536 },
        }
    }

    fn levels(probe: &Probe) -> Vec<Level> {
        of_machine(probe).iter().map(|check| check.level).collect()
    }

    /// A machine that has everything gets no advice.
    #[test]
    fn good_machine() {
        assert_eq!(levels(&good()), [Level::Ok; 5]);
        assert!(of_machine(&good()).iter().all(|check| check.remedy.is_none()));
    }

    /// Whatever keeps a server from running is marked so and comes with a remedy.
    #[test]
    fn forbidden_ring() {
        let probe =
            Probe { ring: Err(RingError::Disabled { sysctl: 2 }), io_uring_disabled: Some(2), ..good() };
        let checks = of_machine(&probe);
        let failed: Vec<_> = checks.iter().filter(|check| check.level == Level::Fail).collect();
        assert_eq!(
            failed.iter().map(|check| check.name).collect::<Vec<_>>(),
            ["io_uring", "io_uring sysctl"]
        );
        assert!(failed.iter().all(|check| check.remedy.as_ref().unwrap().contains("io_uring_disabled=0")));
        assert!(for_people(failed[0]).starts_with("fail  io_uring"));
    }

    /// An old kernel and low limits still run a server, with advice.
    #[test]
    fn tight_machine() {
        let probe = Probe {
            kernel: "5.11.0".to_owned(),
            ring: Ok(RingFlags { coop_taskrun: false, single_issuer: false }),
            io_uring_disabled: None,
            descriptors: Limit { soft: 256, hard: 256 },
            ..good()
        };
        assert_eq!(levels(&probe), [Level::Warn, Level::Warn, Level::Ok, Level::Warn, Level::Warn]);
        let probe = Probe { descriptors: Limit { soft: 8, hard: 8 }, ..good() };
        assert_eq!(open_files(&probe).level, Level::Fail);
    }

    /// Releases of distributions are read; what is none is not taken for one.
    #[test]
    fn versions() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("next"), None);
    }
}
