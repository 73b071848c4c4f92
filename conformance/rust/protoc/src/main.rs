//! Prints the path of the `protoc` that a crate ships, so that the machine needs none.

fn main() {
    match protoc_bin_vendored::protoc_bin_path() {
        Ok(path) => println!("{}", path.display()),
        Err(error) => panic!("no protoc for this machine: {error}"),
    }
}
