//! Between the etcd client's messages and the reader's inputs.

use etcd_client::{
    GetOptions, WatchOptions, WatchResponse,
    proto::{PbEvent, PbKeyValue, PbRangeResponse, PbResponseHeader},
};
use meshd_core::clustermesh::reader::{Header, Input, Record, Target};

use crate::store::{RpcFailure, cancel_reason};

/// `Event.type` of a deletion.
const EVENT_DELETE: i32 = 1;

/// Options of a list. No sort is asked for: keys come in order anyway, and etcd reads a whole range when it must sort.
pub(super) fn get_options(end: Vec<u8>, revision: i64, limit: u32) -> GetOptions {
    let options = GetOptions::new().with_revision(revision).with_limit(limit.into());
    if end.is_empty() { options } else { options.with_range(end) }
}

/// Options of a watch. Fragments keep a burst below the size of a message.
pub(super) fn watch_options(id: i64, end: Vec<u8>, revision: i64) -> WatchOptions {
    let options = WatchOptions::new().with_watch_id(id).with_start_revision(revision).with_fragment();
    if end.is_empty() { options } else { options.with_range(end) }
}

/// A missing header is one without an id: the reader refuses both.
pub(super) fn header(header: Option<&PbResponseHeader>) -> Header {
    header.map_or(Header { store_id: 0, revision: 0 }, |header| Header {
        store_id: header.cluster_id,
        revision: header.revision,
    })
}

/// The answer of a list as input.
pub(super) fn page(target: Target, answer: Result<PbRangeResponse, RpcFailure>) -> Input {
    match answer {
        Ok(answer) => Input::Page {
            target,
            header: header(answer.header.as_ref()),
            count: usize::try_from(answer.count).unwrap_or(0),
            more: answer.more,
            records: answer.kvs.into_iter().map(written).collect(),
        },
        Err(RpcFailure::Compacted) => Input::ListCompacted(target),
        Err(RpcFailure::TooLarge) => Input::PageTooLarge(target),
        Err(RpcFailure::Refused(reason)) => Input::Refused(target, reason.into()),
        Err(failure @ (RpcFailure::Lost(_) | RpcFailure::LeaseGone)) => Input::Lost(failure.text().into()),
    }
}

/// A message of a watch as input.
pub(super) fn watch_message(target: Target, message: WatchResponse) -> Input {
    let message = message.0;
    let header = header(message.header.as_ref());
    if message.compact_revision > 0 {
        return Input::WatchCompacted(target);
    }
    if message.canceled {
        return Input::Refused(target, cancel_reason(&message.cancel_reason).into());
    }
    if message.created {
        return Input::Watching(target, header);
    }
    Input::Events { target, header, records: message.events.into_iter().filter_map(event).collect() }
}

fn event(event: PbEvent) -> Option<Record> {
    let kv = event.kv?;
    Some(if event.r#type == EVENT_DELETE { Record { key: kv.key, value: None } } else { written(kv) })
}

fn written(kv: PbKeyValue) -> Record {
    Record { key: kv.key, value: Some(kv.value) }
}

#[cfg(test)]
mod tests {
    use etcd_client::proto::PbWatchResponse;
    use meshd_core::observed::Kind;

    use super::*;

    const TARGET: Target = Target::Records(Kind::Nodes);

    fn watch(message: PbWatchResponse) -> Input {
        watch_message(TARGET, WatchResponse(message))
    }

    #[test]
    fn watch_messages_become_inputs() {
        let head = PbResponseHeader { cluster_id: 7, revision: 3, ..Default::default() };
        let base = || PbWatchResponse { header: Some(head), ..Default::default() };
        let created = watch(PbWatchResponse { created: true, ..base() });
        assert!(matches!(created, Input::Watching(TARGET, Header { store_id: 7, revision: 3 })));
        let compacted = watch(PbWatchResponse { canceled: true, compact_revision: 9, ..base() });
        assert!(matches!(compacted, Input::WatchCompacted(TARGET)));
        // A watch may be created and cancelled in one message.
        let denied = watch(PbWatchResponse { created: true, canceled: true, cancel_reason: "no".into(), ..base() });
        assert!(matches!(denied, Input::Refused(TARGET, reason) if &*reason == "no"));
        let kv = |key: &str| Some(PbKeyValue { key: key.into(), value: b"v".to_vec(), ..Default::default() });
        let events = vec![
            PbEvent { r#type: 0, kv: kv("a"), ..Default::default() },
            PbEvent { r#type: EVENT_DELETE, kv: kv("b"), ..Default::default() },
            PbEvent { r#type: 0, kv: None, ..Default::default() },
        ];
        let Input::Events { records, .. } = watch(PbWatchResponse { events, ..base() }) else { panic!("no events") };
        assert_eq!(
            records,
            [Record { key: b"a".to_vec(), value: Some(b"v".to_vec()) }, Record { key: b"b".to_vec(), value: None }]
        );
    }

    #[test]
    fn failures_of_a_list_become_inputs() {
        assert!(matches!(page(TARGET, Err(RpcFailure::Compacted)), Input::ListCompacted(TARGET)));
        assert!(matches!(page(TARGET, Err(RpcFailure::TooLarge)), Input::PageTooLarge(TARGET)));
        assert!(matches!(page(TARGET, Err(RpcFailure::Refused("r".into()))), Input::Refused(TARGET, _)));
        assert!(matches!(page(TARGET, Err(RpcFailure::Lost("l".into()))), Input::Lost(_)));
        let empty = page(TARGET, Ok(PbRangeResponse::default()));
        assert!(matches!(empty, Input::Page { header: Header { store_id: 0, .. }, .. }), "no header is no id");
    }
}
