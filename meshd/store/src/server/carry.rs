//! Ties the room of an answer to the bytes that leave.
//!
//! A body is over for its service long before the client has read it: HTTP/2 takes its frames and keeps them until flow
//! control and the socket let them out. So the [`Hold`] travels inside the frame and is dropped with its last byte,
//! also when the client resets the stream or the connection ends.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Response, Status};

use super::user::Peer;
use crate::answers::Hold;
use crate::engine::{Engine, EngineError};
use crate::store::Shared;

/// Holds of messages that have not become frames yet; an extension of the response.
#[derive(Clone, Debug, Default)]
pub(super) struct Carrier(Arc<Mutex<Vec<Hold>>>);

impl Carrier {
    /// For the next message.
    pub(super) fn add(&self, hold: Hold) {
        self.waiting().push(hold);
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Hold>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Reads, and takes room for what was found before it is copied. While a request waits it keeps nothing of it.
    pub(super) async fn read_held<T>(
        &self,
        peer: &Peer,
        read: impl Fn(&Engine) -> Result<T, EngineError>,
        bytes: impl Fn(&T) -> usize,
    ) -> Result<(T, Option<Hold>), Status> {
        let user = peer.name();
        let needed = {
            let answer = read(&self.engine())?;
            let needed = bytes(&answer);
            if needed == 0 {
                return Ok((answer, None));
            }
            if let Some(hold) = self.answers.try_take(&user, needed) {
                return Ok((answer, Some(hold)));
            }
            needed
        };
        let mut hold = self.answers.take(&user, needed).await?;
        let answer = read(&self.engine())?;
        hold.resize(bytes(&answer));
        Ok((answer, Some(hold)))
    }

    /// Takes room for the answer to a write. It comes first: a write that is done cannot be refused any more.
    pub(super) async fn room(&self, peer: &Peer, bytes: usize) -> Result<Option<Hold>, Status> {
        if bytes == 0 {
            return Ok(None);
        }
        Ok(Some(self.answers.take(&peer.name(), bytes).await?))
    }
}

/// An answer that keeps its room until it has been sent.
pub(super) fn held<T>(message: T, hold: Option<Hold>) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(hold) = hold {
        let carrier = Carrier::default();
        carrier.add(hold);
        response.extensions_mut().insert(carrier);
    }
    response
}

/// Puts what the carrier of a response holds into the frames of its body.
pub(super) fn carry(mut response: ::http::Response<Body>) -> ::http::Response<Body> {
    match response.extensions_mut().remove::<Carrier>() {
        Some(carrier) => response.map(|inner| Body::new(Carrying { inner, carrier })),
        None => response,
    }
}

struct Carrying {
    inner: Body,
    carrier: Carrier,
}

/// A frame and the room it takes.
struct Held {
    bytes: Bytes,
    _holds: Vec<Hold>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Carrying {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        polled.map_ok(|frame| {
            frame.map_data(|bytes| {
                // The encoder puts every message it took into this frame or an earlier one.
                let holds = std::mem::take(&mut *self.carrier.waiting());
                if holds.is_empty() { bytes } else { Bytes::from_owner(Held { bytes, _holds: holds }) }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
