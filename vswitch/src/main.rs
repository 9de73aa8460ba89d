//! The `vswitch` command.

/// Decisions are many small allocations on several threads, half of whose time glibc's allocator took: it gives memory back to
/// the system and takes it anew, thread by thread (`vswitch bench ask`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    vswitch::cli::main()
}
