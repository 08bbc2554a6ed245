//! Names of requests and answers.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// 32 hexadecimal digits that no other request of this or another process has, but by chance.
pub(crate) fn unique() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// 64 bits that differ from call to call.
pub(crate) fn random() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // the standard library keys its hashers at random
    RandomState::new().hash_one((COUNT.fetch_add(1, Ordering::Relaxed), SystemTime::now()))
}

/// A seed that a client can send back: JavaScript keeps it whole.
pub(crate) fn seed() -> u64 {
    random() >> 32
}

/// Whole seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The name that a client gave its request, if it is one that can be written into a log.
pub(crate) fn from_client(headers: &hyper::HeaderMap) -> Option<String> {
    let text = headers.get("x-request-id")?.to_str().ok()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:/".contains(&b);
    (!text.is_empty() && text.len() <= 128 && text.bytes().all(plain)).then(|| text.to_owned())
}
