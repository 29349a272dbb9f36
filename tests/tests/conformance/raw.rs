//! A client that sends requests as they are, also those a well-behaved client library would refuse to send.

use std::net::SocketAddr;
use std::time::Duration;

use etcd_client::proto::{PbResponseHeader, PbWatchRequest, PbWatchResponse};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Requests of one watch stream that wait to be sent.
const WATCH_REQUESTS_MAX: usize = 64;

/// One connection.
#[derive(Clone)]
pub(super) struct Raw {
    grpc: Grpc<Channel>,
}

impl Raw {
    /// Connects without TLS.
    pub(super) async fn connect(address: SocketAddr) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect_timeout(Duration::from_secs(10)).connect().await.unwrap();
        Self::over(channel)
    }

    /// Uses a channel.
    pub(super) fn over(channel: Channel) -> Self {
        Self { grpc: Grpc::new(channel).max_decoding_message_size(64 << 20) }
    }

    /// One request, one answer. `method` is for instance `KV/Range`.
    pub(super) async fn call<Asked, Answered>(&mut self, method: &str, request: Asked) -> Result<Answered, Status>
    where
        Asked: Message + Send + Sync + 'static,
        Answered: Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/etcdserverpb.{method}")).unwrap();
        let answer = self.grpc.unary(Request::new(request), path, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    /// One request whose answer has begun, and is read only when the caller asks for it.
    pub(super) async fn begin<Asked, Answered>(
        &mut self,
        method: &str,
        request: Asked,
    ) -> Result<Streaming<Answered>, Status>
    where
        Asked: Message + Send + Sync + 'static,
        Answered: Message + Default + Send + Sync + 'static,
    {
        self.grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::try_from(format!("/etcdserverpb.{method}")).unwrap();
        let answer = self.grpc.server_streaming(Request::new(request), path, ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    /// A watch stream. The answers come later than the first request: etcd is silent until then.
    pub(super) fn watch(
        &self,
    ) -> (mpsc::Sender<PbWatchRequest>, impl Future<Output = Streaming<PbWatchResponse>> + Send + use<>) {
        let (requests, answers) = self.try_watch();
        (requests, async { answers.await.unwrap() })
    }

    /// The same for a stream that may be refused.
    pub(super) fn try_watch(
        &self,
    ) -> (mpsc::Sender<PbWatchRequest>, impl Future<Output = Result<Streaming<PbWatchResponse>, Status>> + Send + use<>)
    {
        let (requests, stream) = mpsc::channel(WATCH_REQUESTS_MAX);
        let mut grpc = self.grpc.clone();
        let answers = async move {
            grpc.ready().await.unwrap();
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            let request = Request::new(ReceiverStream::new(stream));
            Ok(grpc.streaming(request, path, ProstCodec::default()).await?.into_inner())
        };
        (requests, answers)
    }
}

/// Blanks what two servers cannot have in common.
pub(super) fn normalise(header: &mut Option<PbResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = 0;
        header.member_id = 0;
        header.raft_term = 0;
    }
}
