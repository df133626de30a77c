//! The default file, printed from the table: `simcast check --print-defaults`.

use super::schema::{Fallback, KEYS};

/// A TOML file with every key commented out at its default, for pasting and editing.
pub fn default_file() -> String {
    let mut out = String::from(
        "# simcast: every key, commented out at its default. Uncomment what you change.\n\
         # Each can be given as an environment variable instead, its name stands beside it.\n",
    );
    let mut section = "";
    for key in &KEYS {
        let (own_section, name) = key.split();
        if own_section != section {
            section = own_section;
            out.push_str(&format!("\n[{section}]\n"));
        }
        let value = match key.default {
            Fallback::Is(text) => text,
            Fallback::Unset(example) => example,
        };
        let note = if matches!(key.default, Fallback::Unset(_)) { "Not set by default. " } else { "" };
        out.push_str(&format!("# {}\n# {note}{}\n", key.doc, key.env()));
        out.push_str(&format!("#{name} = {value}\n"));
    }
    out.push_str(TOKENS);
    out
}

const TOKENS: &str = r#"
# Who may connect. Without tokens every listener must be on loopback. "simcast token new" prints a block like this.
#[[auth.tokens]]
#name = "dashboard"
#sha256 = "<64 hex digits>"
#roles = ["read"]                                    # read, webhooks, admin
#filter = { country = ["NO"] }                       # optional: all that its holder can ever see
#fields = { iccid = "last4", msisdn = "drop" }       # optional: keep, drop, last4, pseudonym
#expires = 2027-01-31T00:00:00Z                      # optional
"#;
