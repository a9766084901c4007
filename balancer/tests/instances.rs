//! Instances that come and go: who gets connections, and what clients notice of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at what is not right")]

mod common;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use common::{PATIENCE, Service, ask, config, connect, echo, name, start, state, stats, until, until_quiet};
use ringpost_balancer::{Choice, Health, Instance, WhenDown};
use ringpost_protocol::proxy;

/// An address that nobody listens on, for as long as the socket is there.
fn nobody() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// Connections take turns over the instances.
#[test]
fn round_robin() {
    let services = [Service::named("a"), Service::named("b"), Service::named("c")];
    let balancer = start(config(&services.each_ref().map(|service| service.address)));
    let names: Vec<_> = (0..6).map(|_| name(&mut connect(balancer.address()))).collect();
    assert_eq!(names[..3], names[3..]);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3);
}

/// A client is not told that an instance refused it: it gets another one; the instance is soon asked no more.
#[test]
fn refused_connections_go_elsewhere() {
    let service = Service::echo();
    let (_nobody, gone) = nobody();
    let mut settings = config(&[gone, service.address]);
    settings.health = Health::Off;
    settings.health_interval = Duration::from_secs(60);
    let balancer = start(settings);
    for _ in 0..10 {
        let mut socket = connect(balancer.address());
        socket.write_all(b"x").unwrap();
        socket.read_exact(&mut [0; 1]).unwrap();
    }
    let stats = stats(&balancer);
    assert_eq!(stats["instances"][0]["connectFailures"], 3, "then it counts as down");
    assert_eq!((&stats["instances"][0]["state"], &stats["refused"]), (&"down".into(), &0.into()));
}

/// With nobody there a client is refused at once, or waits for one that comes, as configured.
#[test]
fn nobody_is_there() {
    let (nobody, address) = nobody();
    let balancer = start(config(&[address]));
    let mut socket = connect(balancer.address());
    assert!(socket.read(&mut [0; 1]).is_err(), "a reset");
    assert_eq!(stats(&balancer)["refused"], 1);

    let mut settings = config(&[address]);
    (settings.when_down, settings.connect_timeout) = (WhenDown::Hold, PATIENCE);
    let balancer = start(settings);
    until("it is down", || state(&balancer, 0) == "down");
    let mut socket = connect(balancer.address());
    socket.write_all(b"x").unwrap();
    until("the client waits", || stats(&balancer)["connections"] == 1);
    drop(nobody);
    let _service = Service::at(address, echo);
    socket.read_exact(&mut [0; 1]).unwrap();
    assert_eq!(stats(&balancer)["refused"], 0);
}

/// Probes find out that an instance is gone and that it is back, without a client.
#[test]
fn probes() {
    let service = Service::echo();
    let address = service.address;
    let balancer = start(config(&[address]));
    assert_eq!(state(&balancer, 0), "up");
    drop(service);
    until("it is down", || state(&balancer, 0) == "down");
    let _service = Service::at(address, echo);
    until("it is up", || state(&balancer, 0) == "up");
}

/// A ping wants its pong: an error, half of an answer, another protocol, or a process that hangs and is connected to by the
/// system, are none.
#[test]
fn pings() {
    let answers = |answer: &'static [u8]| {
        Service::start(move |mut socket| {
            let mut asked = [0; 18];
            socket.read_exact(&mut asked)?;
            assert_eq!(&asked, b"{\"action\":\"ping\"}\n");
            socket.write_all(answer)
        })
    };
    let hangs = TcpListener::bind("127.0.0.1:0").unwrap();
    let services = [
        answers(b"{\"action\":\"pong\"}\n"),
        answers(b"{\"action\":\"error\",\"message\":{\"info\":{\"code\":\"malformed\"}}}\n"),
        answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        answers(b"{\"action\":\"po"),
    ];
    let mut addresses = services.each_ref().map(|service| service.address).to_vec();
    addresses.push(hangs.local_addr().unwrap());
    let mut settings = config(&addresses);
    (settings.health, settings.health_timeout) = (Health::Ping, Duration::from_millis(100));
    let balancer = start(settings);
    until("all but one are down", || (1..5).all(|place| state(&balancer, place) == "down"));
    assert_eq!(state(&balancer, 0), "up");
    assert!(services.iter().all(|service| service.count() > 0));
}

/// One that accepts and ends every connection is found out by its sessions, though it can be connected to.
#[test]
fn accepts_and_closes() {
    let rude = Service::start(|_| Ok(()));
    let kind = Service::named("kind");
    let mut settings = config(&[rude.address, kind.address]);
    settings.health = Health::Off;
    settings.health_interval = Duration::from_secs(60);
    let balancer = start(settings);
    until("it is down", || {
        let mut socket = connect(balancer.address());
        let _ = socket.read_exact(&mut [0; 1]);
        state(&balancer, 0) == "down"
    });
    for _ in 0..4 {
        assert_eq!(name(&mut connect(balancer.address())), "kind");
    }
    assert_eq!(stats(&balancer)["instances"][0]["earlyEnds"], 3);
}

/// An instance takes no more connections than its limit; the others get them.
#[test]
fn limits_of_instances() {
    let services = [Service::named("a"), Service::named("b")];
    let mut settings = config(&services.each_ref().map(|service| service.address));
    settings.instances[0].max = Some(1);
    let balancer = start(settings);
    let mut sockets: Vec<_> = (0..6).map(|_| connect(balancer.address())).collect();
    let names: Vec<_> = sockets.iter_mut().map(name).collect();
    assert_eq!(names.iter().filter(|name| *name == "a").count(), 1, "{names:?}");
}

/// More clients than are allowed wait to be taken in, and are when there is room.
#[test]
fn accepting_pauses() {
    let service = Service::named("a");
    let mut settings = config(&[service.address]);
    settings.max_connections = Some(2);
    let balancer = start(settings);
    let mut sockets: Vec<_> = (0..4).map(|_| connect(balancer.address())).collect();
    assert_eq!([name(&mut sockets[0]), name(&mut sockets[1])], ["a", "a"]);
    until("the rest waits", || stats(&balancer)["paused"].as_u64() > Some(0));
    assert_eq!((service.count(), &stats(&balancer)["connections"]), (2, &2.into()));
    sockets.drain(..2);
    assert_eq!(sockets.iter_mut().map(name).collect::<Vec<_>>(), ["a", "a"]);
}

/// A new list of instances: those that stay are not touched, new ones get connections, those that went keep theirs.
#[test]
fn reload_drops_nothing() {
    let services = [Service::named("a"), Service::named("b"), Service::named("c")];
    let [a, b, c] = services.each_ref().map(|service| Instance::new(service.address.to_string()));
    let mut settings = config(&[]);
    settings.instances = vec![a, b.clone()];
    let balancer = start(settings);
    let mut sockets: Vec<_> = (0..4).map(|_| connect(balancer.address())).collect();
    sockets.iter_mut().for_each(|socket| drop(name(socket)));
    balancer.reload(vec![b, c]);
    until("the new one is there", || {
        stats(&balancer)["instances"][2]["state"] == "up" && state(&balancer, 0) == "removed"
    });
    let names: BTreeSet<_> = (0..4).map(|_| name(&mut connect(balancer.address()))).collect();
    assert_eq!(names, ["b", "c"].map(str::to_owned).into());
    for socket in &mut sockets {
        socket.write_all(b"still here").unwrap();
        let mut back = [0; 10];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still here");
    }
    drop(sockets);
    until("who went is forgotten", || stats(&balancer)["instances"].as_array().unwrap().len() == 2);
}

/// An instance that is told to drain gets nothing new, keeps what it has for its time, is then cut, and can go on.
#[test]
fn draining_an_instance() {
    let services = [Service::named("a"), Service::named("b")];
    let mut settings = config(&services.each_ref().map(|service| service.address));
    settings.drain_timeout = Duration::from_millis(300);
    let balancer = start(settings);
    let mut sockets = [connect(balancer.address()), connect(balancer.address())];
    let names = sockets.each_mut().map(name);
    let order = |order: &str| ask(&balancer, &format!("POST /instances/{}/{order}", services[0].address));
    assert_eq!(order("drain"), "draining\n");
    for _ in 0..4 {
        assert_eq!(name(&mut connect(balancer.address())), "b");
    }
    let (drained, other) = if names[0] == "a" { (0, 1) } else { (1, 0) };
    assert_eq!(sockets[drained].read(&mut [0; 1]).unwrap(), 0, "cut");
    sockets[other].write_all(b"x").unwrap();
    sockets[other].read_exact(&mut [0; 1]).unwrap();
    assert_eq!(order("resume"), "resumed\n");
    until("it gets connections again", || name(&mut connect(balancer.address())) == "a");
}

/// A balancer that leaves accepts nothing, lets sessions end within the time it was given, and cuts the rest.
#[test]
fn leaving() {
    let service = Service::named("a");
    let balancer = start(config(&[service.address]));
    let mut socket = connect(balancer.address());
    name(&mut socket);
    balancer.drain(PATIENCE);
    until("nobody is accepted", || std::net::TcpStream::connect(balancer.address()).is_err());
    socket.write_all(b"x").unwrap();
    socket.read_exact(&mut [0; 1]).unwrap();
    drop(socket);
    balancer.wait().unwrap();

    let balancer = start(config(&[service.address]));
    let mut socket = connect(balancer.address());
    name(&mut socket);
    balancer.drain(Duration::from_millis(20));
    assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0);
    balancer.wait().unwrap();
}

/// By a client's address, all of its connections go to one instance.
#[test]
fn client_hash() {
    let services = [Service::named("a"), Service::named("b"), Service::named("c")];
    let mut settings = config(&services.each_ref().map(|service| service.address));
    settings.choice = Choice::ClientHash;
    let balancer = start(settings);
    let names: BTreeSet<_> = (0..6).map(|_| name(&mut connect(balancer.address()))).collect();
    assert_eq!(names.len(), 1);
}

/// A name is looked up, and all of its addresses are tried: `localhost` may be two, of which an instance listens on one.
#[test]
fn names() {
    let service = Service::named("a");
    let mut settings = config(&[]);
    let port = service.address.port();
    settings.instances =
        vec![Instance::new(format!("localhost:{port}")), Instance::new("no-such-name.invalid:1")];
    let balancer = start(settings);
    for _ in 0..4 {
        assert_eq!(name(&mut connect(balancer.address())), "a");
    }
    assert_eq!([state(&balancer, 0), state(&balancer, 1)], ["up", "unresolved"]);
}

/// With PROXY v2, the instance learns the client's address before the client's first byte; probes say that they are none.
#[test]
fn proxy_headers() {
    let (tell, told) = std::sync::mpsc::channel();
    let service = Service::start(move |mut socket| {
        let mut bytes = Vec::new();
        let header = loop {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            bytes.push(byte[0]);
            if let Some(header) = proxy::decode(&bytes).unwrap() {
                break header;
            }
        };
        tell.send(header.ends.map(|ends| (ends.source, ends.destination))).unwrap();
        echo(socket)
    });
    let mut settings = config(&[service.address]);
    settings.proxy_v2 = true;
    let balancer = start(settings);
    let mut socket = connect(balancer.address());
    socket.write_all(b"first").unwrap();
    let mut back = [0; 5];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"first");
    let ends = std::iter::repeat_with(|| told.recv_timeout(PATIENCE).unwrap()).find_map(|ends| ends);
    assert_eq!(ends, Some((socket.local_addr().unwrap(), balancer.address())));
    assert_eq!(
        std::iter::repeat_with(|| told.recv_timeout(PATIENCE).unwrap()).find(Option::is_none),
        Some(None)
    );
}

/// What Prometheus collects has every instance in it, and each figure says what it is.
#[test]
fn metrics() {
    let service = Service::echo();
    let balancer = start(config(&[service.address]));
    let mut socket = connect(balancer.address());
    socket.write_all(b"12345").unwrap();
    socket.read_exact(&mut [0; 5]).unwrap();
    drop(socket);
    until_quiet(&balancer);
    let text = ask(&balancer, "GET /metrics");
    let label = format!("{{instance=\"{}\"}}", service.address);
    for line in [
        "ringpost_balancer_accepted_total 1".to_owned(),
        "# TYPE ringpost_balancer_instance_up gauge".to_owned(),
        format!("ringpost_balancer_instance_up{label} 1"),
        format!("ringpost_balancer_instance_up_bytes_total{label} 5"),
        format!("ringpost_balancer_instance_sessions_total{label} 1"),
    ] {
        assert!(text.lines().any(|it| it == line), "{line} in {text}");
    }
    assert!(ask(&balancer, "GET /").contains("/metrics"));
}
