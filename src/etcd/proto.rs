//! The part of etcd's gRPC API that is used here; generated from `proto/`.
#![allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated")]

tonic::include_proto!("etcdserverpb");
