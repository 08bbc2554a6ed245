//! The chat page: a few files of `page/`, joined into one that asks nobody for anything else.

use sha2::{Digest, Sha256};
use std::sync::LazyLock;

/// The page as it is sent.
#[derive(Debug)]
pub struct Page {
    /// The document: markup, style and script.
    pub html: String,
    /// The value of its `Content-Security-Policy` header. Only this style and this script may run, and only this
    /// server may be asked.
    pub csp: String,
}

const INDEX: &str = include_str!("../page/index.html");
const STYLE: &str = include_str!("../page/style.css");

/// One module, in the order in which constants are needed.
const SCRIPT: &str = concat!(
    include_str!("../page/dom.js"),
    include_str!("../page/inline.js"),
    include_str!("../page/markdown.js"),
    include_str!("../page/render.js"),
    include_str!("../page/api.js"),
    include_str!("../page/generation.js"),
    include_str!("../page/store.js"),
    include_str!("../page/settings.js"),
    include_str!("../page/tokens.js"),
    include_str!("../page/view.js"),
    include_str!("../page/history.js"),
    include_str!("../page/chat.js"),
    include_str!("../page/inspector.js"),
    include_str!("../page/main.js"),
);

/// The page, joined once.
pub fn page() -> &'static Page {
    static PAGE: LazyLock<Page> = LazyLock::new(|| Page {
        html: INDEX.replace("/* style */", STYLE).replace("/* script */", SCRIPT),
        csp: format!(
            "default-src 'none'; connect-src 'self'; img-src data:; style-src 'sha256-{}'; script-src 'sha256-{}'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            base64(&Sha256::digest(STYLE.as_bytes())),
            base64(&Sha256::digest(SCRIPT.as_bytes()))
        ),
    });
    &PAGE
}

/// Base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, &b| w << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let shown = digit <= chunk.len();
            out.push(if shown { DIGITS[(word >> (18 - 6 * digit)) as usize & 63] as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// The test vectors of RFC 4648.
    #[test]
    fn base64_of_the_rfc() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in pairs {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
