//! A station played by the test.

use std::future::Future;

use tokio::net::TcpListener;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

struct World {
    listener: TcpListener,
    station: Station,
    events: mpsc::Receiver<StationEvent>,
}

impl World {
    async fn new(buffer_octets_max: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (sender, events) = mpsc::channel(1);
        let settings = StationSettings {
            buffer_octets_max,
            pause_min: Duration::from_millis(10),
            ..StationSettings::new(listener.local_addr().expect("an address"), "node", "test")
        };
        Self { listener, station: Station::spawn(settings, sender), events }
    }

    async fn accept(&mut self) -> (TcpStream, Connection) {
        let (stream, _) = soon("a connection", self.listener.accept()).await.expect("a connection");
        match soon("an event", self.events.recv()).await {
            Some(StationEvent::Up(connection)) => (stream, connection),
            event => panic!("{event:?}"),
        }
    }
}

/// Type and length of the next message.
async fn next(stream: &mut TcpStream) -> Option<(u8, usize)> {
    let mut header = [0; 6];
    soon("a message", stream.read_exact(&mut header)).await.ok()?;
    assert_eq!(header[0], 3);
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    soon("its body", stream.read_exact(&mut vec![0; length - 6])).await.ok()?;
    Some((header[5], length))
}

#[tokio::test]
async fn a_station_gets_everything_in_order_and_a_farewell() {
    let mut world = World::new(BUFFER_OCTETS_MAX).await;
    let (mut stream, connection) = world.accept().await;
    let feed = world.station.feed();
    for length in 1..100 {
        assert!(feed.push(connection, |out| bmp::initiation(out, "", &"x".repeat(length), &[])));
    }
    assert_eq!(next(&mut stream).await, Some((4, 6 + 4 + 4 + 4 + 4)));
    for length in 1..100 {
        assert_eq!(next(&mut stream).await, Some((4, 14 + length)));
    }
    world.station.stop().await;
    assert_eq!(next(&mut stream).await, Some((5, 12)));
    assert_eq!(next(&mut stream).await, None);
    assert!(!feed.push(connection, |out| out.push(0)), "it is over");
    assert_eq!(feed.room(connection), 0);
}

#[tokio::test]
async fn a_lost_station_is_connected_anew_and_told_anew() {
    let mut world = World::new(BUFFER_OCTETS_MAX).await;
    let (stream, first) = world.accept().await;
    drop(stream);
    assert_eq!(soon("the end", world.events.recv()).await, Some(StationEvent::Down(first)));
    let (mut stream, second) = world.accept().await;
    assert!(second > first);
    let feed = world.station.feed();
    assert!(!feed.push(first, |out| out.push(0)), "what was meant for the first does not get into the second");
    assert!(feed.push(second, |out| bmp::termination(out, Termination::Unspecified, None)));
    assert_eq!(next(&mut stream).await.map(|(kind, _)| kind), Some(4));
    assert_eq!(next(&mut stream).await.map(|(kind, _)| kind), Some(5));
}

#[tokio::test]
async fn a_station_that_does_not_read_is_closed_and_holds_nobody_up() {
    const BUFFER: usize = 100_000;
    let mut world = World::new(BUFFER).await;
    let (mut stream, first) = world.accept().await;
    let feed = world.station.feed();
    let body = "x".repeat(1_000);
    // The kernel's buffers take some megabytes, then ours takes its bound, and nothing of it waits.
    let begun = Instant::now();
    let mut pushed = 0;
    while feed.push(first, |out| bmp::initiation(out, "", &body, &[])) {
        assert!(feed.status().waiting_octets <= BUFFER);
        pushed += 1;
        if pushed % 64 == 0 {
            tokio::task::yield_now().await;
        }
        assert!(begun.elapsed() < DEADLINE, "{pushed} messages and no end");
    }
    assert_eq!(feed.status().overflows, 1);
    assert_eq!(soon("the end", world.events.recv()).await, Some(StationEvent::Down(first)));
    // What it reads late is whole messages, then the end.
    let mut read = 0;
    while next(&mut stream).await.is_some() {
        read += 1;
    }
    assert!(read <= pushed + 1);
    let (_stream, second) = world.accept().await;
    assert_eq!(feed.room(second) + feed.status().waiting_octets, BUFFER);
}
