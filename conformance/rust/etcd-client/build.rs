//! Tells the program which version of the client it was built with, from the lock file.

fn main() {
    println!("cargo::rerun-if-changed=../Cargo.lock");
    let lock = std::fs::read_to_string("../Cargo.lock").expect("the lock file of the workspace");
    let entry =
        lock.split("[[package]]").find(|entry| entry.contains("name = \"etcd-client\"\n")).expect("the client's entry");
    let version =
        entry.lines().find_map(|line| line.strip_prefix("version = ")).expect("its version").trim_matches('"');
    println!("cargo::rustc-env=CLIENT_VERSION={version}");
}
