//! The records of the ClusterMesh etcd contract: keys, values and the checks of a careful reader.

mod rejection;

pub use rejection::Rejection;
