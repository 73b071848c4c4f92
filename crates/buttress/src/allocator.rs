//! The allocator of the binary, and how much freed memory it keeps for later.
//!
//! A node makes and drops a few dozen small values for every request; mimalloc takes a fifth of the processor time off a put
//! (docs/internals/measurements.md). It gives freed pages back after a second, or not before the next second when others
//! were freed meanwhile. A node under produce frees hundreds of megabytes in that time: three quarters of what it had in memory
//! was nobody's. So a node gives them back at once. Other commands, as the proxy, keep the second: their requests are small.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

unsafe extern "C" {
    /// Sets an option of mimalloc that the environment did not set.
    fn mi_option_set_default(option: c_int, value: c_long);
}

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, in milliseconds. A test holds it to what it does.
const PURGE_DELAY: c_int = 15;

/// From now on pages that became free go back to the system at once. `MIMALLOC_PURGE_DELAY` in the environment wins.
pub fn give_back_at_once() {
    // SAFETY: the declaration is mimalloc.h's, which the allocator above links. It writes one number of a table; no other thread
    // runs when `main` calls this, and an option that is not there is ignored.
    unsafe { mi_option_set_default(PURGE_DELAY, 0) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{fs, hint::black_box};

    const MIB: usize = 1024 * 1024;

    /// What this process has in memory that is no file.
    fn own() -> usize {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    }

    /// Requests of a hundred kilobytes, all in memory; then what is resident before and after they are dropped.
    fn burst() -> (usize, usize) {
        let requests: Vec<Vec<u8>> = (0..640).map(|n| vec![n as u8 | 1; 100 * 1024]).collect();
        black_box(&requests);
        let full = own();
        drop(requests);
        (full, own())
    }

    #[test]
    fn what_a_burst_of_requests_took_goes_back_when_it_is_freed() {
        super::give_back_at_once();
        let (full, freed) = burst();
        assert!(full - freed.min(full) > 48 * MIB, "{} MiB of {} MiB stayed", freed / MIB, full / MIB);
    }
}
