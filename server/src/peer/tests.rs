//! Several cores with links between them, under a network that delays and cuts: what holds of a request wherever it goes.

mod world;

use std::time::Duration;

use ringpost_broker::LinkState;
use ringpost_protocol::{Code, message::Verdict};

use self::world::{Rng, World};

/// A request for an action that only the peer has goes there, with the time that is left, and its reply comes back; so it
/// does in the other direction over the same link.
#[test]
fn both_directions() {
    let mut world = World::new(&["a", "b"], &[(0, 1)]);
    world.settle();
    for (asks, handles) in [(0, 1), (1, 0)] {
        let handler = world.handler(handles, "sum", 4);
        world.settle();
        let request = world.ask(asks, "sum", 1);
        world.settle();
        assert_eq!(world.held(handler).len(), 1);
        world.answer(handler, 0, Verdict::Reply);
        world.settle();
        assert_eq!(world.outcome(request), Some(None));
        world.leave(handler);
        world.settle();
        assert_eq!(world.refused(asks, "sum"), Code::NoHandler);
    }
    world.end();
}

/// In a line and in a ring a request goes one hop: who is not linked to a server with a handler is told `noHandler`.
#[test]
fn one_hop() {
    for links in [&[(0, 1), (1, 2), (2, 3)][..], &[(0, 1), (1, 2), (2, 3), (3, 0)]] {
        let mut world = World::new(&["a", "b", "c", "d"], links);
        world.settle();
        world.handler(3, "sum", 4);
        world.settle();
        assert_eq!(world.refused(1, "sum"), Code::NoHandler, "{links:?}");
        let request = world.ask(2, "sum", 1);
        world.settle();
        world.answer_all();
        assert_eq!(world.outcome(request), Some(None));
        world.end();
    }
}

/// The death of a handler at the peer, and the end of the link, are known at once; with attempts left others get it.
#[test]
fn losses_are_known_at_once() {
    let mut world = World::new(&["a", "b"], &[(0, 1)]);
    world.settle();
    let handler = world.handler(1, "sum", 4);
    world.settle();
    let (once, twice) = (world.ask(0, "sum", 1), world.ask(0, "sum", 2));
    world.settle();
    world.handler(1, "sum", 4);
    world.kill(handler);
    world.settle();
    assert_eq!(world.outcome(once), Some(Some(Code::HandlerLost)));
    assert_eq!(world.outcome(twice), None, "it has another attempt");
    let cut = world.ask(0, "sum", 1);
    world.settle();
    world.cut(0);
    assert_eq!(world.outcome(cut), Some(Some(Code::HandlerLost)));
    world.answer_all();
    world.end();
}

/// A handler's own error comes with its own code and message.
#[test]
fn errors_keep_their_words() {
    let mut world = World::new(&["a", "b"], &[(0, 1)]);
    world.settle();
    for (asks, handles) in [(0, 1), (1, 0)] {
        let handler = world.handler(handles, "sum", 4);
        world.settle();
        let request = world.ask(asks, "sum", 1);
        world.settle();
        world.answer(handler, 0, Verdict::Error);
        world.settle();
        assert_eq!(world.outcome(request), Some(Some(Code::Remote)));
        assert_eq!(world.words(request), ("E42".to_owned(), format!("r{request}")));
        world.leave(handler);
        world.settle();
    }
    world.end();
}

/// When both dial, the link stays that the smaller name has dialled; when that goes, the other one takes its place.
#[test]
fn one_link_stays() {
    let mut world = World::new(&["b", "a"], &[(0, 1), (1, 0)]);
    world.settle();
    world.pass(Duration::from_secs(1));
    assert_eq!(*world.state(0), LinkState::StandsBy, "b gives way");
    assert_eq!(*world.state(1), LinkState::Up);
    world.forbid(1);
    world.cut(1);
    world.pass(Duration::from_secs(30));
    assert_eq!(*world.state(0), LinkState::Up, "b dials again");
    world.end();
}

/// Servers with the same name are told so, on both sides, and do not work together.
#[test]
fn equal_names() {
    let mut world = World::new(&["a", "a"], &[(0, 1)]);
    world.settle();
    let LinkState::Failed(why) = world.state(0) else { panic!("{:?}", world.state(0)) };
    assert!(why.contains("`a`") && why.contains("--id"), "{why}");
    world.handler(1, "sum", 1);
    world.settle();
    assert_eq!(world.refused(0, "sum"), Code::NoHandler);
}

/// Whoever comes and goes, dies, is slow, or is cut off: each request has one outcome, runs no more often than it has
/// attempts, where its server has a link to, and at the end nothing is open anywhere.
#[test]
fn any_order() {
    let (mut forwarded, mut declined, mut lost, mut replies) = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let names: &[&str] = if rng.below(2) == 0 { &["a", "b"] } else { &["c", "a", "b"] };
        let all = [(0, 1), (1, 0), (1, 2), (2, 0), (0, 2)];
        let links: Vec<_> = all.into_iter().filter(|(one, other)| one.max(other) < &names.len()).collect();
        let links: Vec<_> = links.into_iter().filter(|_| rng.below(4) > 0).collect();
        let mut world = World::new(names, &links);
        eprintln!("seed {seed}: {names:?} {links:?}");
        for _ in 0..600 {
            world.step(&mut rng);
        }
        world.heal();
        world.end();
        let figures = world.forwarded();
        (forwarded, declined) = (forwarded + figures.0, declined + figures.1);
        lost += world.ended(Some(Code::HandlerLost));
        replies += world.ended(None);
    }
    // That it was all seen, and often.
    assert!(forwarded > 3000 && declined > 30, "{forwarded} forwarded, {declined} declined");
    assert!(lost > 300 && replies > 3000, "{lost} lost, {replies} replies");
}
