//! The file of `sims.file`: one ICCID a line.

use std::{fs::File, io::Read, path::Path};

use crate::{event::Iccid, views::registry::SIMS_MAX};

/// Bytes of the file; room for the most SIMs that are kept, with a comment each.
const BYTES_MAX: u64 = 64 << 20;
/// Lines that are named when many are wrong.
const NAMED_MAX: usize = 10;

/// Reads the file. Blocks on the disk.
///
/// # Errors
/// What is wrong, with the lines' numbers: all of it up to a few lines.
pub(super) fn read(path: &Path) -> Result<Vec<Iccid>, Vec<String>> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| vec![format!("{shown} can't be read: {error}")];
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > BYTES_MAX {
        return Err(vec![format!("{shown} is larger than {} MiB", BYTES_MAX >> 20)]);
    }
    let (mut iccids, mut problems) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let bare = line.split('#').next().unwrap_or_default().trim();
        match Iccid::parse(bare) {
            _ if bare.is_empty() => {}
            Ok(iccid) => iccids.push(iccid),
            Err(error) if problems.len() < NAMED_MAX => {
                problems.push(format!("{shown}, line {}: {error}", index + 1));
            }
            Err(_) => {}
        }
    }
    if iccids.len() > SIMS_MAX {
        problems.push(format!("{shown} names {} SIMs; at most {SIMS_MAX} are kept", iccids.len()));
    }
    if problems.is_empty() { Ok(iccids) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_passed_over_and_bad_lines_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sims.txt");
        let good = "# ours\n8947000000000000001\n\n  8947 0000 0000 0000 002F # spare\n";
        std::fs::write(&path, good).unwrap();
        let iccids = read(&path).unwrap();
        assert_eq!(
            iccids.iter().map(Iccid::as_str).collect::<Vec<_>>(),
            ["8947000000000000001", "8947000000000000002"]
        );
        std::fs::write(&path, format!("{good}12\nx\n")).unwrap();
        let problems = read(&path).unwrap_err();
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("line 5: \"12\" is not an ICCID"), "{problems:?}");
        assert!(problems[1].contains("line 6"), "{problems:?}");
        assert_eq!(read(&directory.path().join("none")).unwrap_err().len(), 1);
    }
}
