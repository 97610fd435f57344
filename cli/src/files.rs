//! Reading files that somebody has named: no further than a bound, for a name may be that of a device without an end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The bytes of a file that has no more than `mib` MiB.
pub(crate) fn read(path: &Path, mib: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = File::open(path)?.take((mib << 20) + 1).read_to_end(&mut bytes)?;
    match length as u64 > mib << 20 {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {mib} MiB"))),
        false => Ok(bytes),
    }
}

/// The same, of a text.
pub(crate) fn read_text(path: &Path, mib: u64) -> io::Result<String> {
    let not_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8");
    String::from_utf8(read(path, mib)?).map_err(not_text)
}
