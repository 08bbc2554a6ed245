//! The page at `/`.

/// The page and the policy it is sent with.
pub struct Page {
    /// The document.
    pub html: String,
    /// The value of its `Content-Security-Policy`.
    pub csp: String,
}

/// The page.
pub fn page() -> &'static Page {
    static PAGE: std::sync::OnceLock<Page> = std::sync::OnceLock::new();
    PAGE.get_or_init(|| Page {
        html: include_str!("../page/index.html").into(),
        csp: "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'".into(),
    })
}
