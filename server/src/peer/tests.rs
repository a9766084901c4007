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

/// A broadcast asks every handler at every server with a link, once, whoever dialled it; the requester is told their number
/// first, and each of them ends once.
#[test]
fn broadcasts_reach_all_servers() {
    for links in [&[(0, 1), (2, 0), (1, 2)][..], &[(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]] {
        let mut world = World::new(&["a", "b", "c"], links);
        world.settle();
        world.pass(Duration::from_secs(2));
        let handlers: Vec<_> = [0, 1, 1, 2].map(|node| world.handler(node, "sum", 4)).into();
        world.settle();
        for asks in 0..3 {
            let request = world.broadcast(asks, "sum");
            world.settle();
            assert_eq!(world.legs(request), (Some(4), vec![]), "{links:?}");
            for (handler, verdict) in
                handlers.iter().zip([Verdict::Reply, Verdict::Error, Verdict::Reply, Verdict::Reply])
            {
                assert_eq!(world.held(*handler).len(), 1);
                world.answer(*handler, 0, verdict);
                world.settle();
            }
            let ends = vec![None, Some(Code::Remote), None, None];
            assert_eq!(world.legs(request), (Some(4), ends), "{links:?}");
        }
        world.end();
    }
}

/// While both of two links between the same servers are there, a broadcast goes over one of them.
#[test]
fn two_links_are_one_server() {
    let mut world = World::new(&["a", "b"], &[(0, 1), (1, 0)]);
    world.forbid(1);
    world.settle();
    let handler = world.handler(1, "sum", 4);
    world.settle();
    world.heal();
    let mut asked = 0;
    for _ in 0..200 {
        let request = world.broadcast(0, "sum");
        world.pass(Duration::from_millis(20));
        assert_eq!(world.legs(request).0, Some(1));
        world.answer(handler, 0, Verdict::Reply);
        asked += 1;
    }
    assert_eq!(world.forwarded().0, asked);
    assert_eq!(*world.state(1), LinkState::StandsBy, "both were there meanwhile");
    world.end();
}

/// A link that breaks, or a handler that dies there, ends its legs at once and no others; a cancelled broadcast is called back
/// everywhere.
#[test]
fn broadcasts_lose_only_what_is_lost() {
    let mut world = World::new(&["a", "b", "c"], &[(0, 1), (2, 0)]);
    world.settle();
    let here = world.handler(0, "sum", 4);
    let (at_b, dies, at_c) =
        (world.handler(1, "sum", 4), world.handler(1, "sum", 4), world.handler(2, "sum", 4));
    world.settle();
    let request = world.broadcast(0, "sum");
    world.settle();
    world.kill(dies);
    world.settle();
    let lost = Some(Code::HandlerLost);
    assert_eq!(world.legs(request), (Some(4), vec![lost]));
    world.cut(0);
    assert_eq!(world.legs(request), (Some(4), vec![lost, lost]));
    world.answer(at_c, 0, Verdict::Reply);
    world.answer(here, 0, Verdict::Reply);
    world.settle();
    assert_eq!(world.legs(request), (Some(4), vec![lost, lost, None, None]));
    assert!(world.held(at_b).is_empty(), "b called it back");
    world.pass(Duration::from_secs(5));
    let cancelled = world.broadcast(0, "sum");
    world.settle();
    world.cancel(cancelled);
    world.settle();
    assert_eq!(world.legs(cancelled), (Some(3), vec![Some(Code::Cancelled); 3]));
    assert!([here, at_b, at_c].iter().all(|handler| world.held(*handler).is_empty()));
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
/// attempts, where its server has a link to, and at the end nothing is open anywhere. Each broadcast runs at most once in each
/// handler, and as many of its legs end as its requester was told.
#[test]
fn any_order() {
    let (mut forwarded, mut declined, mut lost, mut replies, mut spread) = (0, 0, 0, 0, 0);
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
        spread += world.spread();
    }
    // That it was all seen, and often.
    assert!(forwarded > 3000 && declined > 30, "{forwarded} forwarded, {declined} declined");
    assert!(lost > 200 && replies > 2000, "{lost} lost, {replies} replies");
    assert!(spread > 100, "{spread} broadcasts at several servers");
}
