//! Keys: who may ask.

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

/// The keys that are accepted, as hashes: comparing them takes the same time for every wrong key.
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub fn new(keys: &[String]) -> Keys {
        Keys(keys.iter().map(|k| hash(k.as_bytes())).collect())
    }

    /// Whether a request may pass. Without keys every request may.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let value = value.as_bytes();
        const SCHEME: &[u8] = b"bearer ";
        if value.len() <= SCHEME.len() || !value[..SCHEME.len()].eq_ignore_ascii_case(SCHEME) {
            return false;
        }
        let given = hash(value[SCHEME.len()..].trim_ascii());
        // every key is compared, whichever fits
        self.0.iter().fold(false, |found, key| found | same(key, &given))
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// Compares without ending early.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |differ, (x, y)| differ | (x ^ y))) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn only_a_whole_key_in_the_right_scheme_passes() {
        let keys = Keys::new(&["first".into(), "second".into()]);
        let ask = |value: &str| {
            let mut h = HeaderMap::new();
            h.insert(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            keys.admit(&h)
        };
        assert!(ask("Bearer first") && ask("bearer  second"));
        for wrong in ["Bearer firs", "Bearer firstx", "Bearer ", "Bearer", "first", "Basic first", "Bearer FIRST", "Bearer first second"] {
            assert!(!ask(wrong), "{wrong}");
        }
        assert!(!keys.admit(&HeaderMap::new()) && Keys::new(&[]).admit(&HeaderMap::new()));
        let mut twice = HeaderMap::new();
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer first"));
        twice.append(AUTHORIZATION, HeaderValue::from_static("Bearer wrong"));
        assert!(!keys.admit(&twice));
    }
}
