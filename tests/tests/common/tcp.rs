//! Peers that speak no protocol of ours: a service that sends back what it gets, and a crowd of clients that compare.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use crate::{Outcome, say, wait_for_end};

/// Clients that connect at the same time.
const AT_ONCE: usize = 64;

/// A service on a free port of the loopback address.
pub(crate) async fn echo() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&format!("listening on {}", listener.local_addr()?))?;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(read @ 1..) = socket.read(&mut buffer).await {
                    if socket.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
                // A client that is gone has ended it already.
                let _ = socket.shutdown().await;
            });
        }
    });
    Ok(wait_for_end().await?)
}

/// So many clients that each send something and compare what comes back, again and again, with a pause of about
/// `pause_ms` between. It says how many of them found their connection broken; wrong bytes are an error.
pub(crate) async fn crowd(address: &str, count: &str, pause_ms: &str) -> Outcome {
    let (count, pause): (usize, u64) = (count.parse()?, pause_ms.parse()?);
    let (turns, there) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(AtomicU64::new(0)));
    let (broken, wrong, ending) =
        (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..count)
        .map(|number| {
            let (address, turns, there) = (address.to_owned(), turns.clone(), there.clone());
            let (broken, wrong, ending) = (broken.clone(), wrong.clone(), ending.clone());
            tokio::spawn(async move {
                let Ok(turn) = turns.acquire_owned().await else { return };
                let connected = TcpStream::connect(&address).await;
                let mut round = 0;
                let mut counted = false;
                if let Ok(mut socket) = connected {
                    let mut turn = Some(turn);
                    while ending.load(Ordering::SeqCst) == 0 {
                        match once(&mut socket, number as u64, round).await {
                            Ok(true) => {}
                            Ok(false) => {
                                wrong.fetch_add(1, Ordering::SeqCst);
                                return;
                            }
                            Err(_) => break,
                        }
                        drop(turn.take());
                        if !std::mem::replace(&mut counted, true) {
                            there.fetch_add(1, Ordering::SeqCst);
                        }
                        round += 1;
                        sleep(Duration::from_millis(pause * (50 + (number as u64 * 37) % 100) / 100)).await;
                    }
                }
                if ending.load(Ordering::SeqCst) == 0 {
                    broken.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    while there.load(Ordering::SeqCst) + broken.load(Ordering::SeqCst) < count as u64 {
        sleep(Duration::from_millis(5)).await;
    }
    say(&format!("there {}", there.load(Ordering::SeqCst)))?;
    wait_for_end().await?;
    ending.store(1, Ordering::SeqCst);
    for client in clients {
        client.await?;
    }
    say(&format!("broken {}", broken.load(Ordering::SeqCst)))?;
    if wrong.load(Ordering::SeqCst) > 0 {
        return Err(format!("{} clients got other bytes than they sent", wrong.load(Ordering::SeqCst)).into());
    }
    Ok(())
}

/// There and back: most are small, one in sixteen is large enough to be spliced. Whether it was what was sent.
async fn once(socket: &mut TcpStream, number: u64, round: u64) -> std::io::Result<bool> {
    let mut state = (number << 20) ^ round;
    let length =
        if (number + round).is_multiple_of(16) { 100_000 } else { 1 + (number * 7 + round) as usize % 900 };
    let sent: Vec<u8> = (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    let (mut reading, mut writing) = socket.split();
    let mut got = vec![0; length];
    tokio::try_join!(writing.write_all(&sent), reading.read_exact(&mut got))?;
    Ok(got == sent)
}
