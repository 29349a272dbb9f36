use super::*;

const MIB: usize = 1 << 20;

/// How long requests wait that are to be served.
const LONG: Duration = Duration::from_secs(30);
/// How long requests wait that are to be refused.
const SHORT: Duration = Duration::from_millis(50);

fn answers(bytes_max: usize) -> Arc<Answers> {
    waiting_for(bytes_max, LONG)
}

fn waiting_for(bytes_max: usize, wait_max: Duration) -> Arc<Answers> {
    Arc::new(Answers::new(bytes_max, wait_max))
}

fn user(name: &str) -> Arc<str> {
    name.into()
}

#[test]
fn nobody_takes_the_last_of_the_room() {
    let answers = answers(64 * MIB);
    let mut holds = Vec::new();
    let mut by_user = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let before = answers.figures().bytes;
        while let Some(hold) = answers.try_take(&user(name), MIB) {
            holds.push(hold);
        }
        by_user.push((answers.figures().bytes - before) / MIB);
    }
    assert_eq!(by_user, [32, 16, 8, 4]);
    assert!(answers.try_take(&user("a"), MIB).is_none());
    holds.clear();
    assert_eq!(answers.figures(), AnswerFigures::default());
    assert!(answers.state().users.is_empty());
}

#[test]
fn one_answer_beyond_half_has_a_place_of_its_own() {
    let answers = answers(64 * MIB);
    let (a, b) = (user("a"), user("b"));
    let first = answers.try_take(&a, 1_000 * MIB).unwrap();
    assert!(answers.try_take(&b, 33 * MIB).is_none());
    let others = [answers.try_take(&a, 32 * MIB).unwrap(), answers.try_take(&b, 16 * MIB).unwrap()];
    assert_eq!(answers.figures().bytes, 1_048 * MIB);
    drop(first);
    let second = answers.try_take(&b, 33 * MIB).unwrap();
    drop((second, others));
    assert_eq!(answers.figures(), AnswerFigures::default());
}

#[test]
fn a_hold_is_corrected_without_waiting() {
    let answers = answers(64 * MIB);
    let mut hold = answers.try_take(&user("a"), 30 * MIB).unwrap();
    hold.resize(40 * MIB);
    assert!(answers.try_take(&user("a"), 1).is_none());
    hold.resize(MIB);
    assert_eq!(answers.figures().bytes, MIB);
    let mut large = answers.try_take(&user("a"), 40 * MIB).unwrap();
    large.resize(50 * MIB);
    assert_eq!(answers.figures().bytes, 51 * MIB);
    drop((hold, large));
    assert_eq!(answers.figures(), AnswerFigures::default());
}

#[tokio::test]
async fn who_waits_is_served_in_order_and_users_in_turn() {
    let answers = answers(40);
    let holds: Vec<Hold> = (0..2).map(|_| answers.try_take(&user("a"), 10).unwrap()).collect();
    let (done, mut order) = tokio::sync::mpsc::channel(16);
    // The first of a needs more than the ones behind it, and is not overtaken by them.
    for (number, (name, bytes)) in [("a", 15), ("a", 1), ("b", 12), ("b", 1), ("a", 1)].into_iter().enumerate() {
        let (asked, done) = (Arc::clone(&answers), done.clone());
        tokio::spawn(async move {
            let hold = asked.take(&user(name), bytes).await.unwrap();
            done.send(number).await.unwrap();
            drop(hold);
        });
        while answers.figures().waiting <= number {
            tokio::task::yield_now().await;
        }
    }
    drop(holds);
    let mut served = Vec::new();
    for _ in 0..5 {
        served.push(order.recv().await.unwrap());
    }
    let of = |numbers: &[usize]| served.iter().copied().filter(|number| numbers.contains(number)).collect::<Vec<_>>();
    assert_eq!((of(&[0, 1, 4]), of(&[2, 3])), (vec![0, 1, 4], vec![2, 3]), "{served:?}");
    assert_eq!(answers.figures(), AnswerFigures::default());
}

#[tokio::test]
async fn waiting_ends_with_a_refusal_that_says_why() {
    let answers = waiting_for(40, SHORT);
    let _hold = answers.try_take(&user("remote"), 20).unwrap();
    let started = std::time::Instant::now();
    let refused = answers.take(&user("remote"), 7).await.unwrap_err();
    assert!(started.elapsed() >= SHORT);
    let expected = NoRoom::Full { user: user("remote"), bytes: 7, held: 20, all: 20 };
    assert_eq!(refused, expected);
    let status = Status::from(refused);
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().contains("user remote that have not been read hold 20 bytes"), "{status:?}");
    let _large = answers.try_take(&user("remote"), 30).unwrap();
    assert_eq!(answers.take(&user("node"), 30).await.unwrap_err(), NoRoom::Large { bytes: 30 });
    assert_eq!(answers.figures(), AnswerFigures { bytes: 50, waiting: 0, refused: 2 });
}

#[tokio::test]
async fn a_request_that_ends_while_it_waits_leaves_nothing_behind() {
    let answers = answers(40);
    let hold = answers.try_take(&user("a"), 20).unwrap();
    let mut waiting = Vec::new();
    for bytes in [20, 30, 5] {
        let answers = Arc::clone(&answers);
        waiting.push(tokio::spawn(async move { answers.take(&user("a"), bytes).await.map(drop) }));
    }
    while answers.figures().waiting < 2 {
        tokio::task::yield_now().await;
    }
    waiting.remove(0).abort();
    tokio::task::yield_now().await;
    drop(hold);
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    assert_eq!(answers.figures(), AnswerFigures::default());
    assert!(answers.state().users.is_empty());
}

#[tokio::test]
async fn who_waits_behind_a_request_that_ends_is_served_at_once() {
    let answers = answers(40);
    // Nothing of this is given back: only the end of the request in front can make place.
    let _hold = answers.try_take(&user("a"), 10).unwrap();
    let start = |bytes| {
        let answers = Arc::clone(&answers);
        tokio::spawn(async move { answers.take(&user("a"), bytes).await.map(drop) })
    };
    let (front, behind) = (start(20), start(5));
    while answers.figures().waiting < 2 {
        tokio::task::yield_now().await;
    }
    front.abort();
    tokio::time::timeout(LONG / 10, behind).await.expect("served long before the wait is over").unwrap().unwrap();
    // The same for one that comes when the request in front is already gone.
    let front = start(20);
    while answers.figures().waiting < 1 {
        tokio::task::yield_now().await;
    }
    front.abort();
    tokio::time::timeout(LONG / 10, start(5)).await.expect("served at once").unwrap().unwrap();
}

#[tokio::test]
async fn the_queue_of_a_user_is_bounded() {
    let answers = answers(40);
    let hold = answers.try_take(&user("a"), 20).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..WAITING_PER_USER_MAX {
        let answers = Arc::clone(&answers);
        waiting.spawn(async move { answers.take(&user("a"), 1).await.map(drop) });
    }
    while answers.figures().waiting < WAITING_PER_USER_MAX {
        tokio::task::yield_now().await;
    }
    // Refused at once: with the others it would have waited until the hold is gone.
    answers.take(&user("a"), 1).await.unwrap_err();
    assert_eq!(answers.figures().waiting, WAITING_PER_USER_MAX);
    drop(hold);
    while let Some(ended) = waiting.join_next().await {
        ended.unwrap().unwrap();
    }
    assert_eq!(answers.figures(), AnswerFigures { refused: 1, ..AnswerFigures::default() });
}
