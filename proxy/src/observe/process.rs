//! This process as the kernel sees it.

use std::{fs, io};

/// Figures that Prometheus's own client libraries tell under these names too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: u64,
    pub(super) virtual_bytes: u64,
    pub(super) threads: u64,
    pub(super) open_descriptors: u64,
    pub(super) max_descriptors: Option<u64>,
}

impl Process {
    /// Reads them now.
    ///
    /// # Errors
    /// Where `/proc` is not mounted.
    pub(super) fn read() -> io::Result<Self> {
        let stat = fs::read_to_string("/proc/self/stat")?;
        let field = fields(&stat).ok_or_else(|| io::Error::other("/proc/self/stat is odd"))?;
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Ok(Self {
            cpu_seconds: (field.user_ticks + field.system_ticks) as f64 / ticks,
            resident_bytes: field.resident_pages * rustix::param::page_size() as u64,
            virtual_bytes: field.virtual_bytes,
            threads: field.threads,
            // The descriptor that this very look needs is not counted.
            open_descriptors: (fs::read_dir("/proc/self/fd")?.count() as u64).saturating_sub(1),
            max_descriptors: limit.current,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Fields {
    user_ticks: u64,
    system_ticks: u64,
    threads: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

/// The fields of proc_pid_stat(5) that we tell, by its numbers. The program's name stands in
/// parentheses and may hold anything, so what follows its end is counted from there.
fn fields(stat: &str) -> Option<Fields> {
    let after_name = stat.rsplit_once(')')?.1;
    let numbers: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let field = |number: usize| numbers.get(number - 3)?.parse().ok();
    Some(Fields {
        user_ticks: field(14)?,
        system_ticks: field(15)?,
        threads: field(20)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 110 120 13 14 15 16 5 18 19 2000 21 22";
        assert_eq!(
            fields(stat),
            Some(Fields {
                user_ticks: 110,
                system_ticks: 120,
                threads: 5,
                virtual_bytes: 2000,
                resident_pages: 21,
            })
        );
    }

    #[test]
    fn reads_this_very_process() {
        let process = Process::read().unwrap();
        assert!(process.resident_bytes > 0 && process.resident_bytes < process.virtual_bytes);
        assert!(process.threads >= 1 && process.open_descriptors >= 3);
    }
}
