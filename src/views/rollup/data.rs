//! What sessions moved, added up.

use crate::views::megabytes::Megabytes;

/// What a session or a group of them moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Data {
    /// From the SIM.
    pub upload: Megabytes,
    /// To the SIM.
    pub download: Megabytes,
    /// As upstream says; not always the sum of the two.
    pub total: Megabytes,
}

impl Data {
    /// Adds another.
    pub fn add(&mut self, other: Self) {
        self.upload = self.upload.plus(other.upload);
        self.download = self.download.plus(other.download);
        self.total = self.total.plus(other.total);
    }

    /// What is more than in an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            upload: self.upload.minus(earlier.upload),
            download: self.download.minus(earlier.download),
            total: self.total.minus(earlier.total),
        }
    }

    /// Whether nothing was moved.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}
