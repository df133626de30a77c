//! Tables of `docs/GUARANTEES.md` that tests write and check: each says what a test run has shown, and a run that shows
//! something else fails.

use std::{fs, path::PathBuf};

use parking_lot::Mutex;

/// Set to have tables written anew.
const BLESS: &str = "SIMCAST_BLESS";
/// Tests write one document, and may run at the same time.
static DOCUMENT: Mutex<()> = Mutex::new(());

/// One table, between its two markers.
pub(crate) struct Table<'a> {
    /// As in the markers.
    pub name: &'a str,
    /// Titles and the line under them.
    pub head: &'static str,
    /// Columns that must be the same to the letter; the others are of the run that wrote them.
    pub exact: &'static [usize],
    /// Tests that write it.
    pub tests: &'static str,
}

impl Table<'_> {
    /// Holds the document to the lines that a run gives, or writes them.
    pub(crate) fn check(&self, lines: &[String]) {
        self.revise(|_| lines.to_vec());
    }

    /// The same where several tests fill one table, each some of its lines: the first cell tells which, and `order`
    /// names all that there are.
    pub(crate) fn check_some(&self, order: &[&str], lines: &[String]) {
        self.revise(|told| {
            let of = |lines: &[String], key: &str| lines.iter().find(|line| cells(line)[0] == key).cloned();
            order.iter().filter_map(|key| of(lines, key).or_else(|| of(told, key))).collect()
        });
    }

    /// The same by a function that makes the lines from those that the document has.
    pub(crate) fn revise(&self, lines: impl FnOnce(&[String]) -> Vec<String>) {
        let Self { name, head, tests, .. } = self;
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GUARANTEES.md"));
        let _alone = DOCUMENT.lock();
        let document = fs::read_to_string(&path).unwrap();
        let (before, rest) = document.split_once(&begin).expect("the document has the table's marker");
        let (told, after) = rest.split_once(&end).expect("the document has the end of the table");
        let told: Vec<String> = told.lines().skip(2).map(str::to_owned).collect();
        let lines = lines(&told);
        if std::env::var_os(BLESS).is_some() {
            let table: String = lines.iter().map(|line| format!("{line}\n")).collect();
            fs::write(path, format!("{before}{begin}{head}{table}{end}{after}")).unwrap();
            return;
        }
        let exact = |lines: &[String]| lines.iter().map(|line| self.exact(line)).collect::<Vec<_>>();
        let (told, are) = (exact(&told), exact(&lines));
        assert_eq!(told, are, "docs/GUARANTEES.md tells otherwise: {BLESS}=1 cargo test --lib {tests}");
    }

    fn exact(&self, line: &str) -> Vec<String> {
        let cells = cells(line);
        self.exact.iter().map(|at| cells.get(*at).copied().unwrap_or_default().to_owned()).collect()
    }
}

/// The cells of a line.
pub(crate) fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// Notes that a backend keeps these promises of the conformance suite, or holds the document to it.
pub(crate) fn conforms(backend: &str, promises: &[&str]) {
    const BACKENDS: [&str; 4] = ["in memory", "on disk", "NATS 2.12.8", "NATS 2.15.1"];
    let table = Table {
        name: "conformance",
        head: "| promise | in memory | on disk | NATS 2.12.8 | NATS 2.15.1 |\n|---|---|---|---|---|\n",
        exact: &[0, 1, 2, 3, 4],
        tests: "conforms",
    };
    let at = BACKENDS.iter().position(|name| *name == backend).expect("the table has a column of it");
    table.revise(|told| {
        let line_of = |promise: &&str| {
            let told = told.iter().find(|line| cells(line)[0] == *promise);
            let mut cells = told.map_or(vec![*promise, "", "", "", ""], |line| cells(line));
            cells[at + 1] = "kept";
            format!("| {} |", cells.join(" | "))
        };
        promises.iter().map(line_of).collect()
    });
}
