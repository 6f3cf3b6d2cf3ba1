//! What the allocator holds. glibc's tells sums, and not who asked for what.

use serde::Serialize;

/// Bytes, over all arenas.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Heap {
    allocator: &'static str,
    /// In use by the program.
    in_use_bytes: u64,
    /// Free, and kept for the next allocation.
    free_bytes: u64,
    /// Had from the kernel for arenas.
    arena_bytes: u64,
    /// Had from the kernel for large blocks, each its own.
    mapped_bytes: u64,
    mapped_blocks: u64,
    /// Free at the top, which could be given back.
    releasable_bytes: u64,
}

impl Heap {
    /// None where the allocator does not tell.
    pub(super) fn read() -> Option<Self> {
        let told = crate::sys::heap_figures()?;
        Some(Self {
            allocator: "glibc",
            in_use_bytes: told.in_use + told.mapped,
            free_bytes: told.free,
            arena_bytes: told.arena,
            mapped_bytes: told.mapped,
            mapped_blocks: told.mapped_blocks,
            releasable_bytes: told.releasable,
        })
    }
}
