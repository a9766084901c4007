//! The balancer as a process of its own, between processes that are killed, stopped, starved and reconfigured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test stops at what is not right"
)]

mod common;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use common::{
    PATIENCE,
    process::{BalancerProcess, ServerProcess, command, crowd, disperse, echo},
    run, until,
};
use ringpost::{Client, HandlerError, Reply, Request, SecureKey};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit, setrlimit};

/// What balancers are told here: probes often, and an instance that comes back has its share at once.
const QUICK: [&str; 4] = ["--health-interval", "50ms", "--slow-start", "0"];

static TURN: Mutex<()> = Mutex::new(());

/// Those that take many descriptors take turns.
fn room_for(wanted: usize) -> (MutexGuard<'static, ()>, usize) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    // Two of each session in the balancer, and some for itself and its pipes.
    let most = limit.maximum.map_or(usize::MAX, |maximum| (maximum as usize).saturating_sub(1000) / 2);
    let room = wanted.min(most);
    if room < wanted {
        eprintln!("{room} sessions instead of {wanted}: `ulimit -Hn` is {:?}", limit.maximum);
    }
    (turn, room)
}

fn balancer(instances: &[SocketAddr], more: &[&str]) -> BalancerProcess {
    let instances: Vec<_> = instances.iter().map(ToString::to_string).collect();
    let mut args = QUICK.to_vec();
    instances.iter().for_each(|instance| args.extend(["--instance", instance]));
    args.extend(more);
    BalancerProcess::start(&args)
}

fn active(balancer: &BalancerProcess, place: usize) -> u64 {
    balancer.stats()["instances"][place]["active"].as_u64().unwrap()
}

fn until_state(balancer: &BalancerProcess, place: usize, state: &str) {
    until(&format!("instance {place} is {state}"), || balancer.stats()["instances"][place]["state"] == state);
}

/// Waits until nothing is left of the sessions, and no more descriptors are open than before there were any.
fn until_returned(balancer: &BalancerProcess, descriptors: usize) {
    until("all descriptors are back", || {
        let stats = balancer.stats();
        let idle_pipes = 2 * stats["pipesIdle"].as_u64().unwrap() as usize;
        // One for the request itself, which may not be closed yet.
        stats["connections"] == 0 && balancer.descriptors() <= descriptors + idle_pipes + 1
    });
}

/// One word there and back.
fn word(address: SocketAddr) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"word")?;
    socket.read_exact(&mut [0; 4])
}

/// Five thousand sessions at once, with clients, services and balancer in processes of their own: every byte comes back;
/// half of the clients are then killed, and nothing is left of them.
#[test]
fn five_thousand_sessions() {
    let (_turn, count) = room_for(5000);
    let (_first, a) = echo();
    let (_second, b) = echo();
    let balancer = balancer(&[a, b], &[]);
    word(balancer.address).unwrap();
    let descriptors = balancer.descriptors();
    let mut killed = crowd(balancer.address, count / 2, 2000);
    let stays = crowd(balancer.address, count - count / 2, 2000);
    assert_eq!((active(&balancer, 0) + active(&balancer, 1)) as usize, count);
    assert!(active(&balancer, 0).abs_diff(active(&balancer, 1)) <= 1, "they took turns");
    let resident = common::level::resident_kib(balancer.process.id());
    eprintln!("{count} sessions: the balancer has {resident} KiB, {} descriptors", balancer.descriptors());
    killed.kill();
    until("those who were killed are gone", || balancer.stats()["sessions"] == count - count / 2);
    assert_eq!(disperse(stays), 0);
    until_returned(&balancer, descriptors);
}

/// An instance that is killed takes its own sessions with it and no others; who connects then gets another one at once; when
/// it is back on its port, it has its share again.
#[test]
fn an_instance_is_killed() {
    let (_first, a) = echo();
    let mut second = ServerProcess::start(&[]);
    let b = second.address;
    let balancer = balancer(&[a, b], &[]);
    // The server answers no such bytes, but keeps who says nothing.
    let mut quiet: Vec<_> = (0..20).map(|_| TcpStream::connect(balancer.address).unwrap()).collect();
    until("they are spread", || active(&balancer, 0) == 10 && active(&balancer, 1) == 10);
    second.process.kill();
    quiet.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    until("its clients know", || {
        // Who is told the end goes.
        quiet.retain(|mut socket| !matches!(socket.read(&mut [0; 1]), Ok(0)));
        quiet.len() == 10
    });
    until("its sessions have ended", || active(&balancer, 1) == 0);
    assert_eq!(active(&balancer, 0), 10);
    for _ in 0..6 {
        word(balancer.address).unwrap();
    }
    until_state(&balancer, 1, "down");
    let _again = ServerProcess::at(b, &[]);
    until_state(&balancer, 1, "up");
    let more: Vec<_> = (0..10).map(|_| TcpStream::connect(balancer.address).unwrap()).collect();
    until("it has its share", || active(&balancer, 1) == 5);
    drop((quiet, more));
    until("all have gone", || balancer.stats()["sessions"] == 0);
}

/// A server that hangs is found out by a ping, though the system accepts connections for it, and gets none until it goes on.
#[test]
fn an_instance_hangs() {
    let servers = [ServerProcess::start(&[]), ServerProcess::start(&[])];
    let addresses = servers.each_ref().map(|server| server.address);
    let balancer =
        balancer(&addresses, &["--health", "ping", "--health-timeout", "200ms", "--cut-when-down"]);
    let ping = || {
        let mut socket = TcpStream::connect(balancer.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.write_all(b"{\"action\":\"ping\"}\n").unwrap();
        let mut answer = [0; 17];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"{\"action\":\"pong\"}");
        socket
    };
    let mut sockets = [ping(), ping()];
    servers[0].process.signal(Signal::STOP);
    until_state(&balancer, 0, "down");
    let cut = sockets.iter_mut().map(|socket| {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // The rest of the line, then the end; or nothing.
        let mut rest = [0; 8];
        let _ = socket.read(&mut rest);
        matches!(socket.read(&mut rest), Ok(0))
    });
    assert_eq!(
        cut.filter(|cut| *cut).count(),
        1,
        "the sessions of the one that hangs were cut, as was asked for"
    );
    for _ in 0..4 {
        ping();
    }
    servers[0].process.signal(Signal::CONT);
    until_state(&balancer, 0, "up");
    for _ in 0..4 {
        ping();
    }
}

/// A server with a key is known to live by pings without one, also behind a PROXY header; it counts and logs none of them as a
/// wrong key.
#[test]
fn a_keyed_server_is_pinged() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, SecureKey::text_of(&[3; 32]).as_bytes()).unwrap();
    let key = key.to_str().unwrap();
    let serve = ["--secure-key-file", key, "--log", "ringpost_server=debug"];
    let relayed = [&serve[..], &["--proxy-from", "127.0.0.0/8"]].concat();
    for (serve, more) in [(&serve[..], None), (&relayed[..], Some("--proxy-v2"))] {
        let server = ServerProcess::start(serve);
        let args: Vec<_> = ["--health", "ping", "--fall", "1"].into_iter().chain(more).collect();
        let balancer = balancer(&[server.address], &args);
        let connections = || server.process.log().matches("answered a ping, without a key").count();
        until("it was pinged", || connections() >= 5);
        let stats = balancer.stats();
        let instance = &stats["instances"][0];
        assert_eq!((&instance["state"], &instance["probeFailures"]), (&"up".into(), &0.into()), "{stats}");
        assert!(!server.process.log().contains("refused"), "{}", server.process.log());
    }
}

/// Instances that flags name cannot be read again, and SIGHUP does not say that they were; a balancer in front of itself does
/// not start.
#[test]
fn instances_of_flags() {
    let (_process, service) = echo();
    let balancer = balancer(&[service], &[]);
    balancer.process.signal(Signal::HUP);
    until("it says so", || balancer.process.logged("nothing was read again"));
    assert!(!balancer.process.logged("instances read again"));
    word(balancer.address).unwrap();
    let itself = command(&["balance", "--listen", "127.0.0.1:1", "--instance", "localhost:1"]);
    assert_eq!(itself.code(), Some(78));
}

/// Descriptors run out, first for pipes, then for more sessions: those that run lose nothing, others wait until there is
/// room, and the balancer stays.
#[test]
fn descriptors_run_out() {
    let (_service, a) = echo();
    let balancer = balancer(&[a], &["--splicing", "always", "--max-pipes", "100"]);
    let runs = crowd(balancer.address, 50, 20);
    // Each of these pins a pipe on both ways as soon as it talks and does not listen.
    let mut stuck: Vec<_> = (0..20).map(|_| TcpStream::connect(balancer.address).unwrap()).collect();
    until("they are there", || balancer.stats()["sessions"] == 70);
    let own = Pid::from_raw(balancer.process.id().cast_signed());
    let limit = |limit| prlimit(own, Resource::Nofile, limit).unwrap();
    let few = Some(balancer.descriptors() as u64 + 6);
    let before = limit(Rlimit { current: few, maximum: getrlimit(Resource::Nofile).maximum });
    stuck.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    // What it says of itself takes a descriptor, too: until there are some again, only its log can be asked.
    until("a pipe could not be had", || {
        // What is on its way and in sockets is much, and a pipe is held only by what is stuck behind that.
        for socket in &mut stuck {
            while socket.write(&[0; 1 << 16]).is_ok() {}
        }
        balancer.process.logged("no pipe to splice through: bytes are copied")
    });
    // More than there is room for: they wait in the backlog, or are refused.
    let waiting: Vec<_> = (0..20).map(|_| TcpStream::connect(balancer.address).unwrap()).collect();
    until("some have to wait", || {
        balancer.process.logged("new connections have to wait")
            || balancer.process.logged("a client is refused")
    });
    limit(before);
    drop((waiting, stuck));
    until("there is room again", || word(balancer.address).is_ok());
    assert!(balancer.stats()["noPipe"].as_u64() > Some(0));
    assert_eq!(disperse(runs), 0, "none of those that ran has failed");
    until("all have gone", || balancer.stats()["connections"] == 0);
}

/// The file is read again and again under load, with instances that come, go and drain: no session is dropped, no byte lost.
#[test]
fn reload_under_load() {
    let services = [echo(), echo(), echo()];
    let [a, b, c] = services.each_ref().map(|(_, address)| *address);
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("balancer.toml");
    let write = |instances: &[String]| {
        let new = folder.path().join("new.toml");
        std::fs::write(&new, format!("drain-timeout = \"1h\"\ninstances = {instances:?}\n")).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write(&[a.to_string(), b.to_string()]);
    let mut args = vec!["--config", path.to_str().unwrap()];
    args.extend(QUICK);
    let balancer = BalancerProcess::start(&args);
    let crowd = crowd(balancer.address, 100, 5);
    let lists = [
        vec![a.to_string(), c.to_string()],
        vec![b.to_string()],
        vec![format!("{a},drain"), format!("{b},weight=5"), c.to_string()],
        vec![a.to_string(), b.to_string()],
    ];
    for (round, list) in lists.iter().cycle().take(20).enumerate() {
        write(list);
        balancer.process.signal(Signal::HUP);
        let names = || {
            let stats = balancer.stats();
            let instances = stats["instances"].as_array().unwrap();
            let there = instances.iter().filter(|instance| instance["state"] != "removed");
            there.map(|instance| instance["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        until(&format!("round {round} is read"), || {
            let mut names = names();
            let mut wanted: Vec<_> = list.iter().map(|it| it.split(',').next().unwrap().to_owned()).collect();
            names.sort();
            wanted.sort();
            names == wanted
        });
        word(balancer.address).unwrap();
    }
    std::fs::write(&path, "instances = 7").unwrap();
    balancer.process.signal(Signal::HUP);
    until("a bad file is told", || balancer.process.logged("everything stays as it was"));
    word(balancer.address).unwrap();
    assert_eq!(disperse(crowd), 0);
}

/// A client of ours behind the balancer whose server dies comes back to another one, and goes on.
#[test]
fn a_client_goes_on_with_another_server() {
    let mut servers = [ServerProcess::start(&[]), ServerProcess::start(&[])].map(Some);
    let addresses = servers.each_ref().map(|server| server.as_ref().unwrap().address);
    let balancer = balancer(&addresses, &["--health", "ping"]);
    run(async {
        let twice = |request: Request| async move {
            let number: u64 = request.json()?;
            Ok::<_, HandlerError>(Reply::json(&(2 * number))?)
        };
        // A handler at each server: they do not know of each other.
        let mut handlers = Vec::new();
        for address in addresses {
            let handler =
                Client::builder(address.to_string()).handler("twice", twice).connect().await.unwrap();
            handlers.push(handler);
        }
        let requester = Client::builder(balancer.address.to_string())
            .reconnect_interval(Duration::from_millis(20))
            .connect()
            .await
            .unwrap();
        let mut answered = 0;
        for round in 0..2 {
            for number in 0..50u64 {
                let reply =
                    requester.request("twice", &number).timeout(PATIENCE).max_attempts(5).await.unwrap();
                assert_eq!(reply.data::<u64>().unwrap(), 2 * number);
                answered += 1;
            }
            if round == 0 {
                let its = usize::from(active(&balancer, 0) == 0);
                servers[its].as_mut().unwrap().process.kill();
                until("it is noticed", || active(&balancer, its) == 0);
            }
        }
        assert_eq!(answered, 100);
        requester.close().await;
        for handler in handlers {
            // One of them has no server any more.
            drop(handler);
        }
    });
}

/// SIGTERM: nothing new, sessions may end; a second one: at once, with the signal's code.
#[test]
fn signals() {
    let (_service, a) = echo();
    let mut leaves = balancer(&[a], &["--drain-timeout", "1h"]);
    let mut socket = TcpStream::connect(leaves.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(b"word").unwrap();
    socket.read_exact(&mut [0; 4]).unwrap();
    leaves.process.signal(Signal::TERM);
    until("nobody is accepted", || TcpStream::connect(leaves.address).is_err());
    socket.write_all(b"word").unwrap();
    socket.read_exact(&mut [0; 4]).unwrap();
    drop(socket);
    assert!(leaves.process.wait().success());

    let mut leaves = balancer(&[a], &["--drain-timeout", "1h"]);
    let _socket = TcpStream::connect(leaves.address).unwrap();
    until("it is there", || leaves.stats()["sessions"] == 1);
    leaves.process.signal(Signal::TERM);
    until("it drains", || leaves.process.logged("draining"));
    leaves.process.signal(Signal::TERM);
    assert_eq!(leaves.process.wait().code(), Some(128 + 15));
}
