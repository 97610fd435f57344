//! What /proc tells of a process and of the kernel's memory.

use std::fs;

use anyhow::{Context, Result};

/// Resident bytes, counted page by page: the figure in /proc/PID/status lags by up to some dozen pages per core.
pub fn resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no Rss in {path}"))? * 1024)
}

/// Open descriptors. Those that live in an io_uring alone are not among them.
pub fn descriptors(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).with_context(|| path.clone())?.count())
}

/// Bytes in the objects of the kernel's slabs, those of files left out; `None` without the right to read them.
pub fn kernel_objects() -> Option<u64> {
    let text = fs::read_to_string("/proc/slabinfo").ok()?;
    let of_files = |name: &str| {
        name.ends_with("_inode_cache") && name != "sock_inode_cache"
            || ["inode_cache", "radix_tree_node", "buffer_head"].contains(&name)
    };
    let bytes_of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let active: u64 = words.next()?.parse().ok()?;
        let size: u64 = words.nth(1)?.parse().ok()?;
        (!of_files(name)).then_some(active * size)
    };
    Some(text.lines().filter_map(bytes_of_line).sum())
}
