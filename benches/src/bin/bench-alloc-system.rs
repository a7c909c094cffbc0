//! Takes samples of the `alloc` benchmark with the system allocator: this program has no other.

#[path = "../alloc/workload.rs"]
mod workload;

fn main() -> std::io::Result<()> {
    workload::serve(|case| case())
}
