//! The most memory this process has had.

/// Bytes of memory the process has held at most since it began or since [`forget`]; none where the
/// system does not tell.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// Makes [`peak`] count from now on, where the system can.
pub fn forget() {
    // A system without this file counts from the beginning, which is still an upper bound.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_allocation_is_seen_until_it_is_forgotten() {
        let before = peak().unwrap();
        drop(std::hint::black_box(vec![1u8; 1 << 28]));
        let with = peak().unwrap();
        assert!(with >= before.max(1 << 28), "{before} {with}");
        forget();
        assert!(peak().unwrap() < with);
    }
}
