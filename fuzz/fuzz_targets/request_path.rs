//! Any text as a request's path and query: it is understood without a panic.
#![no_main]

use apiserver::request_info::RequestInfo;
use http::Method;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (path, query) = text.split_once('?').map_or((text, None), |(p, q)| (p, Some(q)));
    for method in [Method::GET, Method::POST, Method::DELETE] {
        let _ = RequestInfo::new(&method, path, query);
    }
});
