//! Imports what no host grants (`acme:needs/rocket`), and opens a TCP connection, so that the refusal can be tested.

wit_bindgen::generate!({ path: "wit", world: "needs" });

struct Component;
export!(Component);

impl Guest for Component {
    fn handle_batch() {
        acme::needs::rocket::launch("moon");
        let _ = std::net::TcpStream::connect("127.0.0.1:1");
    }
}
