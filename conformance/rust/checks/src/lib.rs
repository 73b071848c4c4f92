//! How a step is told: one JSON object per line on the standard output, as lib.sh describes it.

use std::fmt::{Debug, Display};

use serde_json::json;

/// The checks of one client.
pub struct Checks {
    count: u32,
}

impl Checks {
    /// Names the client and its version.
    pub fn begin(client: &str, version: &str) -> Checks {
        println!("{}", json!({"client": client, "version": version}));
        Checks { count: 0 }
    }

    /// Tells whether what came back is what must come back; an error counts as what came back.
    pub fn check<T: PartialEq + Debug, E: Display>(&mut self, name: &str, wanted: T, got: Result<T, E>) {
        self.count += 1;
        match got {
            Ok(got) if got == wanted => println!("{}", json!({"check": name, "ok": true})),
            Ok(got) => tell(name, &format!("{wanted:?}"), &format!("{got:?}")),
            Err(error) => tell(name, &format!("{wanted:?}"), &format!("error: {error}")),
        }
    }

    /// The result must be an error whose text holds the part.
    pub fn fails<T: Debug, E: Display>(&mut self, name: &str, part: &str, got: Result<T, E>) {
        self.count += 1;
        match got {
            Ok(got) => tell(name, part, &format!("no error, but {got:?}")),
            Err(error) if error.to_string().contains(part) => println!("{}", json!({"check": name, "ok": true})),
            Err(error) => tell(name, part, &error.to_string()),
        }
    }

    /// Says how many checks there were.
    pub fn end(self) {
        println!("{}", json!({"end": self.count}));
    }
}

fn tell(name: &str, wanted: &str, got: &str) {
    println!("{}", json!({"check": name, "ok": false, "wanted": wanted, "got": got}));
}
