//! Generates the Rust side of `proto/`, without an installed protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["kms_v2.proto", "envelope.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // A request or an answer with a seed in it must not be printable.
        .skip_debug(["v2.EncryptRequest", "v2.DecryptResponse"])
        .compile_fds(files)?;
    #[cfg(feature = "rotate")]
    {
        let etcd = protox::compile(["etcd.proto"], ["proto"])?;
        tonic_prost_build::configure().build_server(false).compile_fds(etcd)?;
    }
    Ok(())
}
