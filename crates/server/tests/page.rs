//! The chat page is one document that asks nobody but its server.
//!
//! What it does is checked in a browser, by `conformance/page`.

use std::path::Path;

/// The files that the page is made of, by name.
fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| {
            let path = e.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

#[test]
fn one_file_of_less_than_300_kb_holds_all_of_it() {
    let page = billfish_server::page();
    assert!(page.html.len() < 300_000, "{} bytes", page.html.len());
    assert!(files().len() > 10);
    for (name, text) in files().iter().filter(|(name, _)| name != "index.html") {
        assert!(page.html.contains(text.as_str()), "{name} is part of the page");
        // such a text would end the element that it stands in
        assert!(!text.to_lowercase().contains("</scr") && !text.to_lowercase().contains("</sty") && !text.contains("<!--"), "{name}");
        assert!(text.lines().count() < 600, "{name}");
    }
    assert_eq!(page.html.matches("<script").count(), 1);
    assert_eq!(page.html.matches("<style").count(), 1);
}

/// Every place that names another address is one where nothing is fetched.
#[test]
fn nothing_is_asked_of_others() {
    for (name, text) in files() {
        for (n, line) in text.lines().enumerate() {
            let fetches = ["src=", "@import", "url(", "importScripts", "WebSocket", "EventSource", "sendBeacon", "XMLHttpRequest"];
            assert!(!fetches.iter().any(|f| line.contains(f)), "{name}:{}: {line}", n + 1);
            // patterns that recognise a link, and the name space of the icon
            let address = line.contains("http://") || line.contains("https://");
            assert!(!address || line.contains("www.w3.org/2000/svg"), "{name}:{}: {line}", n + 1);
        }
        let asks = text.matches("fetch(").count();
        assert_eq!(asks, usize::from(name == "api.js"), "{name} asks {asks} times");
        assert!(
            !text.contains("innerHTML") && !text.contains("insertAdjacentHTML") && !text.contains("document.write"),
            "{name} makes markup"
        );
    }
}

#[test]
fn the_policy_lets_only_this_style_and_this_script_run() {
    let page = billfish_server::page();
    for rule in ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"] {
        assert!(page.csp.split("; ").any(|r| r == rule), "{rule}: {}", page.csp);
    }
    for loose in [concat!("un", "safe"), "*", "http"] {
        assert!(!page.csp.contains(loose), "{}", page.csp);
    }
    for directive in ["style-src", "script-src"] {
        let rule = page.csp.split("; ").find_map(|r| r.strip_prefix(directive)).unwrap();
        // SHA-256 is 32 bytes, 44 digits
        assert_eq!(rule.trim().len(), "'sha256-'".len() + 44, "{rule}");
    }
    assert!(!page.html.contains(" style=") && !page.html.contains(" onclick="), "a hash does not cover attributes");
}
