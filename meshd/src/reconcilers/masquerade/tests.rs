//! The reconciler against a packet filter in memory.

use std::{collections::BTreeSet, sync::Mutex};

use futures_util::future::BoxFuture;
use meshd_core::desired::{Exclusion, ExclusionSet};
use tokio::time::timeout;

use super::*;
use crate::kernel::nftables::{Listing, document};

const DEADLINE: Duration = Duration::from_secs(120);

/// A packet filter that takes everything, unless told otherwise.
#[derive(Default)]
struct Memory {
    table: Mutex<Option<Listing>>,
    steps: Mutex<Vec<MasqueradeStep>>,
    missing: Mutex<bool>,
    refuse_changes: Mutex<bool>,
}

impl Memory {
    fn with<T>(of: &Mutex<T>, then: impl FnOnce(&mut T)) {
        then(&mut of.lock().unwrap());
    }

    fn exclusions(&self) -> Option<BTreeSet<Exclusion>> {
        self.table.lock().unwrap().as_ref().map(|table| table.exclusions.clone())
    }
}

impl KernelMasquerade for Memory {
    fn look(&self) -> BoxFuture<'_, Result<Option<Listing>, NftError>> {
        let missing = *self.missing.lock().unwrap();
        let table = self.table.lock().unwrap().clone();
        Box::pin(async move { if missing { Err(NftError::Missing) } else { Ok(table) } })
    }

    fn carry_out<'a>(
        &'a self,
        step: &'a MasqueradeStep,
        rules: &'a MasqueradeRules,
    ) -> BoxFuture<'a, Result<(), NftError>> {
        let mut table = self.table.lock().unwrap();
        let result = match step {
            MasqueradeStep::Replace(exclusions) => {
                let comments = document::comments(rules);
                let shape = format!("as {} prints it", comments.join(" "));
                *table = Some(Listing { exclusions: exclusions.clone(), shape, comments, ..Listing::default() });
                Ok(())
            }
            MasqueradeStep::Change { .. } if *self.refuse_changes.lock().unwrap() => {
                Err(NftError::Refused { operation: "change", reason: "conflicting intervals".to_owned() })
            }
            MasqueradeStep::Change { add, remove } => {
                let table = table.as_mut().expect("a table to change");
                remove.iter().for_each(|exclusion| assert!(table.exclusions.remove(exclusion), "{exclusion:?}"));
                table.exclusions.extend(add.iter().copied());
                Ok(())
            }
            MasqueradeStep::Remove => {
                *table = None;
                Ok(())
            }
        };
        self.steps.lock().unwrap().push(step.clone());
        Box::pin(async move { result })
    }
}

struct Case {
    kernel: Arc<Memory>,
    touched: Arc<Notify>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    programs: watch::Sender<bool>,
    handle: MasqueradeHandle,
    problems: Problems,
}

impl Case {
    fn start(kernel: Memory) -> Self {
        let (kernel, touched, problems) = (Arc::new(kernel), Arc::new(Notify::new()), Problems::default());
        let (snapshots, snapshots_rx) = watch::channel(Arc::new(Snapshot::default()));
        let (programs, programs_rx) = watch::channel(false);
        let (task, handle) =
            Masquerading::new(kernel.clone(), touched.clone(), snapshots_rx, Some(programs_rx), problems.clone());
        tokio::spawn(task.run());
        Self { kernel, touched, snapshots, programs, handle, problems }
    }

    fn publish(&self, wish: MasqueradeWish, exclusions: &[&str], complete: bool) {
        let mut snapshot = Snapshot { local_known: true, known: complete, complete, ..Snapshot::default() };
        snapshot.desired.masquerade.wish = wish;
        for exclusion in set(exclusions) {
            snapshot.desired.masquerade.exclusions.upsert(exclusion, ());
        }
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let steps = || self.kernel.steps.lock().unwrap().clone();
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}; {:?}", steps(), self.problems.list()));
    }

    fn problem(&self, component: &str) -> Option<String> {
        self.problems.list().into_iter().find(|problem| problem.component == component).map(|problem| problem.message)
    }
}

fn set(texts: &[&str]) -> BTreeSet<Exclusion> {
    texts.iter().map(|text| (ExclusionSet::Pods, text.parse().unwrap())).collect()
}

fn on(uplink: &str) -> MasqueradeWish {
    let uplinks = [uplink].into_iter().filter(|name| !name.is_empty()).map(Into::into).collect();
    MasqueradeWish::On(Arc::new(MasqueradeRules { uplinks, ..MasqueradeRules::default() }))
}

#[tokio::test(start_paused = true)]
async fn the_table_comes_changes_is_repaired_and_goes() {
    let case = Case::start(Memory::default());
    case.publish(on("eth0"), &["10.1.0.0/24"], true);
    case.until("the table", |case| case.kernel.exclusions() == Some(set(&["10.1.0.0/24"]))).await;
    case.until("its state", |case| case.handle.state().installed).await;
    case.publish(on("eth0"), &["10.1.0.0/24", "10.2.0.0/24"], true);
    let both = set(&["10.1.0.0/24", "10.2.0.0/24"]);
    case.until("one more", |case| case.kernel.exclusions().as_ref() == Some(&both)).await;
    assert!(matches!(case.kernel.steps.lock().unwrap().last(), Some(MasqueradeStep::Change { .. })));
    // Somebody deletes it, takes an element, and changes a rule.
    Memory::with(&case.kernel.table, |table| *table = None);
    case.touched.notify_one();
    case.until("repaired", |case| case.kernel.exclusions().as_ref() == Some(&both)).await;
    Memory::with(&case.kernel.table, |table| {
        assert!(table.as_mut().unwrap().exclusions.pop_first().is_some());
    });
    case.touched.notify_one();
    case.until("the element", |case| case.kernel.exclusions().as_ref() == Some(&both)).await;
    Memory::with(&case.kernel.table, |table| table.as_mut().unwrap().shape.push('!'));
    // Nobody says so: the periodic look finds it.
    case.until("the rule", |case| !case.kernel.table.lock().unwrap().as_ref().unwrap().shape.contains('!')).await;
    // Other links: the table is replaced.
    case.publish(on("eth1"), &["10.1.0.0/24", "10.2.0.0/24"], true);
    case.until("replaced", |case| matches!(case.kernel.steps.lock().unwrap().last(), Some(MasqueradeStep::Replace(_))))
        .await;
    // The datapath does it, and no longer.
    let replaced = |case: &Case| {
        let steps = case.kernel.steps.lock().unwrap();
        steps.iter().filter(|step| matches!(step, MasqueradeStep::Replace(_))).count()
    };
    let before = replaced(&case);
    case.programs.send_replace(true);
    case.until("other rules", |case| replaced(case) == before + 1).await;
    case.programs.send_replace(false);
    case.until("the rules before", |case| replaced(case) == before + 2).await;
    case.publish(MasqueradeWish::Off, &[], true);
    case.until("gone", |case| case.kernel.exclusions().is_none()).await;
    assert!(case.problems.list().is_empty(), "{:?}", case.problems.list());
}

#[tokio::test(start_paused = true)]
async fn a_table_of_the_previous_run_is_taken_over_without_a_step() {
    let MasqueradeWish::On(rules) = on("eth0") else { unreachable!() };
    let comments = document::comments(&rules);
    let listing = Listing { exclusions: set(&["10.1.0.0/24", "10.9.0.0/24"]), comments, ..Listing::default() };
    let case = Case::start(Memory { table: Mutex::new(Some(listing)), ..Memory::default() });
    case.publish(on("eth0"), &["10.1.0.0/24"], false);
    case.until("taken over", |case| case.handle.state().installed).await;
    assert!(case.kernel.steps.lock().unwrap().is_empty());
    // Everybody has been heard: what nobody told is no longer excluded.
    case.publish(on("eth0"), &["10.1.0.0/24"], true);
    case.until("pruned", |case| case.kernel.exclusions() == Some(set(&["10.1.0.0/24"]))).await;
    assert_eq!(case.handle.withdraw().await, Ok(()));
    assert_eq!(case.kernel.exclusions(), None);
    case.publish(on("eth0"), &["10.1.0.0/24", "10.3.0.0/24"], true);
    tokio::time::sleep(LOOK_INTERVAL * 2).await;
    assert_eq!(case.kernel.exclusions(), None, "a drained node stays drained");
}

#[tokio::test(start_paused = true)]
async fn a_missing_nft_is_a_problem_only_when_it_is_needed() {
    let case = Case::start(Memory { missing: Mutex::new(true), ..Memory::default() });
    case.publish(MasqueradeWish::Off, &[], true);
    tokio::time::sleep(RETRY_MAX).await;
    assert!(case.problems.list().is_empty());
    case.publish(on("eth0"), &["10.1.0.0/24"], true);
    case.until("a problem while it is wanted", |case| case.problem(COMPONENT).is_some()).await;
    case.publish(MasqueradeWish::Off, &[], true);
    case.until("no problem any more", |case| case.problem(COMPONENT).is_none()).await;
    case.publish(on("eth0"), &["10.1.0.0/24"], true);
    case.until("a problem", |case| case.problem(COMPONENT).is_some_and(|it| it.contains("install"))).await;
    assert!(case.handle.state().error.is_some());
    Memory::with(&case.kernel.missing, |missing| *missing = false);
    case.until("installed", |case| case.handle.state().installed && case.problem(COMPONENT).is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_change_becomes_a_replacement() {
    let case = Case::start(Memory { refuse_changes: Mutex::new(true), ..Memory::default() });
    case.publish(on("eth0"), &["10.1.0.0/24", "10.2.0.0/24"], true);
    case.until("the table", |case| case.kernel.exclusions().is_some()).await;
    case.publish(on("eth0"), &["10.2.0.0/24", "10.3.0.0/24"], true);
    let wanted = set(&["10.2.0.0/24", "10.3.0.0/24"]);
    case.until("replaced", |case| case.kernel.exclusions().as_ref() == Some(&wanted)).await;
    assert!(case.problems.list().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_work_is_a_problem() {
    let case = Case::start(Memory::default());
    case.publish(on(""), &[], true);
    case.until("no uplinks", |case| case.problem(COMPONENT_UPLINKS).is_some()).await;
    case.snapshots.send_modify(|snapshot| {
        let mut new = Snapshot::clone(snapshot);
        new.desired.masquerade.left_out = 3;
        *snapshot = Arc::new(new);
    });
    case.until("too many", |case| case.problem(COMPONENT_LIMIT).is_some_and(|it| it.starts_with("3 prefixes"))).await;
    case.publish(on("eth0"), &[], true);
    case.until("all is well", |case| case.problems.list().is_empty()).await;
}
