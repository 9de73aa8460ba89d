//! Compiles the protocol between switch and manager; no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "manager")]
    {
        println!("cargo::rerun-if-changed=src/manager/manager.proto");
        let files = protox::compile(["src/manager/manager.proto"], ["src/manager"])?;
        tonic_prost_build::configure().compile_fds(files)?;
    }
    Ok(())
}
